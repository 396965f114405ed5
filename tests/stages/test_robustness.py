"""Accuracy under attack after a transfer, on small classifiers whose robustness is known."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from dp4tl_ray.algorithms.masking import Withstood, masking_alarm
from dp4tl_ray.data.draws import Draw
from dp4tl_ray.results import Predictions, read_results
from dp4tl_ray.specs.adversarial import AnyRobustness, Checks
from dp4tl_ray.specs.load import StudyError
from dp4tl_ray.stages.bench import StageError
from dp4tl_ray.stages.transfers.ensemble import autoattack, members
from dp4tl_ray.stages.transfers.robustness import NOT_ATTACKED, attacked_predictions, masking
from dp4tl_ray.stages.transfers.task import Logits, Task
from dp4tl_ray.store import open_store
from dp4tl_ray.sweep import plan_study, run_study
from dp4tl_ray.training.worker import Worker
from tests.conftest import supervised, tiny_study

SIDE, EPS = 6, 8 / 255
PGD = {"attack": "pgd", "eps": ["2/255", "8/255", "32/255"]}


def checks(*specs: Any) -> tuple[AnyRobustness, ...]:
    found: tuple[AnyRobustness, ...] = TypeAdapter[Any](Checks).validate_python(list(specs))
    return found


def task(classes: int, count: int = 24, seed: int = 0) -> Task:
    """Images of noise around one level of grey per class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    levels = 128 + 40 * (labels - (classes - 1) / 2)[:, None, None, None] / max(1, classes - 1)
    images = (levels + rng.normal(0, 12, (count, SIDE, SIDE, 1))).clip(0, 255).astype(np.uint8)
    none = np.zeros(0, np.int64)
    job: Any = SimpleNamespace(worker=Worker())
    return Task(job, seed, images, labels, Draw(none, none, np.arange(count)), classes)


def levels(classes: int) -> Logits:
    """Classify by the mean of the pixels: an attack of radius eps moves it by eps at most."""
    centres = torch.tensor([(128 + 40 * (k - (classes - 1) / 2) / max(1, classes - 1)) / 255
                            for k in range(classes)])  # fmt: skip

    def logits(pixels: Tensor) -> Tensor:
        means = pixels.flatten(1).mean(dim=1, keepdim=True)
        return -500 * (means - centres.to(means.dtype)) ** 2

    return logits


def predicted(logits: Logits, one: Task) -> Any:
    pixels = torch.from_numpy(one.images).permute(0, 3, 1, 2).float() / 255
    return logits(pixels).argmax(dim=1).numpy()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_an_ensemble_is_at_most_pgd_at_most_clean_and_all_fall_with_the_radius(
    classes: int,
) -> None:
    one, logits = task(classes), levels(classes)
    clean = predicted(logits, one)
    found = attacked_predictions(logits, one, clean, checks(PGD, {**PGD, "attack": "autoattack"}))
    accuracies = (found == one.labels).mean(axis=1)
    pgd, ensemble = accuracies[:3], accuracies[3:]
    assert (clean == one.labels).mean() >= pgd[0] >= pgd[1] >= pgd[2]
    assert (ensemble <= pgd).all()
    # the truth: a mean that is further from the border between two classes withstands
    pixels = np.asarray(one.images, np.float64).reshape(len(one.images), -1).mean(axis=1) / 255
    centres = np.array([(128 + 40 * (k - (classes - 1) / 2) / (classes - 1)) / 255
                        for k in range(classes)])  # fmt: skip
    borders = (centres[1:] + centres[:-1]) / 2
    distance = np.abs(pixels[:, None] - borders).min(axis=1)
    for n, eps in enumerate((2 / 255, 8 / 255, 32 / 255)):
        truth = ((distance > eps) & (clean == one.labels)).mean()
        assert pgd[n] == pytest.approx(truth, abs=0.09)
        assert ensemble[n] == pytest.approx(truth, abs=0.09)


