import math
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import cdist

from dp4tl_ray.algorithms import graph
from dp4tl_ray.algorithms.graph import d2_order, neighbor_graph
from dp4tl_ray.algorithms.memory import MemoryLimitError, row_chunks

GIB = 2.0**30


def features(seed: int, n: int = 60, dim: int = 5) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(n, dim)) + 3).astype(np.float32)


def whole(n: int) -> npt.NDArray[np.int64]:
    return np.zeros(n, np.int64)


def d2_by_hand(
    x: npt.NDArray[np.float32],
    score: npt.NDArray[np.float64],
    k: int,
    forward: float,
    reverse: float,
) -> list[int]:
    """Dense message passing over the definition."""
    n = len(x)
    square = cdist(x, x, "sqeuclidean")
    adjacent = np.zeros((n, n), bool)
    for i in range(n):
        others = [j for j in np.argsort(square[i], kind="stable") if j != i]
        adjacent[i, others[:k]] = True
    scale = square[adjacent].mean()
    value = score + (adjacent * np.exp(-forward * square / scale)) @ score
    order: list[int] = []
    while len(order) < n:
        left = [i for i in range(n) if i not in order]
        chosen = max(left, key=lambda i: (value[i], -i))
        order.append(chosen)
        value -= adjacent[chosen] * np.exp(-reverse * square[chosen] / scale) * value[chosen]
    return order


def test_neighbours_match_brute_force() -> None:
    x = features(0)
    block = np.random.default_rng(1).integers(0, 3, 60)
    neighbour, square = neighbor_graph(x, block, num_neighbors=4, limit_bytes=GIB)
    for i in range(60):
        others = [j for j in range(60) if j != i and block[j] == block[i]]
        distance = {j: float(((x[i].astype(float) - x[j]) ** 2).sum()) for j in others}
        nearest = sorted(others, key=lambda j: distance[j])[:4]
        assert neighbour[i].tolist() == nearest
        np.testing.assert_allclose(square[i], [distance[j] for j in nearest], rtol=1e-5)


def test_neighbours_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(1).astype(np.float16)
    expected = neighbor_graph(x, whole(60), num_neighbors=3, limit_bytes=GIB)
    monkeypatch.setattr(graph, "row_chunks", partial(row_chunks, budget=4 * 60 * 7))
    found = neighbor_graph(x, whole(60), num_neighbors=3, limit_bytes=GIB)
    assert (found[0] == expected[0]).all()
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_a_duplicate_is_a_neighbour_and_the_example_itself_is_not() -> None:
    x = features(2, n=10)
    x[7] = x[3]
    neighbour, square = neighbor_graph(x, whole(10), num_neighbors=2, limit_bytes=GIB)
    assert (neighbour != np.arange(10)[:, None]).all()
    assert (neighbour[3, 0], neighbour[7, 0]) == (7, 3)
    assert square[3, 0] == pytest.approx(0, abs=1e-5)


def test_a_small_block_has_fewer_neighbours() -> None:
    block = np.array([0, 0, 1, 0])
    neighbour, square = neighbor_graph(features(3, 4), block, num_neighbors=3, limit_bytes=GIB)
    assert np.isfinite(square).sum(axis=1).tolist() == [2, 2, 0, 2]
    assert (neighbour[np.isinf(square)] == [0, 1, 2, 2, 2, 3]).all()


def test_the_graph_refuses_what_does_not_fit_and_bad_parameters() -> None:
    x = features(4)
    needed = 12 * 60 * 3 + 4 * 60 * 5
    neighbor_graph(x, whole(60), num_neighbors=3, limit_bytes=needed)
    with pytest.raises(MemoryLimitError, match="smaller blocks"):
        neighbor_graph(x, whole(60), num_neighbors=3, limit_bytes=needed - 1)
    with pytest.raises(ValueError, match="num_neighbors"):
        neighbor_graph(x, whole(60), num_neighbors=0, limit_bytes=GIB)
    with pytest.raises(ValueError, match="block"):
        neighbor_graph(x, whole(59), num_neighbors=3, limit_bytes=GIB)


