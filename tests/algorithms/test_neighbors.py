from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import cdist

from dp4tl_ray.algorithms import neighbors
from dp4tl_ray.algorithms.neighbors import (
    coverage_radius,
    max_cosine,
    nearest_source,
    normsim_2,
    retrieval_scores,
)

Floats = npt.NDArray[np.float64]


def features(num: int, seed: int, dim: int = 5) -> Floats:
    return np.random.default_rng(seed).normal(0.3, 1, (num, dim))


def cosines(source: Floats, target: Floats) -> Floats:
    table: Floats = 1 - cdist(source.astype("f8"), target.astype("f8"), "cosine")
    return table


def memory_mapped(path: Path, values: Floats, dtype: str) -> Floats:
    np.save(path, values.astype(dtype))
    mapped: Floats = np.load(path, mmap_mode="r")
    return mapped


@pytest.fixture(params=["f2", "f4", "f8"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Floats, Floats]:
    return (
        memory_mapped(tmp_path / "source.npy", features(90, 0), request.param),
        memory_mapped(tmp_path / "target.npy", features(13, 1), request.param),
    )


@pytest.fixture(params=[2**26, 2000])
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    if request.param < 2**26:
        monkeypatch.setattr(neighbors, "TARGETS", 4)
    return int(request.param)


def test_max_cosine_matches_its_definition(pair: tuple[Floats, Floats], chunk_bytes: int) -> None:
    found = max_cosine(*pair, chunk_bytes=chunk_bytes)
    np.testing.assert_allclose(found, cosines(*pair).max(axis=1), atol=1e-6)


def test_normsim_2_matches_its_definition(pair: tuple[Floats, Floats], chunk_bytes: int) -> None:
    found = normsim_2(*pair, chunk_bytes=chunk_bytes)
    expected = np.sqrt((cosines(*pair) ** 2).mean(axis=1))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_nearest_source_matches_brute_force(pair: tuple[Floats, Floats], chunk_bytes: int) -> None:
    source, target = pair
    index, squared = nearest_source(target, source, 7, chunk_bytes=chunk_bytes)
    distances = cdist(target.astype("f8"), source.astype("f8"), "sqeuclidean")
    expected = distances.argsort(axis=1, kind="stable")[:, :7]
    assert index.tolist() == expected.tolist()
    np.testing.assert_allclose(squared, np.take_along_axis(distances, expected, 1), rtol=1e-9)


def test_retrieval_matches_its_definition(pair: tuple[Floats, Floats], chunk_bytes: int) -> None:
    score, tie_break = retrieval_scores(*pair, num_neighbors=5, chunk_bytes=chunk_bytes)
    table = cosines(*pair)
    expected = [-6] * len(pair[0])
    for t in range(len(pair[1])):
        nearest = sorted(range(len(pair[0])), key=lambda n: (-table[n, t], n))
        for place, n in enumerate(nearest[:5], start=1):
            expected[n] = max(expected[n], -place)
    assert score.tolist() == expected
    np.testing.assert_allclose(tie_break, table.max(axis=1), atol=1e-6)


def test_every_prefix_of_the_retrieval_order_is_a_union_of_equally_long_lists() -> None:
    source, target = features(60, 2), features(6, 3)
    score, _ = retrieval_scores(source, target, num_neighbors=4)
    order = cosines(source, target).argsort(axis=0)[::-1]
    for length in range(1, 5):
        assert set(np.flatnonzero(score >= -length)) == set(order[:length].ravel())


def test_coverage_radius_matches_brute_force(pair: tuple[Floats, Floats]) -> None:
    source, target = pair
    expected = cdist(target.astype("f8"), source.astype("f8")).min(axis=1)
    np.testing.assert_allclose(coverage_radius(target, source), expected, rtol=1e-9)
    assert (coverage_radius(target, source[:20]) >= expected).all()


def test_a_target_example_that_is_kept_is_covered_exactly() -> None:
    source = 10 * features(50, 0)
    assert coverage_radius(source[10:13], source).tolist() == [0, 0, 0]


@pytest.mark.parametrize("chunk_bytes", [2**26, 1000])
def test_ties_go_to_the_lower_index(chunk_bytes: int) -> None:
    grid = np.random.default_rng(0).integers(0, 3, (80, 2)).astype("f4")
    index, squared = nearest_source(grid[:6], grid, 9, chunk_bytes=chunk_bytes)
    distances = cdist(grid[:6], grid, "sqeuclidean")
    assert index.tolist() == distances.argsort(axis=1, kind="stable")[:, :9].tolist()
    assert (np.sort(distances, axis=1)[:, :9] == squared).all()
    axes = np.tile(np.eye(2, dtype="f4"), (5, 1))
    score, _ = retrieval_scores(axes, axes[:1], num_neighbors=3, chunk_bytes=chunk_bytes)
    assert score.tolist() == [-1, -4, -2, -4, -3, -4, -4, -4, -4, -4]


def test_what_resembles_the_target_scores_higher() -> None:
    along, across = np.array([4.0, 0, 0, 0, 0]), np.array([0.0, 4, 0, 0, 0])
    target = features(10, 1) + along
    source = np.concatenate([features(20, 2) + along, features(20, 3) + across])
    places, tie_break = retrieval_scores(source, target, num_neighbors=2)
    for score in (max_cosine(source, target), normsim_2(source, target), places, tie_break):
        assert score[:20].mean() > score[20:].mean()


def test_permuting_the_source_permutes_the_scores() -> None:
    source, target = features(70, 0), features(9, 1)
    order = np.random.default_rng(0).permutation(70)
    for straight, permuted in (
        (max_cosine(source, target), max_cosine(source[order], target)),
        (normsim_2(source, target), normsim_2(source[order], target)),
        (
            retrieval_scores(source, target, num_neighbors=4)[0],
            retrieval_scores(source[order], target, num_neighbors=4)[0],
        ),
    ):
        np.testing.assert_allclose(permuted, straight[order], atol=1e-6)
    index = nearest_source(target, source[order], 4)[0]
    assert (order[index] == nearest_source(target, source, 4)[0]).all()


def test_an_example_of_zeros_has_cosine_zero() -> None:
    source = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert max_cosine(source, np.array([[1.0, 0.0]]))[0] == 0
    assert normsim_2(source, np.array([[1.0, 0.0]]))[0] == 0


def test_bad_input_is_refused() -> None:
    source, target = features(20, 0), features(3, 1)
    with pytest.raises(ValueError, match=r"target of shape \(0, 5\)"):
        max_cosine(source, target[:0])
    with pytest.raises(ValueError, match=r"target of shape \(3, 4\)"):
        normsim_2(source, target[:, :4])
    with pytest.raises(ValueError, match="21 neighbours among 20 source examples"):
        nearest_source(target, source, 21)
    with pytest.raises(ValueError, match="0 neighbours"):
        retrieval_scores(source, target, num_neighbors=0)
    with pytest.raises(ValueError, match="0 source examples"):
        coverage_radius(target, source[:0])
    target[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"row 2 of features of shape \(3, 5\)"):
        max_cosine(source, target)
