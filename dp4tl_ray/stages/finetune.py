"""Finetune: transfer a pretrained network to a target, and look at its test split once.

Hyper-parameters are chosen on validation images, by the same search for every cell, ratio 0
included. Accuracies are those of the last epoch, or of the converged probe.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.algorithms.halving import rungs, survivors
from dp4tl_ray.algorithms.linear_probe import best_probe
from dp4tl_ray.data.draws import Draw, draw_target
from dp4tl_ray.specs.network import BatchNorm
from dp4tl_ray.specs.steps import FinetuneStep
from dp4tl_ray.specs.training import Budget, Optimizer, Recipe, Schedule
from dp4tl_ray.specs.transfer import FullFinetune, LinearProbe
from dp4tl_ray.stages.bench import Job, Metrics, StageError, images_of, load_network, num_classes
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.fit import DivergedError, Examples, Halted, fit
from dp4tl_ray.training.inference import infer
from dp4tl_ray.training.networks import Classifier, new_head
from dp4tl_ray.training.worker import Progress

Rows = npt.NDArray[np.int64]


def run_finetune(spec: FinetuneStep, job: Job) -> Metrics:
    """Write the test predictions, with ids and labels, and report the accuracies."""
    target = job.inputs["target"]
    labels, splits = np.asarray(target.array("labels")), np.asarray(target.array("splits"))
    try:
        draw = draw_target(labels, splits, spec.shots, spec.seed)
    except ValueError as error:
        raise StageError(str(error)) from error
    match spec.transfer:
        case LinearProbe():
            predicted, chosen = _linear_probe(spec.transfer, job, labels, draw)
        case FullFinetune():
            predicted, chosen = _full_finetune(spec.transfer, spec.seed, job, labels, draw)
        case _:
            assert_never(spec.transfer)
    truth = labels[draw.test]
    job.bench.array("test_rows", draw.test)
    job.bench.array("test_labels", truth)
    job.bench.array("test_predictions", predicted)
    correct = predicted == truth
    per_class = [float(correct[truth == k].mean()) for k in np.unique(truth)]
    return {
        "accuracy": float(correct.mean()),
        "mean_class_accuracy": float(np.mean(per_class)),
        **chosen,
    }


def _linear_probe(spec: LinearProbe, job: Job, labels: Rows, draw: Draw) -> tuple[Rows, Metrics]:
    """Solve the probe on frozen features; without a network the pixels are the features."""
    target = job.inputs["target"]
    images = images_of(target)
    rows = np.concatenate([draw.train, draw.val, draw.test])
    if job.inputs.get("pretrain") is None:
        features = images[rows].reshape(len(rows), -1).astype(np.float32) / 255
    else:
        model = load_network(job.inputs["pretrain"], image_size=images.shape[1])
        before = {name: t.clone() for name, t in model.state_dict().items()}
        _, features = infer(model, images, rows, job.worker)
        after = model.state_dict()
        assert all(torch.equal(before[n].cpu(), after[n].cpu()) for n in before), "not frozen"
    if not np.isfinite(features).all():
        raise StageError("the network's features are not finite")
    parts = np.split(features, [len(draw.train), len(draw.train) + len(draw.val)])
    train, val, test = (torch.from_numpy(part) for part in parts)
    probe, l2, val_accuracy = best_probe(
        (train, torch.from_numpy(labels[draw.train])),
        (val, torch.from_numpy(labels[draw.val])),
        num_classes(target),
        spec.l2,
    )
    return probe.predict(test).numpy(), {"l2": l2, "val_accuracy": val_accuracy}


@dataclass(frozen=True)
class _Pair:
    """A learning rate and a weight decay to choose from."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class _Finetuning:
    """Trains all weights under a new head with one pair or another."""

    spec: FullFinetune
    seed: int
    job: Job
    examples: Examples
    num_classes: int

    def train(self, pair: _Pair, epochs: int, paused: Path | None) -> Classifier | None:
        """Train up to an epoch of the whole budget; null if the loss diverges.

        Args:
            pair: What to train with.
            epochs: Where to pause.
            paused: Folder from whose state the pair goes on, and where it is left for later.
        """
        spec, stopped = self.spec, False
        batch_size = min(spec.batch_size, len(self.examples))
        model = load_network(
            self.job.inputs["pretrain"],
            image_size=self.examples.images.shape[1],
            group_size=batch_size,
        )
        new_head(model, self.num_classes, self.seed)
        recipe = Recipe(
            budget=Budget(epochs=spec.epochs),
            batch_size=batch_size,
            optimizer=Optimizer(lr=pair.lr, momentum=spec.momentum, weight_decay=pair.weight_decay),
            schedule=Schedule(name="cosine", warmup=0.0),
            augmentation=spec.augmentation,
            batch_norm=BatchNorm(group_size=batch_size),
        )

        def report(progress: Progress) -> bool:
            nonlocal stopped
            stopped = not self.job.worker.report(progress)
            return not stopped and float(progress["epoch"]) < epochs

        worker = replace(self.job.worker, report=report)
        checkpoint = Checkpoint(paused) if paused else None
        try:
            fit(model, self.examples, recipe, self.seed, worker, checkpoint)
        except DivergedError:
            return None  # this rate is too high; the others are still to be tried
        except Halted:
            if stopped:
                raise
        return model


def _full_finetune(
    spec: FullFinetune, seed: int, job: Job, labels: Rows, draw: Draw
) -> tuple[Rows, Metrics]:
    """Train all weights under a new head with many pairs; validation chooses among them."""
    images, outputs = images_of(job.inputs["target"]), num_classes(job.inputs["target"])
    examples = Examples(images, draw.train, labels[draw.train])
    finetuning = _Finetuning(spec, seed, job, examples, outputs)
    pairs = [_Pair(*pair) for pair in product(sorted(spec.lrs), sorted(spec.weight_decays))]
    halving = spec.search == "halving"
    spent = trained = 0
    # not in the store: after a crash all pairs must begin anew, or some would be ahead of a rung
    with TemporaryDirectory() as folder:
        for epochs in rungs(spec.epochs) if halving else [spec.epochs]:
            scores: dict[_Pair, float] = {}
            for pair in pairs:
                paused = Path(folder, repr(pair)) if halving else None
                if (model := finetuning.train(pair, epochs, paused)) is None:
                    continue
                logits, _ = infer(model, images, draw.val, job.worker)
                accuracy = float((logits.argmax(axis=1) == labels[draw.val]).mean())
                if accuracy > max(scores.values(), default=-1.0):
                    best, best_model = pair, model
                scores[pair] = accuracy
            if not scores:
                tried = sorted({pair.lr for pair in pairs})
                raise StageError(f"full_finetune diverged at every learning rate of {tried}")
            spent += len(pairs) * (epochs - trained)
            trained, pairs = epochs, survivors(scores)
    logits, _ = infer(best_model, images, draw.test, job.worker)
    return logits.argmax(axis=1), {
        "lr": best.lr,
        "weight_decay": best.weight_decay,
        "val_accuracy": scores[best],
        "transfer_epochs": spent,
    }
