import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import mutual_info_score

from dp4tl_ray.algorithms.label_aware import label_aware_scores

VARIANTS: list[dict[str, Any]] = [
    {"statistic": "counts"},
    {"statistic": "counts", "balanced": False, "smoothing": 0.0},
    {"statistic": "counts", "soft": True, "smoothing": 3.0},
    {"statistic": "mutual_information"},
    {"statistic": "mutual_information", "balanced": False},
]


def world(seed: int, n: int = 60) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return logits over 8 source classes and labels of 4 target classes, of uneven size."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([2, 3, 7, 40], n, p=[0.5, 0.3, 0.1, 0.1])
    return (rng.normal(0, 2, (n, 8)) + np.eye(8)[labels % 8] * 2).astype(np.float32), labels


def probabilities(row: npt.NDArray[np.float32]) -> list[float]:
    total = sum(math.exp(float(v)) for v in row)
    return [math.exp(float(v)) / total for v in row]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 1.0, 5.0])
def test_counts_match_their_definition(
    seed: int, soft: bool, balanced: bool, smoothing: float
) -> None:
    logits, labels = world(seed)
    targets = sorted(set(labels.tolist()))
    count = {(k, t): 0.0 for k in range(8) for t in targets}
    for row, label in zip(logits, labels.tolist(), strict=True):
        if soft:
            for k, p in enumerate(probabilities(row)):
                count[k, label] += p
        else:
            count[row.tolist().index(max(row)), label] += 1
    expected = [0.0] * 8
    for t in targets:
        share = []
        for k in range(8):
            total = sum(count[k, u] for u in targets) + smoothing
            share.append(count[k, t] / total if total else 0.0)
        weight = 1 / len(targets) if balanced else (labels == t).mean()
        for k in range(8):
            expected[k] += weight * share[k] / sum(share)
    score = label_aware_scores(
        logits, labels, statistic="counts", soft=soft, balanced=balanced, smoothing=smoothing
    )
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    assert abs(score.sum() - 1) < 1e-12


@pytest.mark.parametrize("balanced", [False, True])
def test_mutual_information_matches_its_definition(balanced: bool) -> None:
    logits, labels = world(0)
    targets = sorted(set(labels.tolist()))
    joint = {(k, t): 0.0 for k in range(8) for t in targets}
    for row, label in zip(logits, labels.tolist(), strict=True):
        weight = 1 / len(targets) / (labels == label).sum() if balanced else 1 / len(labels)
        for k, p in enumerate(probabilities(row)):
            joint[k, label] += weight * p
    expected = []
    for k in range(8):
        of_k = sum(joint[k, t] for t in targets)
        of_t = {t: sum(joint[j, t] for j in range(8)) for t in targets}
        expected.append(
            sum(joint[k, t] * math.log(joint[k, t] / (of_k * of_t[t])) for t in targets)
        )
    score = label_aware_scores(logits, labels, statistic="mutual_information", balanced=balanced)
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_scores_sum_to_the_mutual_information_of_sklearn() -> None:
    _, labels = world(1)
    predicted = np.random.default_rng(0).integers(0, 6, len(labels))
    certain = np.where(np.eye(8)[predicted] > 0, 0, -1e4).astype(np.float32)
    score = label_aware_scores(certain, labels, statistic="mutual_information", balanced=False)
    assert math.isclose(score.sum(), mutual_info_score(labels, predicted), rel_tol=1e-9)
    assert (score[6:] == 0).all()


def test_a_class_that_is_predicted_for_every_label_alike_tells_nothing() -> None:
    # source class 0 always has half the probability; classes 1 and 2 share the rest by label
    logits = np.log(np.array([[0.5, 0.45, 0.05], [0.5, 0.05, 0.45]])).astype(np.float32)
    score = label_aware_scores(logits, np.array([0, 1]), statistic="mutual_information")
    assert abs(score[0]) < 1e-7
    assert score[1] > 0.05
    assert score[2] > 0.05


def test_counts_prefer_the_class_that_a_target_class_is_mapped_to() -> None:
    logits = np.eye(5, dtype=np.float32)[[3, 3, 3, 1]]
    score = label_aware_scores(logits, np.array([9, 9, 9, 9]), statistic="counts")
    assert score.argsort()[-2:].tolist() == [1, 3]


def test_balance_keeps_a_small_target_class_from_being_drowned() -> None:
    logits = np.eye(2, dtype=np.float32)[[0] * 30 + [1]]
    labels = np.array([0] * 30 + [1])
    balanced = label_aware_scores(logits, labels, statistic="counts", smoothing=0)
    np.testing.assert_allclose(balanced, [0.5, 0.5])
    natural = label_aware_scores(logits, labels, statistic="counts", smoothing=0, balanced=False)
    np.testing.assert_allclose(natural, [30 / 31, 1 / 31])


@pytest.mark.parametrize("variant", VARIANTS)
def test_permutations_and_names_of_labels_do_not_matter(variant: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    logits, labels = world(2)
    score = label_aware_scores(logits, labels, **variant)
    rows, classes = rng.permutation(60), rng.permutation(8)
    np.testing.assert_allclose(
        label_aware_scores(logits[rows], labels[rows], **variant), score, atol=1e-12
    )
    np.testing.assert_allclose(
        label_aware_scores(logits[:, classes], labels, **variant), score[classes], atol=1e-12
    )
    np.testing.assert_allclose(
        label_aware_scores(logits, 1000 - 3 * labels, **variant), score, atol=1e-12
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_do_not_change_the_scores(variant: dict[str, Any]) -> None:
    logits, labels = world(3)
    half = logits.astype(np.float16)
    whole = label_aware_scores(half, labels, **variant)
    pieces = label_aware_scores(half, labels, chunk_bytes=2000, **variant)
    np.testing.assert_allclose(pieces, whole, atol=1e-12)


def test_bad_input_is_refused() -> None:
    logits, labels = world(0)
    with pytest.raises(ValueError, match="do not match"):
        label_aware_scores(logits, labels[:-1], statistic="counts")
    with pytest.raises(ValueError, match="do not match"):
        label_aware_scores(logits[:0], labels[:0], statistic="counts")
    with pytest.raises(ValueError, match="smoothing"):
        label_aware_scores(logits, labels, statistic="counts", smoothing=-1)
    with pytest.raises(ValueError, match="statistic"):
        label_aware_scores(logits, labels, statistic="leep")  # type: ignore[arg-type]