def test_a_mistake_stays_the_same_mistake() -> None:
    one, logits = task(3), levels(3)
    clean = predicted(logits, one)
    clean[:5] = (one.labels[:5] + 1) % 3  # wrong as they are
    found = attacked_predictions(logits, one, clean, checks(PGD))
    assert (found[:, :5] == clean[:5]).all()
    for weaker, stronger in pairwise(found):
        fooled = weaker != one.labels
        assert (stronger[fooled] == weaker[fooled]).all()


def test_no_radius_is_no_attack_and_noise_is_the_same_at_every_call() -> None:
    one, logits = task(3), levels(3)
    clean = predicted(logits, one)
    zero = {"attack": "pgd", "eps": [0.0]}
    assert (attacked_predictions(logits, one, clean, checks(zero))[0] == clean).all()
    found = [attacked_predictions(logits, one, clean, checks(PGD)) for _ in range(2)]
    assert (found[0] == found[1]).all()


def test_an_ensemble_is_spared_some_images_the_same_for_every_network() -> None:
    one = task(4)
    spec = checks({"attack": "autoattack", "eps": ["2/255"], "num_images": 9})
    rows = []
    for logits in (levels(4), lambda pixels: levels(4)(pixels).flip(dims=[1])):
        state = torch.random.get_rng_state()
        [found] = attacked_predictions(logits, one, predicted(logits, one), spec)
        assert torch.equal(state, torch.random.get_rng_state()), "the global generator moved"
        rows.append(np.flatnonzero(found != NOT_ATTACKED))
    assert len(rows[0]) == 9 and (rows[0] == rows[1]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_ensemble_leaves_neither_ball_nor_box(norm: Any) -> None:
    one, logits = task(3), levels(3)
    pixels = torch.from_numpy(one.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(one.labels)
    right = logits(pixels).argmax(dim=1) == labels
    eps = EPS if norm == "linf" else 0.2
    found = autoattack(logits, pixels[right], labels[right], 3, norm=norm, eps=eps, seed=1)
    delta = (found - pixels[right]).flatten(1)
    lengths = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    assert 0 < float(lengths.max()) <= eps * (1 + 1e-4)
    assert found.min() >= 0 and found.max() <= 1


def test_members_of_an_ensemble_go_with_the_number_of_classes() -> None:
    assert members(1000) == members(4) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert "apgd-t" not in members(3) and "apgd-dlr" in members(3)
    assert members(2) == ["apgd-ce", "fab-t", "square"]


def test_without_its_package_an_ensemble_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack", None)
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(StageError, match=r"pip install 'dp4tl_ray\[autoattack\]'"):
        autoattack(levels(2), x, torch.zeros(1).long(), 2, norm="linf", eps=0.1, seed=0)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    one = task(2)
    broken: Logits = lambda pixels: levels(2)(pixels) + (pixels.flatten(1)[:, :1] * 0).sqrt()  # noqa: E731
    with pytest.raises(StageError, match="not finite"):
        attacked_predictions(broken, one, predicted(levels(2), one), checks(PGD))


def test_an_honest_classifier_raises_no_alarm() -> None:
    one, logits = task(3), levels(3)
    found = attacked_predictions(logits, one, predicted(logits, one), checks(PGD))
    assert masking(logits, one, found, checks(PGD)) == ""


def test_a_classifier_that_hides_its_gradient_does() -> None:
    class Rounded(nn.Module):
        """Reads pixels in 32 steps, so that no gradient passes."""

        def forward(self, pixels: Tensor) -> Tensor:
            rounded = (pixels * 32).round() / 32
            return levels(3)(rounded + 0 * pixels)

    one, logits = task(3), Rounded()
    found = attacked_predictions(logits, one, predicted(logits, one), checks(PGD))
    alarm = masking(logits, one, found, checks(PGD))
    assert alarm.startswith("under pgd linf 32/255, gradients may be masked")
    assert "the gradient of 100% of images is zero" in alarm
    assert "withstand a ball that holds all images" in alarm


def test_every_sign_of_masking_has_its_words() -> None:
    honest = Withstood(iterated=0.4, single=0.5, noise=0.9, unbounded=0.0, flat=0.0)
    assert masking_alarm(honest) == ""
    assert "one step fools 30%" in masking_alarm(Withstood(0.4, 0.1, 0.9, 0, 0))
    assert "random noise fools 20%" in masking_alarm(Withstood(0.4, 0.5, 0.2, 0, 0))
    assert "50% of images withstand" in masking_alarm(Withstood(0.4, 0.5, 0.9, 0.5, 0))
    assert "gradient of 10%" in masking_alarm(Withstood(0.4, 0.5, 0.9, 0, 0.1))


def test_a_study_that_wants_a_missing_ensemble_is_refused_before_any_work(
    pictures: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp4tl_ray.requirements.find_spec", lambda name: None)
    plan_study(tiny_study(pictures, robustness=["pgd"]))
    with pytest.raises(StudyError, match=r"robustness: .*pip install 'dp4tl_ray\[autoattack\]'"):
        plan_study(tiny_study(pictures, robustness=["pgd", "autoattack"]))


def test_a_study_of_variants_from_its_plan_to_its_report(
    pictures: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "dp4tl_ray.stages.transfers.robustness.masking_alarm"
    monkeypatch.setattr(where, lambda withstood: "doubtful")
    study = tiny_study(
        pictures,
        methods=["label_mapping"],
        pretraining=[supervised(), "none"],
        surrogate=supervised(adversarial={"attack": "fgsm_rs", "eps": "4/255"}),
        adversarial=["none", {"attack": "free", "replays": 2}],
        transfers=[
            "linear_probe",
            {"transfer": "full_finetune", "lrs": [0.02], "epochs": 2, "adversarial": "n_fgsm"},
            "knn",
        ],
        robustness=[{"attack": "pgd", "eps": ["4/255", "16/255"], "steps": 3},
                    {"attack": "autoattack", "eps": [0.5], "num_images": 5}],
    )  # fmt: skip
    plan, store = plan_study(study), open_store(str(tmp_path))
    # the floor is one, whatever the variants
    assert plan.unique()["pretrain"] == 2 * 2 + 1
    outcome = run_study(study, plan, store, local=True)
    assert not outcome.errors
    results = read_results(outcome.folder / "results.jsonl")
    assert len(results) == len(plan.cells) == 3 * (2 * 2 + 1)
    predictions = Predictions(plan, store)
    for result in results:
        assert result.metrics is not None
        robust = result.metrics.robust
        if result.transfer == "knn":
            assert robust == () and not any("transfer" in alarm for alarm in result.alarms)
            continue
        assert "transfer under pgd linf 16/255, doubtful" in result.alarms
        told = [(r.attack, r.norm, round(r.eps * 255), r.steps) for r in robust]
        assert told == [
            ("pgd", "linf", 4, 3),
            ("pgd", "linf", 16, 3),
            ("autoattack", "linf", 128, None),
        ]
        assert result.metrics.accuracy >= robust[0].accuracy >= robust[1].accuracy
        for n, attack in enumerate(robust):
            correct = predictions.under_attack(result, n)
            assert correct.mean() == pytest.approx(attack.accuracy)
        assert len(predictions.under_attack(result, 2)) == 5
    text = (outcome.folder / "results.md").read_text()
    assert "Under PGD-3 linf 4/255" in text and "Under AutoAttack linf 0.5" in text
    with (outcome.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, result in zip(rows, results, strict=True):
        assert result.metrics is not None
        told = json.loads(row["metrics.robust"])
        assert told == [robust.model_dump(mode="json") for robust in result.metrics.robust]
