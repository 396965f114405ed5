"""The only training loop: surrogate, pretraining and finetuning all run through it."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.schedules import lr_factor
from dp4tl_ray.specs.training import Budget, Optimizer, Recipe
from dp4tl_ray.training.augment import Changes, augment, draw_changes
from dp4tl_ray.training.batch_norm import GroupedBatchNorm2d, movements
from dp4tl_ray.training.checkpoint import Checkpoint, make_optimizer_state, optimizer_tensors
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.parallel import Parallel
from dp4tl_ray.training.prefetch import ahead
from dp4tl_ray.training.recorder import DynamicsRecorder
from dp4tl_ray.training.shares import microbatches, shares
from dp4tl_ray.training.worker import Worker, seed_for

T = TypeVar("T")

WORTH_A_THREAD = 2**20
"""Bytes of a worker's images per batch from which a thread gathers them ahead on a CPU."""


class TrainingError(RuntimeError):
    """A training cannot be done as asked; raised on every worker alike."""


class DivergedError(TrainingError):
    """The loss is no longer a finite number."""


class Halted(Exception):
    """Whom the training reports to does not want it to go on; raised on every worker alike."""


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
    return _floats(torch.from_numpy(images_NHWC).to(device))


def _floats(images_NHWC: Tensor) -> Tensor:
    return images_NHWC.permute(0, 3, 1, 2).to(torch.float32).div_(255)


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

    Every worker calls this with the same arguments and takes its share of each batch, whole
    batch-norm groups; gradients are averaged over the examples, so that the number of workers,
    sharding and passes per step change nothing but the order of float additions. The state is
    saved after every epoch; a second call continues from it, bit-equal on a CPU where the workers
    are the same. A recorder, fresh at every call, sees all logits; it changes nothing in the
    training. In the end every worker has the whole network.

    Raises:
        DivergedError: The loss is not finite; on every worker alike.
        Halted: The report's answer was not to go on; on every worker alike, after the state was
            saved. After the last epoch the answer is ignored.
        TrainingError: The budget is shorter than one batch, or a batch has fewer batch-norm groups
            than there are workers.
    """
    total = num_steps(recipe.budget, len(examples), recipe.batch_size)
    if total == 0:
        raise TrainingError(f"the budget is shorter than one batch of {recipe.batch_size}")
    run = _Run(model, examples, recipe, seed, total, worker, recorder)
    if checkpoint is not None:
        run.resume(checkpoint)
    steps_per_epoch = len(examples) / recipe.batch_size
    with run.batches() as stream:
        for batch in stream:
            run.train_step(batch)
            epoch = math.floor(run.step / steps_per_epoch)
            if run.step == total or epoch > math.floor((run.step - 1) / steps_per_epoch):
                go_on = run.end_epoch(epoch)
                if run.step < total:
                    if checkpoint is not None:
                        run.save(checkpoint)
                    run.halt_together(not go_on)
    run.finish()
    seen = total * recipe.batch_size
    return FitSummary(total, seen, run.train_loss, run.seconds, run.seconds_before)


@dataclass(frozen=True)
class _Batch:
    """A worker's rows of a batch, in memory."""

    positions: npt.NDArray[np.int64]
    images_NHWC: Tensor
    labels: Tensor
    changes: Changes


