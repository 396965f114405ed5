import itertools
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, MiniBatchKMeans

from dp4tl_ray.algorithms.kmeans import (
    assign,
    kmeans,
    kmeans_plus_plus,
    lloyd,
    mini_batch_kmeans,
)

Floats32 = npt.NDArray[np.float32]
Algorithm = Literal["mini_batch", "lloyd"]
ALGORITHMS: tuple[Algorithm, ...] = ("mini_batch", "lloyd")


def blobs(num: int = 400, clusters: int = 12, dim: int = 6, seed: int = 0) -> Floats32:
    rng = np.random.default_rng(seed)
    means = rng.normal(0, 2, (clusters, dim))
    return (means[rng.integers(clusters, size=num)] + rng.normal(size=(num, dim))).astype("f4")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_assign_matches_brute_force(dtype: type[np.floating], tmp_path: Path) -> None:
    centres = blobs(17, seed=1)
    np.save(tmp_path / "features.npy", blobs().astype(dtype))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    cluster, squared = assign(features, centres)
    distances = cdist(features.astype("f8"), centres, "sqeuclidean")
    assert cluster.tolist() == distances.argmin(axis=1).tolist()
    np.testing.assert_allclose(squared, distances.min(axis=1), rtol=1e-4, atol=1e-4)


def test_assign_matches_faiss() -> None:
    index = faiss.IndexFlatL2(6)
    index.add(blobs(40, seed=1))
    squared, cluster = index.search(blobs(3000), 1)
    ours = assign(blobs(3000), blobs(40, seed=1))
    assert ours[0].tolist() == cluster[:, 0].tolist()
    np.testing.assert_allclose(ours[1], squared[:, 0], rtol=1e-4, atol=1e-4)


def test_equally_near_centres_go_to_the_first() -> None:
    features = np.zeros((3, 2), "f4")
    centres = np.array([[3, 0], [0, 1], [1, 0], [0, -1]], "f4")
    assert assign(features, centres)[0].tolist() == [1, 1, 1]


def test_chunks_do_not_change_anything() -> None:
    # whole numbers, so that no rounding hides a lost or doubled row
    features, centres = np.rint(blobs(301) * 4), np.rint(blobs(9, seed=1) * 4)
    whole, small = assign(features, centres), assign(features, centres, chunk_bytes=2000)
    assert (whole[0] == small[0]).all()
    assert (whole[1] == small[1]).all()
    a, b = (lloyd(features, centres, num_iterations=5, chunk_bytes=c) for c in (2**26, 2000))
    np.testing.assert_allclose(a.centres_KD, b.centres_KD, rtol=1e-6)


def test_lloyd_matches_scikit_learn() -> None:
    x = blobs(2000).astype("f8")
    theirs = KMeans(20, init=x[:20], n_init=1, tol=0, max_iter=50, algorithm="lloyd").fit(x)
    ours = lloyd(x, x[:20], num_iterations=50, tolerance=0)
    np.testing.assert_allclose(ours.centres_KD, theirs.cluster_centers_, rtol=1e-5, atol=1e-5)
    assert ours.cluster_N.tolist() == theirs.labels_.tolist()
    assert ours.objective == pytest.approx(theirs.inertia_, rel=1e-5)
    assert ours.objective == pytest.approx(float(ours.squared_distance_N.sum()), rel=1e-5)


def test_lloyd_matches_faiss() -> None:
    x = blobs(2000)
    theirs = faiss.Kmeans(6, 20, niter=7, max_points_per_centroid=2000)
    theirs.train(x, init_centroids=x[:20])
    ours = lloyd(x, x[:20], num_iterations=7, tolerance=0)
    expected: Floats32 = np.asarray(theirs.centroids)
    np.testing.assert_allclose(ours.centres_KD, expected, rtol=1e-4, atol=1e-4)


def test_the_objective_never_increases_and_no_cluster_stays_empty() -> None:
    x = blobs(500)
    centres = np.repeat(x[:3], 10, axis=0)
    centres[:5] += 100
    objectives = []
    for _ in range(30):
        state = lloyd(x, centres, num_iterations=1)
        objectives.append(state.objective)
        centres = state.centres_KD
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(objectives))
    assert np.bincount(state.cluster_N, minlength=30).min() > 0
    assert state.objective < 0.5 * objectives[0]


