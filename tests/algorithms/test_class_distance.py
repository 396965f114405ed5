from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import cdist

from dp4tl_ray.algorithms.class_distance import (
    class_means,
    emd_greedy_scores,
    facility_location_mutual_information_scores,
)
from dp4tl_ray.algorithms.memory import MemoryLimitError

Floats = npt.NDArray[np.float64]


def features(seed: int, n: int = 50, d: int = 5) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_class_means_match_a_loop_over_classes() -> None:
    x, labels = features(0), np.random.default_rng(1).integers(0, 6, 50)
    labels[labels == 4] = 3
    means, count = class_means(x, labels, 7)
    assert count.tolist() == [int((labels == k).sum()) for k in range(7)]
    for k in (0, 1, 2, 3, 5):
        np.testing.assert_allclose(means[k], x[labels == k].astype(float).mean(axis=0), rtol=1e-12)
    assert np.isnan(means[[4, 6]]).all()


def test_chunks_and_order_do_not_change_class_means() -> None:
    x, labels = features(1).astype(np.float16), np.arange(50) * 7 % 5
    whole, count = class_means(x, labels, 5)
    pieces, _ = class_means(x, labels, 5, chunk_bytes=400)
    order = np.random.default_rng(0).permutation(50)
    permuted, permuted_count = class_means(x[order], labels[order], 5)
    np.testing.assert_allclose(pieces, whole, atol=1e-12)
    np.testing.assert_allclose(permuted, whole, atol=1e-12)
    assert (permuted_count == count).all()


def test_class_means_refuse_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="do not match"):
        class_means(features(0), np.zeros(3, np.int64), 2)
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        class_means(features(0), np.full(50, 2), 2)
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        class_means(features(0), np.full(50, -1), 2)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_scores_match_targets_that_pick_in_turn(seed: int) -> None:
    source, target = features(seed, 20).astype(float), features(seed + 50, 3).astype(float)
    distance = cdist(target, source)
    expected, nearest = [-np.inf] * 20, [np.inf] * 20
    for turn in range(20):
        picks = [sorted(zip(row.tolist(), range(20), strict=True))[turn][1] for row in distance]
        for t, c in enumerate(picks):
            if expected[c] == -np.inf:
                expected[c] = -turn
            if expected[c] == -turn:
                nearest[c] = min(nearest[c], distance[t, c])
    score, tie_break = emd_greedy_scores(source, target)
    assert score.tolist() == expected
    np.testing.assert_allclose(-tie_break, nearest, rtol=1e-12)


def test_the_order_is_that_of_distance_when_there_is_one_target_class() -> None:
    source, target = features(3, 15).astype(float), features(4, 1).astype(float)
    score, _ = emd_greedy_scores(source, target)
    assert (np.argsort(-score) == np.argsort(cdist(target, source)[0])).all()


def test_classes_without_examples_come_last_and_have_no_say() -> None:
    source, target = features(5, 10).astype(float), features(6, 3).astype(float)
    score, tie_break = emd_greedy_scores(source[1:], target)
    source[0] = np.nan
    with_empty = emd_greedy_scores(source, np.concatenate([target, np.full((2, 5), np.nan)]))
    assert with_empty[0].tolist() == [-np.inf, *score]
    assert with_empty[1].tolist() == [-np.inf, *tie_break]


def test_permuting_source_classes_permutes_greedy_scores() -> None:
    source, target = features(7, 12).astype(float), features(8, 4).astype(float)
    order = np.random.default_rng(0).permutation(12)
    score, tie_break = emd_greedy_scores(source, target)
    permuted_score, permuted_tie_break = emd_greedy_scores(source[order], target[::-1])
    assert (permuted_score == score[order]).all()
    np.testing.assert_allclose(permuted_tie_break, tie_break[order])


def test_equal_distances_go_to_the_lower_class() -> None:
    score, _ = emd_greedy_scores(np.array([[1.0], [-1.0], [0.0]]), np.array([[0.0]]))
    assert score.tolist() == [-1, -2, 0]


def test_greedy_scores_refuse_bad_means() -> None:
    with pytest.raises(ValueError, match="same features"):
        emd_greedy_scores(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="no target class"):
        emd_greedy_scores(np.zeros((3, 2)), np.full((1, 2), np.nan))


def similarities(seed: int, targets: int = 6, units: int = 25) -> Floats:
    similarity: Floats = np.exp(-cdist(features(seed, targets), features(seed + 99, units)))
    return similarity


def value(similarity: Floats, chosen: list[int], eta: float) -> float:
    covered = sum(max(row[u] for u in chosen) for row in similarity)
    return float(covered + eta * sum(max(similarity[:, u]) for u in chosen))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("eta", [0.1, 1.0, 4.0])
def test_the_order_matches_greedy_choice_by_brute_force(seed: int, eta: float) -> None:
    similarity = similarities(seed)
    score = facility_location_mutual_information_scores(similarity, eta=eta)
    chosen: list[int] = []
    for unit in np.argsort(-score).tolist():
        best = max(value(similarity, [*chosen, u], eta) for u in range(25) if u not in chosen)
        chosen.append(unit)
        assert value(similarity, chosen, eta) == pytest.approx(best, rel=1e-12)
    assert sorted(score.tolist()) == [-place for place in range(24, -1, -1)]


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_lazy_and_naive_evaluation_agree_even_on_ties(levels: int, eta: float) -> None:
    similarity = np.random.default_rng(levels).integers(0, levels, (7, 40)) / 8
    covered, left, expected = np.zeros(7), list(range(40)), np.zeros(40)
    for place in range(40):
        gains = [
            np.maximum(similarity[:, u] - covered, 0).sum() + eta * similarity[:, u].max()
            for u in left
        ]
        unit = left.pop(int(np.argmax(gains)))
        expected[unit] = -place
        covered = np.maximum(covered, similarity[:, unit])
    score = facility_location_mutual_information_scores(similarity, eta=eta)
    assert (score == expected).all()


@pytest.mark.parametrize("seed", range(5))
def test_every_prefix_is_within_the_guarantee(seed: int) -> None:
    similarity = similarities(seed, 4, 9)
    order = np.argsort(-facility_location_mutual_information_scores(similarity, eta=0.2)).tolist()
    for size in (1, 2, 3, 5):
        best = max(value(similarity, list(c), 0.2) for c in combinations(range(9), size))
        assert value(similarity, order[:size], 0.2) >= (1 - 1 / np.e) * best


def test_a_covered_target_goes_on_with_what_is_closest() -> None:
    similarity = np.array([[0.9, 0.2, 0.8, 0.5], [0.9, 0.6, 0.1, 0.3]])
    score = facility_location_mutual_information_scores(similarity)
    assert np.argsort(-score).tolist() == [0, 2, 1, 3]


def test_permuting_units_permutes_their_places() -> None:
    similarity = similarities(4)
    rng = np.random.default_rng(0)
    rows, units = rng.permutation(6), rng.permutation(25)
    score = facility_location_mutual_information_scores(similarity)
    permuted = facility_location_mutual_information_scores(similarity[rows][:, units])
    assert (permuted == score[units]).all()


def test_mutual_information_refuses_bad_similarities() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        facility_location_mutual_information_scores(-np.ones((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        facility_location_mutual_information_scores(np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match="eta"):
        facility_location_mutual_information_scores(np.ones((2, 2)), eta=-1)
    with pytest.raises(MemoryLimitError, match="8 T U"):
        facility_location_mutual_information_scores(np.ones((2, 2)), limit_bytes=10)
