"""Supervised training: cross-entropy with the examples' labels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.schedules import resolution_at
from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.training.examples import Examples, pinned
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.base import Objective
from dp4tl_ray.training.parallel import Parallel, is_sharded
from dp4tl_ray.training.passes import GradientSum, Pass, cut_passes
from dp4tl_ray.training.reading import View, draw, read
from dp4tl_ray.training.recorder import DynamicsRecorder
from dp4tl_ray.training.worker import Worker, seed_for


@dataclass(frozen=True)
class SupervisedBatch:
    """A worker's rows of a batch, in memory."""

    positions: npt.NDArray[np.int64]
    view: View
    labels: Tensor


@dataclass(frozen=True)
class Shown:
    """What a pass sees, on the worker's device."""

    positions: npt.NDArray[np.int64]
    """Among the examples, (n,)."""
    pixels: Tensor
    """In [0, 1], (n, channels, height, width)."""
    labels: Tensor
    """(n,)."""


class SupervisedObjective(Objective[SupervisedBatch]):
    """The mean cross-entropy of a batch, of which each pass knows its part."""

    def __init__(
        self,
        model: Classifier,
        examples: Examples,
        recipe: Recipe,
        seed: int,
        worker: Worker,
        total: int,
        recorder: DynamicsRecorder | None,
    ) -> None:
        passes = cut_passes(recipe, worker, worker.microbatch, together=is_sharded(worker))
        super().__init__(model, passes, worker)
        assert examples.labels is not None
        self.examples, self.labels, self.recipe = examples, examples.labels, recipe
        self.seed, self.total, self.recorder = seed, total, recorder

    def gather(self, step: int, positions: npt.NDArray[np.int64]) -> SupervisedBatch:
        """Bring this worker's rows of a batch into memory."""
        mine, recipe = positions[self.rows], self.recipe
        rng = np.random.default_rng(seed_for(self.seed, "augment", step))
        [changes] = draw([recipe.augmentation], self.examples, positions, [rng])
        size = self.examples.images.shape[1]
        if recipe.resolution is not None:
            size = resolution_at(step / self.total, *recipe.resolution.ramp)
        images, rows = self.examples.images, self.examples.rows[mine]
        [view] = read(images, rows, [changes.rows(self.rows)], size, self.worker)
        return SupervisedBatch(mine, view, pinned(self.labels[mine], self.worker))

    def backward(self, parallel: Parallel, batch: SupervisedBatch, step: int) -> Tensor:
        """Leave the gradient of the batch's mean loss in the parameters."""
        shown = (self.show(batch, one) for share in self.passes for one in share)
        return self.descend(parallel, shown, step)

    def show(self, batch: SupervisedBatch, one: Pass) -> Shown:
        """Bring the images of a pass to the device, augmented."""
        here = slice(one.rows.start - self.rows.start, one.rows.stop - self.rows.start)
        pixels = batch.view.show(self.recipe.augmentation, self.worker, here)
        labels = batch.labels[here].to(self.worker.device, non_blocking=True)
        return Shown(batch.positions[here], pixels, labels)

    def descend(
        self, parallel: Parallel, shown: Iterable[Shown], step: int, *, record: bool = True
    ) -> Tensor:
        """Go forward and backward through all passes; return this worker's part of the loss.

        Args:
            parallel: The network.
            shown: What each pass sees, in their order.
            step: Which of the training's steps it is.
            record: Whether the recorder, if any, is to see it.
        """
        total, each = GradientSum(parallel.model, self.worker.shards), iter(shown)
        loss = torch.zeros((), device=self.worker.device)
        for share in self.passes:
            for one in share:
                with parallel.accumulating(last=one is share[-1]):
                    loss += self._pass(parallel, next(each), one, step, record)
            total.end_share()
        total.give_back()
        return loss / self.worker.shards

    def _pass(self, parallel: Parallel, shown: Shown, one: Pass, step: int, record: bool) -> Tensor:
        """Go forward and backward through some rows of the batch; return their part of the loss."""
        self.movement.fill_(one.movement)
        logits = self.run(parallel.forward, shown.pixels)
        if self.recorder is not None and record and one.weight:
            first = step * self.recipe.batch_size + one.rows.start
            seen = logits[: len(shown.labels)]
            self.recorder.record(first, shown.positions, shown.labels, seen)
        loss = self.loss(logits.float(), shown.labels) * one.weight
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def run(self, network: Callable[..., Any], pixels: Tensor) -> Tensor:
        """Return logits, in the precision of the training."""
        device, bf16 = self.worker.device.type, self.recipe.precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits: Tensor = network(pixels)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a pass from its logits, (N, classes), in fp32."""
        return F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