def test_fewer_different_examples_than_clusters_is_no_trouble() -> None:
    x = np.repeat(blobs(3), 10, axis=0)
    for algorithm in ALGORITHMS:
        found = kmeans(x, 7, np.random.default_rng(0), algorithm=algorithm)
        assert found.objective == pytest.approx(0, abs=1e-3)
        assert len(set(found.cluster_N.tolist())) == 3


def test_a_tolerance_stops_early() -> None:
    x = blobs(2000)
    early = lloyd(x, x[:20], num_iterations=50, tolerance=0.05)
    late = lloyd(x, x[:20], num_iterations=50, tolerance=0)
    few = lloyd(x, x[:20], num_iterations=2, tolerance=0)
    assert late.objective < early.objective <= few.objective


def test_permuting_the_examples_permutes_the_clusters() -> None:
    x = blobs()
    order = np.random.default_rng(0).permutation(len(x))
    straight = lloyd(x, x[:9], num_iterations=5)
    permuted = lloyd(x[order], x[:9], num_iterations=5)
    assert permuted.cluster_N.tolist() == straight.cluster_N[order].tolist()


def test_seeds_are_the_best_of_two_drawn_in_proportion_to_squared_distance() -> None:
    x = np.array([[0.0], [1.0], [3.0]], "f4")
    generator = np.random.default_rng(0)
    pairs = np.zeros((3, 3))
    for _ in range(400):
        a, b = (x == kmeans_plus_plus(x, 2, generator)[:, 0]).argmax(axis=0)
        pairs[a, b] += 1
    # after 0, choosing 3 leaves 1 and choosing 1 leaves 4, so that 1 must be drawn twice; after 1,
    # 3 leaves 1 and 0 leaves 4; after 3, both leave 1 and the first drawn is taken
    after = np.array([[0, 1 / 100, 99 / 100], [1 / 25, 0, 24 / 25], [9 / 13, 4 / 13, 0]])
    assert np.abs(pairs / 400 - after / 3).max() < 0.06


def test_seeds_are_different_examples() -> None:
    x = blobs(1000, seed=2)
    seeds = kmeans_plus_plus(x, 30, np.random.default_rng(0))
    matches = (cdist(seeds, x) == 0).sum(axis=1)
    assert matches.tolist() == [1] * 30
    assert len(np.unique(seeds, axis=0)) == 30


def test_mini_batches_end_near_scikit_learns() -> None:
    x = blobs(20_000, clusters=60, dim=16)
    ours = mini_batch_kmeans(x, 60, np.random.default_rng(0), batch_size=1024)
    theirs = MiniBatchKMeans(60, batch_size=1024, max_iter=3, n_init=1, random_state=0).fit(x)
    assert ours.objective < 1.03 * theirs.inertia_
    assert (ours.cluster_N == assign(x, ours.centres_KD)[0]).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_generator_decides_and_nothing_else(algorithm: Algorithm) -> None:
    found = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        np.random.seed(noise)
        torch.manual_seed(noise)
        generator = np.random.default_rng(seed)
        found.append(kmeans(blobs(), 12, generator, algorithm=algorithm, num_iterations=3))
    assert (found[0].centres_KD == found[1].centres_KD).all()
    assert not np.array_equal(found[0].centres_KD, found[2].centres_KD)


def test_a_small_source_is_clustered_well_by_mini_batches() -> None:
    x = blobs(3000, clusters=40, dim=16)
    exact = kmeans(x, 40, np.random.default_rng(0), algorithm="lloyd")
    assert kmeans(x, 40, np.random.default_rng(0)).objective < 1.02 * exact.objective


def test_more_clusters_than_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="13 clusters of 12 examples"):
        kmeans(blobs(12), 13, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_row_of_a_feature_that_is_not_finite_is_named(bad: float, algorithm: Algorithm) -> None:
    x = blobs(2000)
    x[[1234, 1700], 3] = bad
    with pytest.raises(ValueError, match=r"row 1234 of features of shape \(2000, 6\)"):
        kmeans(x, 1000, np.random.default_rng(0), algorithm=algorithm)
    with pytest.raises(ValueError, match="row 1234"):
        assign(x, blobs(5), chunk_bytes=3000)


def test_centres_of_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"centres of shape \(5, 4\)"):
        assign(blobs(), blobs(5, dim=4))
