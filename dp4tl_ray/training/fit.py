"""The only training loop: surrogate, pretraining and finetuning all run through it."""

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch._dynamo  # else the first optimizer loads it, on the first training's time: a second
from torch import Tensor

from dp4tl_ray.algorithms.schedules import lr_factor
from dp4tl_ray.data.packed import JPEGImages
from dp4tl_ray.specs.adversarial import Standard
from dp4tl_ray.specs.self_supervised import AnySelfSupervised
from dp4tl_ray.specs.training import Optimizer, Recipe, Training
from dp4tl_ray.training.batch_norm import GroupedBatchNorm
from dp4tl_ray.training.checkpoint import Checkpoint, make_optimizer_state, optimizer_tensors
from dp4tl_ray.training.examples import Examples, batches, num_steps
from dp4tl_ray.training.lars import LARS
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.adversarial import AdversarialObjective
from dp4tl_ray.training.objectives.base import Objective
from dp4tl_ray.training.objectives.supervised import SupervisedObjective
from dp4tl_ray.training.objectives.two_views import TwoViewObjective
from dp4tl_ray.training.parallel import Parallel
from dp4tl_ray.training.passes import DivergedError, TrainingError
from dp4tl_ray.training.prefetch import ahead
from dp4tl_ray.training.recorder import DynamicsRecorder
from dp4tl_ray.training.worker import Worker

T = TypeVar("T")

WORTH_A_THREAD = 2**20
"""Bytes of a worker's images per batch from which a thread gathers them ahead on a CPU; what is
decoded always is."""


class Halted(Exception):
    """Whom the training reports to does not want it to go on; raised on every worker alike."""


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
    facts: dict[str, float]
    """What the objective says of the training."""

    def metrics(self) -> dict[str, float | int | str | bool | None]:
        """Return what a manifest keeps of it."""
        return {
            "optimizer_steps": self.optimizer_steps,
            "examples_seen": self.examples_seen,
            "train_loss": self.train_loss,
            "fit_seconds": self.seconds,
            "seconds_before": self.seconds_before,
            **self.facts,
        }


def fit(
    model: Classifier,
    examples: Examples,
    recipe: Recipe | AnySelfSupervised,
    seed: int,
    worker: Worker,
    checkpoint: Checkpoint | None = None,
    recorder: DynamicsRecorder | None = None,
) -> FitSummary:
    """Train a network in place.

    Every worker calls this with the same arguments and takes its share of each batch, whole
    batch-norm groups; gradients are averaged over the examples, so that the number of workers,
    sharding and passes per step change nothing but the order of float additions. The state is
    saved after every epoch, and within it as often as the worker says; a second call continues from
    it, bit-equal on a CPU where the workers, and where they save, are the same. A recorder, fresh
    at every call, sees all logits of a supervised training; it changes nothing. In the end every
    worker has the whole network; what else an objective trains is left behind.

    Raises:
        DivergedError: The loss is not finite, or the gradient of an attacked image; on every worker
            alike.
        Halted: The report's answer was not to go on; on every worker alike, after the state was
            saved. After the last epoch the answer is ignored.
        TrainingError: The budget is shorter than one batch, or a batch has fewer batch-norm groups
            than there are workers.
    """
    total = num_steps(recipe.budget, len(examples), recipe.batch_size)
    if total == 0:
        raise TrainingError(f"the budget is shorter than one batch of {recipe.batch_size}")
    objective: Objective[Any]
    if not isinstance(recipe, Recipe):
        objective = TwoViewObjective(model, examples, recipe, seed, worker, total)
    elif isinstance(recipe.adversarial, Standard):
        objective = SupervisedObjective(model, examples, recipe, seed, worker, total, recorder)
    else:
        attack = recipe.adversarial
        objective = AdversarialObjective(
            model, examples, recipe, attack, seed, worker, total, recorder
        )
    run = _Run(objective, examples, recipe, seed, total, recorder)
    if checkpoint is not None:
        run.resume(checkpoint)
    steps_per_epoch = len(examples) / recipe.batch_size
    with run.batches() as stream:
        for batch in stream:
            run.train_step(batch)
            # never between two replays of a batch, which a resumed training begins anew
            replayed = run.step % objective.replays == 0
            epoch = math.floor(run.step / steps_per_epoch)
            last = math.floor((run.step - objective.replays) / steps_per_epoch)
            if run.step == total or (replayed and epoch > last):
                go_on = run.end_epoch(epoch)
                if run.step < total:
                    if checkpoint is not None:
                        run.save(checkpoint)
                    run.halt_together(not go_on)
            elif checkpoint is not None and replayed and run.is_to_be_saved():
                run.bring_together()
                run.save(checkpoint)
    run.finish()
    seen = total * recipe.batch_size
    seconds, before = run.seconds, run.seconds_before
    return FitSummary(total, seen, run.train_loss, seconds, before, objective.facts())


