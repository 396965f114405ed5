import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import cosine

from dp4tl_ray.algorithms.memory import MemoryLimitError
from dp4tl_ray.algorithms.prototypes import Keep, prototype_scores, semdedup_scores

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
ENOUGH = 2**30


def world(seed: int = 0) -> tuple[Floats, Indices]:
    rng = np.random.default_rng(seed)
    cluster = rng.permutation(np.repeat([0, 1, 3, 4], [30, 1, 12, 27]))
    return rng.normal(size=(70, 5)) + np.eye(5)[cluster], cluster


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("keep", ["far", "near"])
def test_prototype_scores_match_their_definition(dtype: str, keep: Keep, tmp_path: Path) -> None:
    features, cluster = world()
    centres = np.random.default_rng(1).normal(size=(5, 5))
    np.save(tmp_path / "features.npy", features.astype(dtype))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    found = prototype_scores(features, centres, cluster, keep=keep, chunk_bytes=700)
    assert (found == prototype_scores(features, centres, cluster, keep=keep)).all()
    for x, k, score in zip(features.astype("f8"), cluster, found, strict=True):
        expected = cosine(x, centres[k]) * (1 if keep == "far" else -1)
        assert math.isclose(score, expected, abs_tol=1e-6)


def test_far_examples_are_kept_by_default() -> None:
    features = np.array([[1, 0], [1, 1], [0, 1], [-1, 0]])
    score = prototype_scores(features, np.array([[2.0, 0]]), np.zeros(4, np.int64))
    assert (np.diff(score) > 0).all()


def semdedup_by_hand(features: Floats, cluster: Indices, keep: Keep) -> Floats:
    unit = features.astype("f8") / np.linalg.norm(features.astype("f8"), axis=1, keepdims=True)
    score = np.full(len(features), 2.0)
    for k in set(cluster.tolist()):
        members = np.flatnonzero(cluster == k)
        closeness = unit[members] @ unit[members].mean(axis=0)
        ordered = members[np.argsort(closeness if keep == "far" else -closeness, kind="stable")]
        similar = np.triu(unit[ordered] @ unit[ordered].T, 1)
        similar[np.tril_indices(len(ordered))] = -2
        score[ordered] = -similar.max(axis=0)
    return score


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("keep", ["far", "near"])
@pytest.mark.parametrize("chunk_bytes", [2**26, 400, 1])
def test_semdedup_matches_a_dense_triangle(
    dtype: str, keep: Keep, chunk_bytes: int, tmp_path: Path
) -> None:
    features, cluster = world()
    np.save(tmp_path / "features.npy", features.astype(dtype))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    found = semdedup_scores(mapped, cluster, limit_bytes=ENOUGH, keep=keep, chunk_bytes=chunk_bytes)
    np.testing.assert_allclose(found, semdedup_by_hand(mapped, cluster, keep), atol=1e-6)
    assert (found == 2).sum() == 4


def test_one_of_two_duplicates_goes_first() -> None:
    features, cluster = world()
    twice = np.concatenate([features, features[:5] * 3])
    score = semdedup_scores(twice, np.concatenate([cluster, cluster[:5]]), limit_bytes=ENOUGH)
    last = set(np.argsort(score)[:5].tolist())
    assert all((i in last) != (70 + i in last) for i in range(5))


def test_of_equal_examples_the_first_is_kept() -> None:
    features = np.tile([[3.0, 0, 0]], (6, 1))
    score = semdedup_scores(features, np.array([0, 1, 0, 1, 0, 0]), limit_bytes=ENOUGH)
    assert score.tolist() == [2, 2, -1, -1, -1, -1]


def test_permuting_the_examples_permutes_the_scores() -> None:
    features, cluster = world()
    order = np.random.default_rng(0).permutation(70)
    straight = semdedup_scores(features, cluster, limit_bytes=ENOUGH)
    permuted = semdedup_scores(features[order], cluster[order], limit_bytes=ENOUGH)
    np.testing.assert_allclose(permuted, straight[order], atol=1e-6)
    straight = prototype_scores(features, features[:5], cluster)
    permuted = prototype_scores(features[order], features[:5], cluster[order])
    np.testing.assert_allclose(permuted, straight[order], atol=1e-6)


def test_bad_input_is_refused() -> None:
    features, cluster = world()
    with pytest.raises(MemoryLimitError, match=r"a cluster of 30 examples.*use more clusters"):
        semdedup_scores(features, cluster, limit_bytes=1000)
    with pytest.raises(ValueError, match="keep must be 'far' or 'near', got 'hard'"):
        semdedup_scores(features, cluster, limit_bytes=ENOUGH, keep="hard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="60 clusters for 70 examples"):
        prototype_scores(features, features, cluster[:60])
    with pytest.raises(ValueError, match="71 clusters for 70 examples"):
        semdedup_scores(features, np.append(cluster, 0), limit_bytes=ENOUGH)
