"""K-means and FM scoring against faiss-cpu and scikit-learn, with the same threads."""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.algorithms.kmeans import assign, kmeans, lloyd
from tests.benchmarks.figure import Figure, figure

NUM_THREADS = 2
NUM_TARGETS, NUM_CENTRES, DIM = 2_944, 1_000, 512
"""An FM at full size: a target of 2,944 images, 1,000 clusters, features of a ResNet-18."""

Floats = npt.NDArray[np.float32]


def fm_scoring() -> Iterator[Figure]:
    """Time the votes of a target for clusters: assignment and count."""
    targets, centres = _features(NUM_TARGETS, DIM), _features(NUM_CENTRES, DIM, seed=1)
    search = _faiss_search(centres)
    counts: dict[str, npt.NDArray[np.int64]] = {}

    def ours() -> None:
        counts["ours"] = np.bincount(assign(targets, centres)[0], minlength=NUM_CENTRES)

    def theirs() -> None:
        counts["theirs"] = np.bincount(search(targets)[1][:, 0], minlength=NUM_CENTRES)

    ours_s, theirs_s = _seconds(ours, theirs, rounds=41)
    moved = np.abs(counts["ours"] - counts["theirs"]).sum()
    yield figure("fm_scoring", NUM_TARGETS / ours_s, NUM_TARGETS / theirs_s, "examples/s vs faiss")
    yield figure("fm_votes_that_differ", float(moved), NUM_TARGETS, "votes")


def kmeans_assignment() -> Iterator[Figure]:
    """Time one pass over a source, from float32 and from float16 features."""
    source, centres = _features(65_536, DIM), _features(NUM_CENTRES, DIM, seed=1)
    search = _faiss_search(centres)
    for features in (source, source.astype(np.float16)):

        def ours(features: npt.NDArray[np.floating] = features) -> None:
            assign(features, centres)

        def theirs(features: npt.NDArray[np.floating] = features) -> None:
            # faiss takes float32 only, so that its user converts
            search(features.astype(np.float32, copy=False))

        ours_s, theirs_s = _seconds(ours, theirs, rounds=5)
        name = f"kmeans_assignment_{features.dtype.name}"
        yield figure(name, len(source) / ours_s, len(source) / theirs_s, "examples/s vs faiss")


def kmeans_lloyd() -> Iterator[Figure]:
    """Time ten exact iterations and the final assignment, from the same centres."""
    import faiss

    source = _features(32_768, DIM)
    starts = source[:NUM_CENTRES].copy()
    objective: dict[str, float] = {}

    def ours() -> None:
        found = lloyd(source, starts, num_iterations=10, tolerance=0)
        objective["ours"] = found.objective

    def theirs() -> None:
        faiss.omp_set_num_threads(NUM_THREADS)
        # by default faiss uses 256 examples per centre and drops the others
        model: Any = faiss.Kmeans(
            DIM,
            NUM_CENTRES,
            niter=10,
            max_points_per_centroid=len(source),
            min_points_per_centroid=1,
        )
        model.train(source, init_centroids=starts)
        objective["theirs"] = float(model.index.search(source, 1)[0].sum(dtype=np.float64))

    ours_s, theirs_s = _seconds(ours, theirs, rounds=3, warm=False)
    yield figure("kmeans_10_iterations_per_s", 10 / ours_s, 10 / theirs_s, "1/s vs faiss")
    yield figure(
        "kmeans_10_iterations_objective", objective["ours"], objective["theirs"], "vs faiss"
    )


def kmeans_mini_batch() -> Iterator[Figure]:
    """Time our default clustering against scikit-learn's with the same batches and epochs."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    source, num_clusters = _features(100_000, 128), 500
    objective: dict[str, float] = {}

    def ours() -> None:
        found = kmeans(source, num_clusters, np.random.default_rng(0))
        objective["ours"] = found.objective

    def theirs() -> None:
        with threadpool_limits(NUM_THREADS):
            model = MiniBatchKMeans(
                num_clusters, batch_size=8192, max_iter=3, n_init=1, random_state=0
            )
            objective["theirs"] = float(model.fit(source).inertia_)

    ours_s, theirs_s = _seconds(ours, theirs, rounds=3, warm=False)
    yield figure("mini_batch_kmeans_seconds", ours_s, theirs_s, "s vs scikit-learn")
    yield figure(
        "mini_batch_kmeans_objective", objective["ours"], objective["theirs"], "vs scikit-learn"
    )


def _features(num: int, dim: int, seed: int = 0) -> Floats:
    """Draw examples around 2,000 means, as features have groups."""
    mean_MD = np.random.default_rng(99).normal(size=(2_000, dim)).astype(np.float32)
    rng = np.random.default_rng(seed)
    features: Floats = mean_MD[rng.integers(len(mean_MD), size=num)]
    features += rng.standard_normal((num, dim), dtype=np.float32)
    return features


def _faiss_search(centres: Floats) -> Callable[[Floats], tuple[Floats, npt.NDArray[np.int64]]]:
    """Return faiss's exact search for the nearest centre."""
    import faiss

    faiss.omp_set_num_threads(NUM_THREADS)
    index = faiss.IndexFlatL2(centres.shape[1])
    index.add(centres)
    return lambda features: index.search(features, 1)


def _seconds(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, warm: bool = True
) -> tuple[float, float]:
    """Return the median seconds of both, measured in turn.

    A run that is not timed goes first each time, because the idle threads of the other library
    keep a core busy for a while.
    """
    torch.set_num_threads(NUM_THREADS)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, taken in zip((ours, theirs), seconds, strict=True):
            if warm:
                run()
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
    return median(seconds[0]), median(seconds[1])