class _Run:
    """State of one training between its steps."""

    def __init__(
        self,
        objective: Objective[Any],
        examples: Examples,
        recipe: Training,
        seed: int,
        total: int,
        recorder: DynamicsRecorder | None,
    ) -> None:
        self.objective, self.worker, self.recorder = objective, objective.worker, recorder
        self.examples, self.recipe, self.seed, self.total = examples, recipe, seed, total
        self.parallel = Parallel(objective.module, self.worker)
        self.model = self.parallel.model
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.ema = {n: t.clone() for n, t in self._kept_state().items()} if recipe.ema else {}
        self.norms = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, GroupedBatchNorm)
        }
        for norm in self.norms.values():
            norm.movement = objective.movement if objective.several_passes else None
        self.step, self.losses_start = 0, 0
        self.losses = torch.zeros((), device=self.worker.device)
        self.train_loss = math.nan
        self.started, self.seconds_before = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def _kept_state(self) -> dict[str, Tensor]:
        """Return what of the network may be averaged, as this worker holds it."""
        state = self.parallel.float_state()
        return {n: t for n, t in state.items() if n.startswith(self.objective.kept)}

    def batches(self) -> contextlib.AbstractContextManager[Iterator[Any]]:
        """Give this worker's part of the batches that are left."""
        gathered = self._gather()
        image_bytes = math.prod(self.examples.images.shape[1:])
        batch_bytes = (self.objective.rows.stop - self.objective.rows.start) * image_bytes
        decodes = isinstance(self.examples.images, JPEGImages)
        if decodes or self.worker.device.type == "cuda" or batch_bytes >= WORTH_A_THREAD:
            return ahead(gathered)
        return contextlib.nullcontext(gathered)

    def _gather(self) -> Iterator[Any]:
        size, replays = self.recipe.batch_size, self.objective.replays
        stream = batches(len(self.examples), size, self.seed, self.step // replays)
        starts = range(self.step, self.total, replays)
        for start, positions in zip(starts, stream, strict=False):
            batch = self.objective.gather(start, positions)
            yield from itertools.repeat(batch, min(replays, self.total - start))

    def train_step(self, batch: Any) -> None:
        """Take one optimizer step on this worker's part of a batch."""
        recipe = self.recipe
        factor = lr_factor(recipe.schedule.name, recipe.schedule.warmup, self.step / self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        self.losses += self.objective.backward(self.parallel, batch, self.step)
        self.optimizer.step()
        self.step += 1
        self._update_average()

    def is_to_be_saved(self) -> bool:
        """Say whether the state is saved here, within an epoch."""
        every = self.worker.checkpoint_steps
        # a recorder holds what each worker has seen of the epoch
        due = every is not None and self.step % every == 0 and self.recorder is None
        return due and self.objective.can_pause(self.step)

    def bring_together(self) -> None:
        """Replace what each worker counts for itself by the mean of all."""
        buffers = []
        for name, norm in self.norms.items():
            for key in ("running_mean", "running_var"):
                buffers.append(getattr(norm, key))
                if f"{name}.{key}" in self.ema:
                    buffers.append(self.ema[f"{name}.{key}"])
        self.worker.mean_(buffers, self.objective.weight)
        self.worker.mean_([self.losses])

    def end_epoch(self, epoch: int) -> bool:
        """Bring the workers' buffers together, check the loss, report; return the answer."""
        self.bring_together()
        self.train_loss = float(self.losses) / (self.step - self.losses_start)
        self.losses.zero_()
        self.losses_start = self.step
        self.objective.end_epoch(self.parallel)
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
            for name, tensor in self._kept_state().items():
                self.ema[name].lerp_(tensor, min(1.0, 1 / min(horizon, self.step)))

    def finish(self) -> None:
        """Leave the averaged weights, if any, or the last ones in the network."""
        self.parallel.finish(self.ema)

    def save(self, checkpoint: Checkpoint) -> None:
        """Save the state; all workers call this together."""
        tensors = self._tensors()
        if self.recorder is not None:
            tensors |= {f"recorder.{n}": t for n, t in self.recorder.state().items()}
        memory = self.objective.memory()
        facts = {
            "step": self.step,
            "losses": float(self.losses),
            "losses_start": self.losses_start,
            "seconds": self.seconds,
            "memory": memory,
        }
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
        self.step, self.losses_start = saved.facts["step"], saved.facts["losses_start"]
        self.losses.fill_(saved.facts["losses"])
        self.seconds_before = saved.facts["seconds"]
        self.objective.remember(saved.facts["memory"])

    def _check_together(self, step: int) -> None:
        """Make sure that all workers continue from the same step.

        On a shared file system one of them may have read an older state; they would then wait for
        each other for ever.
        """
        mean = torch.tensor([float(step)], device=self.worker.device)
        self.worker.mean_([mean])
        if float(mean) != step:
            raise RuntimeError(f"this worker resumes from step {step}, another one does not")


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
    if spec.name == "lars":
        return LARS(groups, spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return torch.optim.SGD(
        groups, spec.lr, spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.momentum > 0
    )
