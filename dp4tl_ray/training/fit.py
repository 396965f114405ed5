"""The only training loop: surrogate, pretraining and finetuning all run through it."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dp4tl_ray.algorithms.schedules import lr_factor
from dp4tl_ray.specs.training import Budget, Optimizer, Recipe
from dp4tl_ray.training.augment import augment, draw_changes
from dp4tl_ray.training.checkpoint import Checkpoint, load_optimizer, optimizer_tensors
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.recorder import DynamicsRecorder
from dp4tl_ray.training.worker import Worker, seed_for


class TrainingError(RuntimeError):
    """A training cannot be done as asked; raised on every worker alike."""


class DivergedError(TrainingError):
    """The loss is no longer a finite number."""


# Buffers are averaged once per epoch instead: they are linear in the groups. torch renamed the
# switch in 2.15.
_SYNC = "forward_sync_buffers"
_KNOWN = signature(DistributedDataParallel.__init__).parameters
_LEAVE_BUFFERS: dict[str, Any] = {_SYNC if _SYNC in _KNOWN else "broadcast_buffers": False}


@dataclass(frozen=True)
class Examples:
    """What to train on: rows of an image array, and a label for each row."""

    images: npt.NDArray[np.uint8]
    """All images of the dataset, (M, height, width, channels); may be memory-mapped."""
    rows: npt.NDArray[np.int64]
    """Rows to train on, (N,)."""
    labels: npt.NDArray[np.int64]
    """Class of each of these rows, (N,)."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class FitSummary:
    """What a training did."""

    optimizer_steps: int
    examples_seen: int
    train_loss: float
    """Mean loss of the last epoch."""
    seconds: float
    """Wall time over all attempts."""
    seconds_before: float
    """Wall time of earlier attempts, from whose state this one continued."""

    def metrics(self) -> dict[str, float | int | str | bool | None]:
        """Return what a manifest keeps of it."""
        return {
            "optimizer_steps": self.optimizer_steps,
            "examples_seen": self.examples_seen,
            "train_loss": self.train_loss,
            "fit_seconds": self.seconds,
            "seconds_before": self.seconds_before,
        }


def num_steps(budget: Budget, num_examples: int, batch_size: int) -> int:
    """Return the optimizer steps of a budget; batches are cut from one stream of epochs."""
    seen = budget.examples_seen or num_examples * (budget.epochs or 0)
    return seen // batch_size


def batches(num_examples: int, batch_size: int, seed: int, start: int) -> Iterator[list[int]]:
    """Yield positions in [0, num_examples), batch after batch, from step `start` on, for ever.

    The stream is the concatenation of one permutation per epoch, each a function of (seed, epoch)
    alone; a batch may cross the border of an epoch, so that nothing is dropped.
    """
    epoch, skip = divmod(start * batch_size, num_examples)
    pending: list[int] = []
    while True:
        rng = np.random.default_rng(seed_for(seed, "order", epoch))
        pending += rng.permutation(num_examples)[skip:].tolist()
        epoch, skip = epoch + 1, 0
        while len(pending) >= batch_size:
            yield pending[:batch_size]
            pending = pending[batch_size:]


