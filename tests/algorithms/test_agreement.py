import math

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from dp4tl_ray.algorithms.agreement import mean_jaccard, mid_ranks, spearman


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_spearman_matches_scipy(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, levels, 50).astype(float)
    b = a + rng.integers(0, levels, 50).astype(float)
    assert math.isclose(spearman(a, b), spearmanr(a, b).statistic, rel_tol=1e-12)
    order = rng.permutation(50)
    assert math.isclose(spearman(a[order], b[order]), spearman(a, b), rel_tol=1e-12)


def test_spearman_sees_order_only() -> None:
    a = np.array([-np.inf, 0.1, 2.0, 30.0])
    assert spearman(a, np.arange(4.0)) == pytest.approx(1)
    assert spearman(a, -np.arange(4.0)) == pytest.approx(-1)


def test_spearman_of_a_constant_is_undefined() -> None:
    assert math.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert math.isnan(spearman(np.arange(5.0), np.ones(5)))
    assert math.isnan(spearman(np.ones(1), np.ones(1)))


def test_mid_ranks_match_scipy() -> None:
    rng = np.random.default_rng(0)
    score, tie_break = rng.integers(0, 4, 40), rng.integers(0, 3, 40)
    np.testing.assert_array_equal(mid_ranks(score.astype(float)), rankdata(score))
    both = mid_ranks(score.astype(float), tie_break.astype(float))
    np.testing.assert_array_equal(both, rankdata(10 * score + tie_break))
    assert mid_ranks(np.zeros(0)).shape == (0,)


def test_jaccard_matches_sets() -> None:
    rng = np.random.default_rng(1)
    kept = [rng.choice(30, size, replace=False) for size in (5, 12, 20, 20)]
    sets = [set(indices.tolist()) for indices in kept]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[:i]]
    expected = sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)
    assert math.isclose(mean_jaccard(kept), expected, rel_tol=1e-12)
    assert math.isclose(mean_jaccard([indices[::-1] for indices in kept[::-1]]), expected)


def test_jaccard_runs_from_disjoint_to_equal() -> None:
    a, b, empty = np.arange(4), np.arange(4, 8), np.zeros(0, np.int64)
    assert mean_jaccard([a, a[::-1]]) == 1
    assert mean_jaccard([a, b]) == 0
    assert mean_jaccard([a, empty]) == 0
    assert mean_jaccard([empty, empty]) == 1


def test_input_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="two kept sets"):
        mean_jaccard([np.arange(3)])
    with pytest.raises(ValueError, match="same units"):
        spearman(np.arange(3.0), np.arange(4.0))
    with pytest.raises(ValueError, match="NaN"):
        spearman(np.array([0.0, np.nan]), np.arange(2.0))
