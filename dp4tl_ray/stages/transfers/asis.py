"""The paper's released code as it is: the best test accuracy over epochs. Only for comparison."""

from typing import assert_never

import numpy as np

from dp4tl_ray.data.draws import Rows
from dp4tl_ray.specs.transfer import DP4TLAsIs, DP4TLFullFinetune, paper_finetune
from dp4tl_ray.stages.bench import Metrics
from dp4tl_ray.stages.transfers.frozen import (
    ADAM_EPOCHS,
    ADAM_LR,
    adam_probe_epochs,
    frozen_features,
)
from dp4tl_ray.stages.transfers.full import Finetuning, diverged
from dp4tl_ray.stages.transfers.task import Outcome, Task
from dp4tl_ray.training.inference import infer
from dp4tl_ray.training.networks import Classifier

EPOCHS = DP4TLFullFinetune().epochs


class _Best:
    """The predictions of the epoch with the highest test accuracy, the first of equal ones."""

    def __init__(self, truth: Rows) -> None:
        self.truth = truth
        self.accuracy, self.epoch, self.predicted = -1.0, 0, truth

    def see(self, epoch: int, predicted: Rows) -> None:
        """Look at the test split after an epoch."""
        accuracy = float((predicted == self.truth).mean())
        if accuracy > self.accuracy:
            self.accuracy, self.epoch, self.predicted = accuracy, epoch, predicted


def dp4tl_asis(spec: DP4TLAsIs, task: Task) -> Outcome:
    """Train, and choose the epoch on the test split."""
    best = _Best(task.labels[task.draw.test])
    match spec.mode:
        case "linear_probe":
            chosen = _probe(spec, task, best)
        case "full_finetune":
            chosen = _finetune(spec, task, best)
        case _:
            assert_never(spec.mode)
    return Outcome(best.predicted, {**chosen, "epoch": best.epoch})


def _probe(spec: DP4TLAsIs, task: Task, best: _Best) -> Metrics:
    features = frozen_features(task, adapt=False)
    probes = adam_probe_epochs(task, features.train, spec.epochs or ADAM_EPOCHS)
    for epoch, probe in enumerate(probes, start=1):
        best.see(epoch, probe.predict(features.test).cpu().numpy())
    return {"lr": ADAM_LR, "weight_decay": 0.0}


def _finetune(spec: DP4TLAsIs, task: Task, best: _Best) -> Metrics:
    recipe = paper_finetune(spec.optimizer, task.dataset, spec.epochs or EPOCHS)
    finetuning = Finetuning(recipe, task)
    (pair,) = finetuning.pairs

    def watch(epoch: int, model: Classifier) -> None:
        logits, _ = infer(model, task.images, task.draw.test, task.job.worker)
        best.see(epoch, np.asarray(logits.argmax(axis=1)))

    if finetuning.train(pair, recipe.epochs, watch=watch) is None:
        raise diverged(recipe)
    return {"lr": pair.lr, "weight_decay": pair.weight_decay}
