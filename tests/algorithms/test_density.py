import math
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dp4tl_ray.algorithms.density import domain_classifier_scores, dsir_scores
from dp4tl_ray.algorithms.memory import MemoryLimitError

Floats = npt.NDArray[np.float64]
ENOUGH = 2**30


def worlds(num_source: int = 300, num_target: int = 80, dim: int = 6) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    shift = np.r_[1.0, -0.5, np.zeros(dim - 2)]
    return rng.normal(size=(num_source, dim)), rng.normal(size=(num_target, dim)) * 0.8 + shift


def classify(source: Floats, target: Floats, seed: int = 0, **changes: int) -> Floats:
    generator = np.random.default_rng(seed)
    scores: Floats = domain_classifier_scores(
        source, target, generator, **{"limit_bytes": ENOUGH, **changes}
    )
    return scores


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_domain_classifier_matches_scikit_learn(dtype: str, tmp_path: Path) -> None:
    source, target = (part.astype(dtype) for part in worlds())
    np.save(tmp_path / "source.npy", source)
    scaler = StandardScaler().fit(np.concatenate([source, target]).astype("f8"))
    both = scaler.transform(np.concatenate([source, target]).astype("f8"))
    is_target = np.arange(380) >= 300
    # a penalty on two opposite rows of weights is half that on their difference
    oracle = LogisticRegression(C=2 / (1e-3 * 380), tol=1e-10, max_iter=1000).fit(both, is_target)
    expected = oracle.decision_function(both)[:300]
    found = classify(np.load(tmp_path / "source.npy", mmap_mode="r"), target)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_chunks_do_not_change_the_classifier() -> None:
    source, target = worlds()
    small = classify(source, target, chunk_bytes=500)
    np.testing.assert_allclose(classify(source, target), small, rtol=1e-12)


def test_the_generator_draws_the_negatives() -> None:
    source, target = worlds()
    a, b, c = (classify(source, target, seed, num_negatives=50) for seed in (0, 0, 1))
    assert (a == b).all()
    assert not np.allclose(a, c)
    # examples that were not drawn are scored as well
    assert np.corrcoef(a, classify(source, target))[0, 1] > 0.8


def test_what_looks_like_the_target_scores_higher() -> None:
    source, target = worlds()
    found = classify(np.concatenate([source, target]), target)
    assert found[300:].mean() > found[:300].mean() + 0.5


def test_permuting_the_source_permutes_the_logits() -> None:
    source, target = worlds()
    order = np.random.default_rng(3).permutation(300)
    permuted = classify(source[order], target)
    np.testing.assert_allclose(permuted, classify(source, target)[order], atol=1e-4)


def test_domain_classifier_refuses_bad_input() -> None:
    source, target = worlds()
    with pytest.raises(MemoryLimitError, match="lower num_negatives"):
        classify(source, target, limit_bytes=1000)
    with pytest.raises(ValueError, match=r"target of shape \(80, 5\)"):
        classify(source, target[:, :5])
    with pytest.raises(ValueError, match=r"target of shape \(0, 6\)"):
        classify(source, target[:0])
    source[7, 0] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        classify(source, target)


def test_dsir_matches_its_definition() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 6, 200), rng.integers(2, 8, 30)
    in_source, in_target = Counter(source.tolist()), Counter(target.tolist())
    found = dsir_scores(source, target, 9, smoothing=0.5)
    for code, score in zip(source.tolist(), found, strict=True):
        p_target = (in_target[code] + 0.5) / (30 + 9 * 0.5)
        p_source = (in_source[code] + 0.5) / (200 + 9 * 0.5)
        assert math.isclose(score, math.log(p_target / p_source), rel_tol=1e-12)


def test_codes_that_the_target_prefers_score_higher() -> None:
    source = np.repeat(np.arange(3), 50)
    score = dsir_scores(source, np.repeat(np.arange(3), [1, 20, 5]), 3)
    assert score[50] > score[100] > score[0]


def test_permuting_the_source_permutes_the_ratios() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 6, 100), rng.integers(0, 6, 30)
    order = rng.permutation(100)
    straight = dsir_scores(source, target, 6)
    assert (dsir_scores(source[order], target, 6) == straight[order]).all()


def test_dsir_refuses_bad_input() -> None:
    codes = np.arange(4)
    with pytest.raises(ValueError, match="smoothing must be positive, got 0"):
        dsir_scores(codes, codes, 4, smoothing=0)
    with pytest.raises(ValueError, match="clusters from 0 to 3; allowed: 0 to 2"):
        dsir_scores(codes, codes, 3)
    with pytest.raises(ValueError, match="clusters from -1 to 3"):
        dsir_scores(codes, np.array([-1, 3]), 4)