@pytest.mark.parametrize(("forward", "reverse"), [(1.0, 1.0), (0.3, 2.0), (3.0, 0.05)])
@pytest.mark.parametrize("seed", range(3))
def test_d2_matches_dense_message_passing(seed: int, forward: float, reverse: float) -> None:
    """The weak decay of the last case drives values below 0, which raises their neighbours."""
    x = features(seed, n=120)
    score = np.random.default_rng(seed).gamma(2.0, size=120)
    edges = neighbor_graph(x, whole(120), num_neighbors=6, limit_bytes=GIB)
    order = d2_order(score, *edges, gamma_forward=forward, gamma_reverse=reverse)
    assert order.tolist() == d2_by_hand(x, score, 6, forward, reverse)


def test_d2_without_messages_is_the_order_of_the_scores() -> None:
    score = np.random.default_rng(0).random(60)
    edges = neighbor_graph(features(5), whole(60), num_neighbors=5, limit_bytes=GIB)
    order = d2_order(score, *edges, gamma_forward=1e9, gamma_reverse=1e9)
    assert (order == np.argsort(-score)).all()


def test_d2_spreads_over_the_regions_of_equal_difficulty() -> None:
    """Of ten tight clusters, the first ten examples chosen are of ten clusters."""
    generator = np.random.default_rng(0)
    x = np.repeat(generator.normal(size=(10, 4)) * 100, 6, axis=0)
    x += generator.normal(size=x.shape) * 0.01
    edges = neighbor_graph(x, whole(60), num_neighbors=5, limit_bytes=GIB)
    score = 1 + 0.01 * generator.random(60)
    assert len(np.unique(d2_order(score, *edges)[:10] // 6)) == 10
    assert len(np.unique(np.argsort(-score)[:10] // 6)) < 10


def test_permuting_the_examples_permutes_the_d2_order() -> None:
    x, score = features(6), np.random.default_rng(6).random(60)
    permutation = np.random.default_rng(7).permutation(60)
    order, moved = (
        d2_order(s, *neighbor_graph(f, whole(60), num_neighbors=5, limit_bytes=GIB))
        for f, s in ((x, score), (x[permutation], score[permutation]))
    )
    assert (permutation[moved] == order).all()


def test_d2_does_not_depend_on_the_scale_of_the_features() -> None:
    score = np.random.default_rng(8).random(60)
    order, scaled = (
        d2_order(score, *neighbor_graph(x, whole(60), num_neighbors=5, limit_bytes=GIB))
        for x in (features(8), features(8) * 1024)
    )
    assert (order == scaled).all()


def test_d2_gives_ties_to_the_lower_index() -> None:
    """Without edges, and with every distance 0."""
    alone = neighbor_graph(features(9, 5), np.arange(5), num_neighbors=2, limit_bytes=GIB)
    assert d2_order(np.ones(5), *alone).tolist() == list(range(5))
    same = neighbor_graph(np.ones((2, 3)), whole(2), num_neighbors=1, limit_bytes=GIB)
    assert d2_order(np.ones(2), *same).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_d2_refuses_scores_that_are_no_difficulties(bad: float) -> None:
    edges = neighbor_graph(features(0, 3), whole(3), num_neighbors=1, limit_bytes=GIB)
    with pytest.raises(ValueError, match="finite and at least 0"):
        d2_order(np.array([1.0, bad, 2.0]), *edges)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.inf, math.nan])
def test_d2_refuses_a_gamma_outside_the_range(gamma: float) -> None:
    edges = neighbor_graph(features(0, 3), whole(3), num_neighbors=1, limit_bytes=GIB)
    with pytest.raises(ValueError, match="gamma_forward"):
        d2_order(np.ones(3), *edges, gamma_forward=gamma)
    with pytest.raises(ValueError, match="gamma_reverse"):
        d2_order(np.ones(3), *edges, gamma_reverse=gamma)
