import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from dp4tl_ray.algorithms.influence import influence_scores
from dp4tl_ray.algorithms.memory import MemoryLimitError

L2_VALUES = (0.01, 0.1, 1.0, 10.0, 100.0)
Runs = tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def runs(seed: int, subsets: int = 40, units: int = 12, noise: float = 0.5) -> Runs:
    """Return memberships, outcomes and the true effects behind them."""
    rng = np.random.default_rng(seed)
    kept, effect = rng.random((subsets, units)) < 0.5, rng.normal(size=units)
    return kept, 70 + kept @ effect + noise * rng.normal(size=subsets), effect


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("units", [12, 80])
def test_influence_matches_ridge_of_sklearn(seed: int, units: int) -> None:
    kept, outcome, _ = runs(seed, units=units)
    ours = influence_scores(kept, outcome, l2_values=L2_VALUES)
    theirs = RidgeCV(alphas=L2_VALUES).fit(kept.astype(float), outcome)
    assert ours.l2 == theirs.alpha_
    np.testing.assert_allclose(ours.score_U, theirs.coef_, atol=1e-9)


@pytest.mark.parametrize("l2", L2_VALUES)
def test_the_left_out_error_matches_fits_that_leave_one_out(l2: float) -> None:
    kept, outcome, _ = runs(5)
    predicted = cross_val_predict(Ridge(alpha=l2), kept.astype(float), outcome, cv=LeaveOneOut())
    ours = influence_scores(kept, outcome, l2_values=[l2])
    assert math.isclose(ours.r2_loo, r2_score(outcome, predicted), rel_tol=1e-9)


def test_true_effects_are_recovered_and_good_units_score_high() -> None:
    kept, outcome, effect = runs(6, subsets=200, noise=0.01)
    ours = influence_scores(kept, outcome, l2_values=[1e-4])
    np.testing.assert_allclose(ours.score_U, effect, atol=0.02)
    assert ours.r2_loo > 0.99


def test_noise_is_not_predicted() -> None:
    kept, _, _ = runs(7)
    noise = np.random.default_rng(0).normal(size=40)
    assert influence_scores(kept, noise, l2_values=L2_VALUES).r2_loo < 0.1


def test_units_that_never_vary_score_zero() -> None:
    kept, outcome, _ = runs(8)
    kept[:, 3], kept[:, 5] = True, False
    score = influence_scores(kept, outcome, l2_values=L2_VALUES).score_U
    assert np.flatnonzero(score == 0).tolist() == [3, 5]


def test_permutations_and_a_shift_of_outcomes_pass_through() -> None:
    kept, outcome, _ = runs(9)
    rng = np.random.default_rng(0)
    rows, units = rng.permutation(40), rng.permutation(12)
    ours = influence_scores(kept, outcome, l2_values=L2_VALUES)
    other = influence_scores(kept[rows][:, units], outcome[rows] + 5, l2_values=L2_VALUES)
    np.testing.assert_allclose(other.score_U, ours.score_U[units], atol=1e-9)
    assert other.l2 == ours.l2


def test_equal_outcomes_leave_nothing_to_explain() -> None:
    kept, _, _ = runs(10)
    ours = influence_scores(kept, np.full(40, 0.5), l2_values=L2_VALUES)
    assert (ours.score_U == 0).all()
    assert ours.l2 == 100
    assert math.isnan(ours.r2_loo)


def test_bad_runs_are_refused() -> None:
    kept, outcome, _ = runs(0)
    failed = outcome.copy()
    failed[3] = np.nan
    for bad_kept, bad_outcome, message in (
        (kept[:9], outcome[:9], "10 subsets"),
        (kept, outcome[:-1], "one outcome per subset"),
        (kept.astype(float), outcome, "true or false"),
        (kept, failed, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            influence_scores(bad_kept, bad_outcome, l2_values=L2_VALUES)
    for l2_values in ([], [0.0], [-1.0, 1.0]):
        with pytest.raises(ValueError, match="l2_values"):
            influence_scores(kept, outcome, l2_values=l2_values)
    with pytest.raises(MemoryLimitError, match="mean difference"):
        influence_scores(kept, outcome, l2_values=L2_VALUES, limit_bytes=1000)
