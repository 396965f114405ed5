import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity

from dp4tl_ray.algorithms import coresets
from dp4tl_ray.algorithms.coresets import (
    facility_location_scores,
    herding_scores,
    k_center_scores,
    moderate_scores,
    random_blocks,
)
from dp4tl_ray.algorithms.memory import MemoryLimitError, row_chunks

Features = npt.NDArray[np.float32]
Scorer = Callable[[Features, npt.NDArray[np.int64]], npt.NDArray[np.float64]]
GIB = 2.0**30
GREEDY: dict[str, Scorer] = {
    "herding": partial(herding_scores, limit_bytes=GIB),
    "k_center": partial(k_center_scores, limit_bytes=GIB),
    "facility_location": partial(facility_location_scores, limit_bytes=GIB),
}
ALL: dict[str, Scorer] = {
    **GREEDY,
    "moderate": partial(moderate_scores, scope="class"),
    "moderate_global": partial(moderate_scores, scope="source"),
}


def features(seed: int, n: int = 60, dim: int = 8) -> Features:
    return (np.random.default_rng(seed).normal(size=(n, dim)) + 2).astype(np.float32)


def whole(n: int) -> npt.NDArray[np.int64]:
    return np.zeros(n, np.int64)


def order_of(scores: npt.NDArray[np.float64]) -> list[int]:
    return [int(i) for i in np.argsort(-scores, kind="stable")]


def herding_by_hand(x: Features) -> list[int]:
    h = x.astype(float)
    mean, chosen = h.mean(axis=0), list[int]()
    while len(chosen) < len(h):
        aim = (len(chosen) + 1) * mean - h[chosen].sum(axis=0)
        left = [j for j in range(len(h)) if j not in chosen]
        chosen.append(min(left, key=lambda j: float(np.linalg.norm(aim - h[j]))))
    return chosen


def k_center_by_hand(x: Features) -> list[int]:
    h = x.astype(float)
    distance = cdist(h, h)
    chosen = [int(np.linalg.norm(h - h.mean(axis=0), axis=1).argmin())]
    while len(chosen) < len(h):
        left = [j for j in range(len(h)) if j not in chosen]
        chosen.append(max(left, key=lambda j: min(distance[j, s] for s in chosen)))
    return chosen


def coverage(similarity: npt.NDArray[np.float64], chosen: list[int]) -> float:
    return float(similarity[:, chosen].max(axis=1).sum())


def similarities(x: Features) -> npt.NDArray[np.float64]:
    """In fixed point, because examples that only cover each other are exact ties."""
    similarity = (1 + cosine_similarity(x.astype(float))) / 2
    fixed: npt.NDArray[np.float64] = np.round(similarity * 2**24) / 2**24
    return fixed


def facility_location_by_hand(x: Features) -> list[int]:
    similarity = similarities(x)
    chosen: list[int] = []
    while len(chosen) < len(x):
        left = [j for j in range(len(x)) if j not in chosen]
        chosen.append(max(left, key=lambda j: coverage(similarity, [*chosen, j])))
    return chosen


BY_HAND = {
    "herding": herding_by_hand,
    "k_center": k_center_by_hand,
    "facility_location": facility_location_by_hand,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", GREEDY)
def test_greedy_orders_match_brute_force(name: str, seed: int) -> None:
    x = features(seed, n=40)
    scores = GREEDY[name](x, whole(40))
    order = BY_HAND[name](x)
    assert order_of(scores) == order
    np.testing.assert_allclose(scores[order], [-(i + 0.5) / 40 for i in range(40)])


@pytest.mark.parametrize("name", GREEDY)
def test_blocks_are_ordered_apart_and_merge_in_equal_shares(name: str) -> None:
    x = features(3)
    block = np.repeat([0, 2, 3], [40, 15, 5])[np.random.default_rng(0).permutation(60)]
    scores = GREEDY[name](x, block)
    for b in (0, 2, 3):
        rows = np.flatnonzero(block == b)
        assert scores[rows].tolist() == GREEDY[name](x[rows], whole(len(rows))).tolist()
    for n in range(12, 61, 12):
        shares = np.bincount(block[order_of(scores)[:n]], minlength=4)[[0, 2, 3]]
        assert np.abs(shares - n * np.array([40, 15, 5]) / 60).max() <= 1


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"facility_location"}))
def test_permuting_the_examples_permutes_the_scores(name: str) -> None:
    x, block = features(4), np.random.default_rng(4).integers(0, 2, 60)
    permutation = np.random.default_rng(5).permutation(60)
    moved = ALL[name](x[permutation], block[permutation])
    assert moved.tolist() == ALL[name](x, block)[permutation].tolist()


