"""Supervised training: cross-entropy with the examples' labels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.training.augment import Changes, augment, draw_changes
from dp4tl_ray.training.examples import Examples, floats
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.base import Objective, pinned
from dp4tl_ray.training.parallel import Parallel, is_sharded
from dp4tl_ray.training.passes import GradientSum, Pass, cut_passes
from dp4tl_ray.training.recorder import DynamicsRecorder
from dp4tl_ray.training.worker import Worker, seed_for


@dataclass(frozen=True)
class _Batch:
    """A worker's rows of a batch, in memory."""

    positions: npt.NDArray[np.int64]
    images_NHWC: Tensor
    labels: Tensor
    changes: Changes


class SupervisedObjective(Objective[_Batch]):
    """The mean cross-entropy of a batch, of which each pass knows its part."""

    def __init__(
        self,
        model: Classifier,
        examples: Examples,
        recipe: Recipe,
        seed: int,
        worker: Worker,
        recorder: DynamicsRecorder | None,
    ) -> None:
        passes = cut_passes(recipe, worker, worker.microbatch, together=is_sharded(worker))
        super().__init__(model, passes, worker)
        assert examples.labels is not None
        self.examples, self.labels, self.recipe = examples, examples.labels, recipe
        self.seed, self.recorder = seed, recorder

    def gather(self, step: int, positions: npt.NDArray[np.int64]) -> _Batch:
        """Bring this worker's rows of a batch into memory."""
        mine, recipe = positions[self.rows], self.recipe
        rng = np.random.default_rng(seed_for(self.seed, "augment", step))
        changes = draw_changes(recipe.augmentation, recipe.batch_size, rng)
        images = self.examples.images[self.examples.rows[mine]]
        return _Batch(
            mine,
            pinned(images, self.worker),
            pinned(self.labels[mine], self.worker),
            changes.rows(self.rows),
        )

    def backward(self, parallel: Parallel, batch: _Batch, step: int) -> Tensor:
        """Leave the gradient of the batch's mean loss in the parameters."""
        total = GradientSum(parallel.model, self.worker.shards)
        loss = torch.zeros((), device=self.worker.device)
        for share in self.passes:
            for one in share:
                with parallel.accumulating(last=one is share[-1]):
                    loss += self._pass(parallel, batch, one, step)
            total.end_share()
        total.give_back()
        return loss / self.worker.shards

    def _pass(self, parallel: Parallel, batch: _Batch, one: Pass, step: int) -> Tensor:
        """Go forward and backward through some rows of the batch; return their part of the loss."""
        recipe, device = self.recipe, self.worker.device
        here = slice(one.rows.start - self.rows.start, one.rows.stop - self.rows.start)
        images = batch.images_NHWC[here].to(device, non_blocking=True)
        labels = batch.labels[here].to(device, non_blocking=True)
        pixels = augment(floats(images), recipe.augmentation, batch.changes.rows(here))
        self.movement.fill_(one.movement)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = parallel.forward(pixels)
        if self.recorder is not None and one.weight:
            first = step * recipe.batch_size + one.rows.start
            self.recorder.record(first, batch.positions[here], labels, logits)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        loss = loss * one.weight
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
