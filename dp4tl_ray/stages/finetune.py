"""Finetune: transfer a pretrained network to a target, and look at its test split once.

Hyper-parameters are chosen on validation images, by the same search for every cell, ratio 0
included. Accuracies are those of the last epoch, or of the converged probe; `dp4tl_asis` alone does
what the paper's code does.
"""

from typing import assert_never

import numpy as np
import numpy.typing as npt

from dp4tl_ray.data.draws import Rows, draw_target
from dp4tl_ray.specs.adversarial import robust_key
from dp4tl_ray.specs.steps import FinetuneStep
from dp4tl_ray.specs.transfer import (
    KNN,
    AnyTransfer,
    DP4TLAsIs,
    DP4TLFullFinetune,
    FullFinetune,
    LinearProbe,
    paper_finetune,
)
from dp4tl_ray.stages.bench import Job, Metrics, StageError, images_of, num_classes
from dp4tl_ray.stages.transfers.asis import dp4tl_asis
from dp4tl_ray.stages.transfers.frozen import knn, linear_probe
from dp4tl_ray.stages.transfers.full import full_finetune
from dp4tl_ray.stages.transfers.robustness import (
    NOT_ATTACKED,
    attacked_predictions,
    masking,
)
from dp4tl_ray.stages.transfers.task import Outcome, Task


def run_finetune(spec: FinetuneStep, job: Job) -> Metrics:
    """Write the test predictions, with ids and labels, and report the accuracies."""
    target = job.inputs["target"]
    labels, splits = np.asarray(target.array("labels")), np.asarray(target.array("splits"))
    try:
        draw = draw_target(labels, splits, spec.shots, spec.seed)
    except ValueError as error:
        raise StageError(str(error)) from error
    task = Task(job, spec.seed, images_of(target), labels, draw, num_classes(target))
    outcome = _transfer(spec.transfer, task)
    predicted = outcome.predicted
    truth = labels[draw.test]
    job.bench.array("test_rows", draw.test)
    job.bench.array("test_labels", truth)
    job.bench.array("test_predictions", predicted)
    correct = predicted == truth
    per_class = [float(correct[truth == k].mean()) for k in np.unique(truth)]
    return {
        "accuracy": float(correct.mean()),
        "mean_class_accuracy": float(np.mean(per_class)),
        **_of_groups(job, draw.test, correct),
        **outcome.chosen,
        **_under_attack(spec, job, task, outcome),
    }


def _of_groups(job: Job, test: Rows, correct: npt.NDArray[np.bool_]) -> Metrics:
    """Write the group of each test image, and report the accuracy of the worst one."""
    target = job.inputs["target"]
    if "groups.npy" not in target.manifest.files:
        return {}
    groups = np.asarray(target.array("groups"))[test]
    job.bench.array("test_groups", groups)
    return {
        "worst_group_accuracy": min(float(correct[groups == g].mean()) for g in np.unique(groups))
    }


def _under_attack(spec: FinetuneStep, job: Job, task: Task, outcome: Outcome) -> Metrics:
    """Attack the test images, and write and count what they are then taken for."""
    if outcome.logits is None or not spec.robustness:
        return {}
    attacked = attacked_predictions(outcome.logits, task, outcome.predicted, spec.robustness)
    job.bench.array("attacked_predictions", attacked)
    truth = task.labels[task.draw.test]
    keys = [robust_key(check, eps) for check in spec.robustness for eps in sorted(check.eps)]
    found: Metrics = {"alarm": masking(outcome.logits, task, attacked, spec.robustness)}
    for key, predicted in zip(keys, attacked, strict=True):
        chosen = predicted != NOT_ATTACKED
        found[key] = float((predicted == truth)[chosen].mean())
    return found


def _transfer(spec: AnyTransfer, task: Task) -> Outcome:
    """Predict the classes of the test images."""
    match spec:
        case LinearProbe():
            return linear_probe(spec, task)
        case KNN():
            return knn(spec, task)
        case FullFinetune():
            return full_finetune(spec, task)
        case DP4TLFullFinetune(optimizer=optimizer, epochs=epochs):
            return full_finetune(paper_finetune(optimizer, task.dataset, epochs), task)
        case DP4TLAsIs():
            return dp4tl_asis(spec, task)
        case _:
            assert_never(spec)