@dataclass(frozen=True)
class _Pass:
    """Some rows of a batch that go forward and backward at once.

    Each pass of a sharded network needs all workers; one whose share takes fewer of them fills up
    with idle passes, of weight and movement 0, while it would wait for the others anyway.
    """

    rows: slice
    """Within the batch."""
    weight: float
    """Of the pass's mean loss."""
    movement: float
    """How far it moves the running statistics."""


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
        self.parallel = Parallel(model, worker)
        self.model = self.parallel.model
        self.passes = _passes(recipe, worker, together=self.parallel.sharded)
        self.rows = slice(self.passes[0][0].rows.start, self.passes[-1][-1].rows.stop)
        self.weight = (self.rows.stop - self.rows.start) * worker.world_size / recipe.batch_size
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.ema = self.parallel.float_state() if recipe.ema else {}
        self.ema = {name: tensor.clone() for name, tensor in self.ema.items()}
        self.norms = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, GroupedBatchNorm2d)
        }
        self.movement = torch.zeros((), device=worker.device)
        several = sum(len(share) for share in self.passes) > 1
        for norm in self.norms.values():
            norm.movement = self.movement if several else None
        self.step, self.losses, self.losses_start = 0, torch.zeros((), device=worker.device), 0
        self.train_loss = math.nan
        self.started, self.seconds_before = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def batches(self) -> contextlib.AbstractContextManager[Iterator[_Batch]]:
        """Give this worker's rows of the batches that are left."""
        gathered = self._gather()
        image_bytes = math.prod(self.examples.images.shape[1:])
        batch_bytes = (self.rows.stop - self.rows.start) * image_bytes
        if self.worker.device.type == "cuda" or batch_bytes >= WORTH_A_THREAD:
            return ahead(gathered)
        return contextlib.nullcontext(gathered)

    def _gather(self) -> Iterator[_Batch]:
        recipe = self.recipe
        on_gpu = self.worker.device.type == "cuda"
        stream = batches(len(self.examples), recipe.batch_size, self.seed, self.step)
        for step, positions in zip(range(self.step, self.total), stream, strict=False):
            mine = np.array(positions[self.rows])
            rng = np.random.default_rng(seed_for(self.seed, "augment", step))
            changes = draw_changes(recipe.augmentation, recipe.batch_size, rng)
            images = torch.from_numpy(self.examples.images[self.examples.rows[mine]])
            labels = torch.from_numpy(self.examples.labels[mine])
            if on_gpu:
                images, labels = images.pin_memory(), labels.pin_memory()
            yield _Batch(mine, images, labels, changes.rows(self.rows))

    def train_step(self, batch: _Batch) -> None:
        """Take one optimizer step on this worker's rows of a batch."""
        recipe = self.recipe
        factor = lr_factor(recipe.schedule.name, recipe.schedule.warmup, self.step / self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        self._backward(batch)
        self.optimizer.step()
        self.step += 1
        self._update_average()

    def _backward(self, batch: _Batch) -> None:
        """Leave the gradient of the batch's mean loss in the parameters."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        sums: list[Tensor] = []
        for share in self.passes:
            for one in share:
                with self.parallel.accumulating(last=one is share[-1]):
                    self._pass(batch, one)
            if self.worker.shards > 1:
                # each share's own sum first, and divided before it is added, as DDP does
                gradients = [p.grad for p in parameters]
                for gradient in gradients:
                    gradient.mul_(1 / self.worker.shards)
                if sums:
                    torch._foreach_add_(sums, gradients)
                else:
                    sums = gradients
                self.optimizer.zero_grad(set_to_none=True)
        for parameter, gradient in zip(parameters, sums, strict=False):
            parameter.grad = gradient

    def _pass(self, batch: _Batch, one: _Pass) -> None:
        """Go forward and backward through some rows of the batch."""
        recipe, device = self.recipe, self.worker.device
        here = slice(one.rows.start - self.rows.start, one.rows.stop - self.rows.start)
        images = batch.images_NHWC[here].to(device, non_blocking=True)
        labels = batch.labels[here].to(device, non_blocking=True)
        pixels = augment(_floats(images), recipe.augmentation, batch.changes.rows(here))
        self.movement.fill_(one.movement)
        self.model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits = self.parallel.forward(pixels)
        if self.recorder is not None and one.weight:
            first = self.step * recipe.batch_size + one.rows.start
            self.recorder.record(first, batch.positions[here], labels, logits)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        loss = loss * one.weight
        loss.backward()  # type: ignore[no-untyped-call]
        self.losses += loss.detach() / self.worker.shards

    def end_epoch(self, epoch: int) -> bool:
        """Bring the workers' buffers together, check the loss, report; return the answer."""
        buffers = []
        for name, norm in self.norms.items():
            for key in ("running_mean", "running_var"):
                buffers.append(getattr(norm, key))
                if self.ema:
                    buffers.append(self.ema[f"{name}.{key}"])
            if self.recipe.batch_size > norm.group_size:
                # a single pass over several groups does not count batches
                assert norm.num_batches_tracked is not None
                norm.num_batches_tracked.zero_()
        self.worker.mean_(buffers, self.weight)
        self.worker.mean_([self.losses])
        self.train_loss = float(self.losses) / (self.step - self.losses_start)
        self.losses.zero_()
        self.losses_start = self.step
        if not math.isfinite(self.train_loss):
            raise DivergedError(f"the loss is {self.train_loss} after step {self.step}")
        if self.recorder is not None:
            self.recorder.end_epoch(self.step * self.recipe.batch_size)
        if self.worker.rank > 0:
            return True
        return self.worker.report(
            {"epoch": epoch, "step": self.step, "steps": self.total, "loss": self.train_loss}
        )

    def halt_together(self, halt: bool) -> None:
        """Raise Halted on all workers if one of them is to halt."""
        halts = torch.tensor(float(halt), device=self.worker.device)
        self.worker.sum_([halts])
        if halts:
            raise Halted(f"halted after step {self.step} of {self.total}")

    def _update_average(self) -> None:
        if self.recipe.ema:
            horizon = max(1.0, self.recipe.ema * self.total)
            for name, tensor in self.parallel.float_state().items():
                self.ema[name].lerp_(tensor, min(1.0, 1 / min(horizon, self.step)))

    def finish(self) -> None:
        """Leave the averaged weights, if any, or the last ones in the network."""
        self.parallel.finish(self.ema)

    def save(self, checkpoint: Checkpoint) -> None:
        """Save the state; all workers call this together."""
        tensors = self._tensors()
        if self.recorder is not None:
            tensors |= {f"recorder.{n}": t for n, t in self.recorder.state().items()}
        facts = {"step": self.step, "seconds": self.seconds}
        checkpoint.save(self.worker, tensors, facts, sharded=self.parallel.sharded)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        tensors |= {f"ema.{n}": t for n, t in self.ema.items()}
        moved = optimizer_tensors(self.model, self.optimizer)
        return tensors | {f"optimizer.{n}": t for n, t in moved.items()}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from the saved state, if there is one."""
        saved = checkpoint.newest()
        self._check_together(saved.facts["step"] if saved else 0)
        if saved is None:
            return
        sizes = {name: saved.size(name) for name in saved.names("optimizer.")}
        make_optimizer_state(self.model, self.optimizer, _part(sizes, "optimizer."))
        saved.fill(self._tensors(), sharded=self.parallel.sharded)
        if self.recorder is not None:
            recorded = {name: saved.read(name) for name in saved.names("recorder.")}
            self.recorder.load(_part(recorded, "recorder."))
        self.step = self.losses_start = saved.facts["step"]
        self.seconds_before = saved.facts["seconds"]

    def _check_together(self, step: int) -> None:
        """Make sure that all workers continue from the same step.

        On a shared file system one of them may have read an older state; they would then wait for
        each other for ever.
        """
        mean = torch.tensor([float(step)], device=self.worker.device)
        self.worker.mean_([mean])
        if float(mean) != step:
            raise RuntimeError(f"this worker resumes from step {step}, another one does not")


def _passes(recipe: Recipe, worker: Worker, *, together: bool) -> list[list[_Pass]]:
    """Return the passes of a worker through its rows of a batch, share by share.

    Args:
        recipe: Gives the batch and its groups.
        worker: Gives the shares and the size of a pass.
        together: Whether all workers must go through equally many passes.
    """
    size, group_size = recipe.batch_size, recipe.batch_norm.group_size
    try:
        cut = shares(size, group_size, worker.parts)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    passes = [microbatches(share, group_size, worker.microbatch) for share in cut]
    mine = passes if worker.shards > 1 else [passes[worker.rank]]
    lengths = [rows.stop - rows.start for share in mine for rows in share]
    moves = iter(movements(lengths))
    # the mean over all shares is then the mean over the batch; exactly 1 where shares are equal
    weights = (length * worker.parts / size for length in lengths)
    counted = [[_Pass(rows, next(weights), next(moves)) for rows in share] for share in mine]
    if together:
        most = max(len(share) for share in passes)
        idle = [_Pass(counted[0][0].rows, 0.0, 0.0)] * (most - len(counted[0]))
        counted[0] = idle + counted[0]
    return counted


def _part(values: dict[str, T], prefix: str) -> dict[str, T]:
    return {n.removeprefix(prefix): t for n, t in values.items() if n.startswith(prefix)}


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