def to_pixels(images_NHWC: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Turn images into floats in [0, 1], (N, channels, height, width), channels last in memory."""
    pixels = torch.from_numpy(images_NHWC).to(device)
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def fit(
    model: Classifier,
    examples: Examples,
    recipe: Recipe,
    seed: int,
    worker: Worker,
    checkpoint: Checkpoint | None = None,
    recorder: DynamicsRecorder | None = None,
) -> FitSummary:
    """Train a network in place.

    Every worker calls this with the same arguments and an equal share of each batch; gradients are
    averaged, so that the number of workers changes nothing but the order of float additions. The
    state is saved after every epoch; a second call continues from it, bit-equal on a CPU. A
    recorder, fresh at every call, sees all logits; it changes nothing in the training.

    Raises:
        DivergedError: The loss is not finite; on every worker alike.
        TrainingError: The budget is shorter than one batch.
    """
    total = num_steps(recipe.budget, len(examples), recipe.batch_size)
    if total == 0:
        raise TrainingError(f"the budget is shorter than one batch of {recipe.batch_size}")
    run = _Run(model, examples, recipe, seed, total, worker, recorder)
    if checkpoint is not None:
        run.resume(checkpoint)
        run.check_together()
    steps_per_epoch = len(examples) / recipe.batch_size
    stream = batches(len(examples), recipe.batch_size, seed, run.step)
    while run.step < total:
        run.train_step(next(stream))
        epoch = math.floor(run.step / steps_per_epoch)
        if run.step == total or epoch > math.floor((run.step - 1) / steps_per_epoch):
            run.end_epoch(epoch)
            if checkpoint is not None and run.step < total and worker.rank == 0:
                run.save(checkpoint)
    run.keep_average()
    seen = total * recipe.batch_size
    return FitSummary(total, seen, run.train_loss, run.seconds, run.seconds_before)


class _Run:
    """State of one training between its steps."""

    def __init__(
        self,
        model: Classifier,
        examples: Examples,
        recipe: Recipe,
        seed: int,
        total: int,
        worker: Worker,
        recorder: DynamicsRecorder | None,
    ) -> None:
        self.examples, self.recipe, self.seed, self.total = examples, recipe, seed, total
        self.worker, self.recorder = worker, recorder
        self.model = model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(model, recipe.optimizer)
        self.ema = self._float_state() if recipe.ema else {}
        self.ema = {name: tensor.clone() for name, tensor in self.ema.items()}
        self.step, self.losses, self.losses_start = 0, torch.zeros((), device=worker.device), 0
        self.train_loss = math.nan
        self.started, self.seconds_before = time.perf_counter(), 0.0
        self.parallel: torch.nn.Module = (
            DistributedDataParallel(self.model, **_LEAVE_BUFFERS)
            if worker.world_size > 1
            else self.model
        )
        per_worker = recipe.batch_size // worker.world_size
        self.part = slice(worker.rank * per_worker, (worker.rank + 1) * per_worker)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def train_step(self, positions: list[int]) -> None:
        """Take one optimizer step on this worker's share of a batch."""
        recipe, device = self.recipe, self.worker.device
        mine = np.array(positions[self.part])
        changes = draw_changes(
            recipe.augmentation,
            recipe.batch_size,
            np.random.default_rng(seed_for(self.seed, "augment", self.step)),
        )
        pixels = to_pixels(self.examples.images[self.examples.rows[mine]], device)
        pixels = augment(pixels, recipe.augmentation, changes.rows(self.part))
        labels = torch.from_numpy(self.examples.labels[mine]).to(device)
        factor = lr_factor(recipe.schedule.name, recipe.schedule.warmup, self.step / self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * factor
        self.parallel.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = self.parallel(pixels)
        if self.recorder is not None:
            first = self.step * recipe.batch_size + self.part.start
            self.recorder.record(first, mine, labels, logits)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.losses += loss.detach()
        self.step += 1
        self._update_average()

    def end_epoch(self, epoch: int) -> None:
        """Bring the workers' buffers together, check the loss, report."""
        buffers = [b for b in self.model.buffers() if b.is_floating_point()]
        self.worker.mean_([*buffers, *self.ema.values(), self.losses])
        self.train_loss = float(self.losses) / (self.step - self.losses_start)
        self.losses.zero_()
        self.losses_start = self.step
        if not math.isfinite(self.train_loss):
            raise DivergedError(f"the loss is {self.train_loss} after step {self.step}")
        if self.recorder is not None:
            self.recorder.end_epoch(self.step * self.recipe.batch_size)
        self.worker.report(
            {"epoch": epoch, "step": self.step, "steps": self.total, "loss": self.train_loss}
        )

    def _float_state(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.model.state_dict().items() if t.is_floating_point()}

    def _update_average(self) -> None:
        if self.recipe.ema:
            horizon = max(1.0, self.recipe.ema * self.total)
            for name, tensor in self._float_state().items():
                self.ema[name].lerp_(tensor, min(1.0, 1 / min(horizon, self.step)))

    def keep_average(self) -> None:
        """Put the averaged weights, if any, in place of the last ones."""
        if self.ema:
            self.model.load_state_dict(self.ema, strict=False)  # integer buffers stay

    def save(self, checkpoint: Checkpoint) -> None:
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        tensors |= {f"ema.{n}": t for n, t in self.ema.items()}
        tensors |= optimizer_tensors(self.optimizer)
        if self.recorder is not None:
            tensors |= {f"recorder.{n}": t for n, t in self.recorder.state().items()}
        checkpoint.save(tensors, {"step": self.step, "seconds": self.seconds})

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from the saved state, if there is one."""
        if (state := checkpoint.load()) is None:
            return
        tensors, facts = state
        self.model.load_state_dict(_part(tensors, "model."))
        self.ema = {n: t.to(self.worker.device) for n, t in _part(tensors, "ema.").items()}
        load_optimizer(self.optimizer, tensors)
        if self.recorder is not None:
            self.recorder.load(_part(tensors, "recorder."))
        self.step = self.losses_start = facts["step"]
        self.seconds_before = facts["seconds"]

    def check_together(self) -> None:
        """Make sure that all workers continue from the same step.

        On a shared file system one of them may have read an older state; they would then wait for
        each other for ever.
        """
        mean = torch.tensor([float(self.step)], device=self.worker.device)
        self.worker.mean_([mean])
        if float(mean) != self.step:
            raise RuntimeError(f"this worker resumes from step {self.step}, another one does not")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def build_optimizer(model: torch.nn.Module, spec: Optimizer) -> torch.optim.Optimizer:
    """Build the update rule; without `decay_norms`, vectors are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if spec.decay_norms or p.ndim > 1]
    rest = [p for p in parameters if not (spec.decay_norms or p.ndim > 1)]
    groups = [{"params": decayed}] + ([{"params": rest, "weight_decay": 0.0}] if rest else [])
    if spec.name == "adamw":
        betas = (spec.momentum, 0.999)
        return torch.optim.AdamW(groups, spec.lr, betas=betas, weight_decay=spec.weight_decay)
    return torch.optim.SGD(
        groups, spec.lr, spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.momentum > 0
    )