@pytest.mark.parametrize("name", ALL)
def test_scores_do_not_depend_on_the_chunks(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", features(6).astype(np.float16))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected = ALL[name](x, whole(60))
    monkeypatch.setattr(coresets, "row_chunks", partial(row_chunks, budget=1500))
    monkeypatch.setattr(coresets, "GRAM_ROWS", 10)
    assert ALL[name](x, whole(60)).tolist() == expected.tolist()


@pytest.mark.parametrize("name", GREEDY)
def test_ties_go_to_the_lower_index(name: str) -> None:
    x = np.array([[1, 0], [1, 0], [-1, 0], [-1, 0]], np.float32)
    assert order_of(GREEDY[name](x, whole(4))) == [0, 2, 1, 3]


@pytest.mark.parametrize("name", ALL)
def test_one_block_per_example_is_required(name: str) -> None:
    with pytest.raises(ValueError, match="one block per example"):
        ALL[name](features(0), whole(59))


@pytest.mark.parametrize("name", GREEDY)
def test_a_block_that_does_not_fit_is_refused(name: str) -> None:
    scorer = GREEDY[name].func  # type: ignore[attr-defined]
    needed = 4 * 40 * 8 + 4 * 40**2
    block = np.repeat([0, 1], [40, 20])
    scorer(features(0), block, limit_bytes=needed)
    with pytest.raises(MemoryLimitError, match="smaller blocks"):
        scorer(features(0), block, limit_bytes=needed - 1)


@pytest.mark.parametrize("seed", range(10))
def test_herding_is_nearer_to_the_mean_than_random(seed: int) -> None:
    x = features(seed, n=200)
    order = order_of(GREEDY["herding"](x, whole(200)))

    def error(chosen: list[int]) -> float:
        return float(np.linalg.norm(x[chosen].mean(axis=0) - x.mean(axis=0)))

    generator = np.random.default_rng(seed)
    drawn = [error(generator.permutation(200)[:20].tolist()) for _ in range(50)]
    assert error(order[:20]) < 0.5 * min(drawn)


@pytest.mark.parametrize("seed", range(3))
def test_k_center_has_at_most_twice_the_best_radius(seed: int) -> None:
    x = features(seed, n=12, dim=2)
    distance = cdist(x, x)
    order = order_of(GREEDY["k_center"](x, whole(12)))
    for k in range(1, 12):
        best = min(distance[:, list(s)].min(axis=1).max() for s in combinations(range(12), k))
        assert distance[:, order[:k]].min(axis=1).max() <= 2 * best + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_facility_location_has_the_greedy_guarantee(seed: int) -> None:
    x = features(seed, n=11, dim=3) - 2
    similarity = similarities(x)
    order = order_of(GREEDY["facility_location"](x, whole(11)))
    for k in range(1, 11):
        best = max(coverage(similarity, list(s)) for s in combinations(range(11), k))
        assert coverage(similarity, order[:k]) >= (1 - 1 / math.e) * best


def test_permuting_the_examples_keeps_the_facility_location_coverage() -> None:
    """The order itself has ties, which go by index."""
    x = features(4)
    moved = x[np.random.default_rng(5).permutation(60)]
    curves = []
    for y in (x, moved):
        order = order_of(GREEDY["facility_location"](y, whole(60)))
        curves.append([coverage(similarities(y), order[: k + 1]) for k in range(60)])
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-5)


def test_facility_location_accepts_a_feature_of_length_zero() -> None:
    x = features(7, n=20)
    x[3] = 0
    scores = GREEDY["facility_location"](x, whole(20))
    assert sorted(scores.tolist()) == sorted(-(i + 0.5) / 20 for i in range(20))


@pytest.mark.parametrize("scope", ["class", "source"])
def test_moderate_keeps_the_central_band_of_distances(scope: str) -> None:
    x = features(8, n=61)
    labels = np.random.default_rng(8).integers(0, 3, 61)
    distance = np.empty(61)
    for i in range(61):
        median = np.median(x[labels == labels[i]].astype(float), axis=0)
        distance[i] = math.sqrt(sum((x[i].astype(float) - median) ** 2))
    scores = moderate_scores(x, labels, scope="class" if scope == "class" else "source")
    for i in range(61):
        rivals = distance[labels == labels[i]] if scope == "class" else distance
        quantile = ((rivals < distance[i]).sum() + 0.5) / len(rivals)
        assert scores[i] == pytest.approx(-abs(quantile - 0.5), abs=1e-12)


def test_moderate_keeps_the_middle_and_drops_both_ends() -> None:
    x = np.array([[0.0], [1], [2], [3], [-1], [-2.5], [9]], np.float32)  # the median is 1
    assert order_of(moderate_scores(x, whole(7), scope="class"))[0] in (3, 4)
    assert set(order_of(moderate_scores(x, whole(7), scope="class"))[-2:]) == {1, 6}


@pytest.mark.parametrize(("n", "size", "sizes"), [(10, 4, {3, 4}), (12, 4, {4}), (3, 5, {3})])
def test_random_blocks_are_as_equal_and_as_few_as_possible(
    n: int, size: int, sizes: set[int]
) -> None:
    block = random_blocks(n, size, np.random.default_rng(0))
    counts = np.bincount(block)
    assert (len(counts), counts.sum(), set(counts.tolist())) == (-(-n // size), n, sizes)
    assert block.tolist() == random_blocks(n, size, np.random.default_rng(0)).tolist()


def test_random_blocks_are_random_and_need_a_size() -> None:
    first = [random_blocks(20, 5, np.random.default_rng(s))[0] for s in range(200)]
    assert np.bincount(first, minlength=4).min() > 25
    with pytest.raises(ValueError, match="block_size"):
        random_blocks(3, 0, np.random.default_rng(0))
