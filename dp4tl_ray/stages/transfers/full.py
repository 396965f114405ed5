"""Full finetuning: all weights trained on the target, under a new head."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from dp4tl_ray.algorithms.halving import rungs, survivors
from dp4tl_ray.specs.network import BatchNorm
from dp4tl_ray.specs.training import Budget, Optimizer, Recipe, Schedule
from dp4tl_ray.specs.transfer import FullFinetune
from dp4tl_ray.stages.bench import Metrics, StageError
from dp4tl_ray.stages.transfers.task import Outcome, Task
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.examples import Examples
from dp4tl_ray.training.fit import Halted, fit
from dp4tl_ray.training.inference import infer
from dp4tl_ray.training.networks import Classifier, new_head
from dp4tl_ray.training.passes import DivergedError
from dp4tl_ray.training.worker import Progress

Watch = Callable[[int, Classifier], None]
"""Looks at the network after an epoch, whose number it is told."""


def _ignore(epoch: int, model: Classifier) -> None:
    """Look at nothing."""


@dataclass(frozen=True)
class Pair:
    """A learning rate and a weight decay to choose from."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Finetuning:
    """Trains all weights under a new head with one pair or another."""

    spec: FullFinetune
    task: Task

    @property
    def pairs(self) -> list[Pair]:
        """What to choose from, in the order in which ties are decided."""
        spec = self.spec
        return [Pair(*pair) for pair in product(sorted(spec.lrs), sorted(spec.weight_decays))]

    def train(
        self, pair: Pair, epochs: int, paused: Path | None = None, watch: Watch = _ignore
    ) -> Classifier | None:
        """Train up to an epoch of the whole budget; null if the loss diverges.

        Args:
            pair: What to train with.
            epochs: Where to pause.
            paused: Folder from whose state the pair goes on, and where it is left for later.
            watch: Called after every epoch.
        """
        task, spec, stopped = self.task, self.spec, False
        rows = task.draw.train
        examples = Examples(task.images, rows, task.labels[rows])
        batch_size = min(spec.batch_size, len(examples))
        model = task.network(batch_size)
        new_head(model, task.num_classes, task.seed)

        def report(progress: Progress) -> bool:
            nonlocal stopped
            watch(int(progress["epoch"]), model)
            stopped = not task.job.worker.report(progress)
            return not stopped and float(progress["epoch"]) < epochs

        worker = replace(task.job.worker, report=report)
        checkpoint = Checkpoint(paused) if paused else None
        try:
            fit(model, examples, _recipe(spec, pair, batch_size), task.seed, worker, checkpoint)
        except DivergedError:
            return None  # this rate is too high; the others are still to be tried
        except Halted:
            if stopped:
                raise
        return model


def full_finetune(spec: FullFinetune, task: Task) -> Outcome:
    """Train with many pairs; validation chooses among them."""
    finetuning, draw, worker = Finetuning(spec, task), task.draw, task.job.worker
    pairs = finetuning.pairs
    halving = spec.search == "halving"
    spent = trained = 0
    # not in the store: after a crash all pairs must begin anew, or some would be ahead of a rung
    with TemporaryDirectory() as folder:
        for epochs in rungs(spec.epochs) if halving else [spec.epochs]:
            scores: dict[Pair, float] = {}
            for pair in pairs:
                paused = Path(folder, repr(pair)) if halving else None
                if (model := finetuning.train(pair, epochs, paused)) is None:
                    continue
                model.mirrored = spec.tta == "flip"
                logits, _ = infer(model, task.images, draw.val, worker)
                accuracy = float((logits.argmax(axis=1) == task.labels[draw.val]).mean())
                if accuracy > max(scores.values(), default=-1.0):
                    best, best_model = pair, model
                scores[pair] = accuracy
            if not scores:
                raise diverged(spec)
            spent += len(pairs) * (epochs - trained)
            trained, pairs = epochs, survivors(scores)
    logits, _ = infer(best_model, task.images, draw.test, worker)
    chosen: Metrics = {
        "lr": best.lr,
        "weight_decay": best.weight_decay,
        "val_accuracy": scores[best],
        "transfer_epochs": spent,
    }
    return Outcome(logits.argmax(axis=1), chosen, best_model)


def diverged(spec: FullFinetune) -> StageError:
    """Say that no learning rate was low enough."""
    return StageError(f"finetuning diverged at every learning rate of {sorted(spec.lrs)}")


def _recipe(spec: FullFinetune, pair: Pair, batch_size: int) -> Recipe:
    return Recipe(
        budget=Budget(epochs=spec.epochs),
        batch_size=batch_size,
        optimizer=Optimizer(
            name="adamw" if spec.optimizer == "adam" else "sgd",
            lr=pair.lr,
            momentum=spec.momentum,
            weight_decay=pair.weight_decay,
        ),
        schedule=Schedule(name="cosine", warmup=0.0),
        augmentation=spec.augmentation,
        batch_norm=BatchNorm(group_size=batch_size),
        adversarial=spec.adversarial,
    )
