from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import rankdata, zscore

from dp4tl_ray.algorithms.combination import combine_scores

Rule = Literal["mean", "max", "round_robin", "soft_min"]
RULES: list[Rule] = ["mean", "max", "round_robin", "soft_min"]
Floats = npt.NDArray[np.float64]


def targets(seed: int, count: int = 3, units: int = 20, levels: int = 6) -> tuple[Floats, Floats]:
    """Return scores with many ties, as votes have, and tie breaks with a few."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, levels, (count, units)).astype(float)
    score[:, 3] = -np.inf
    return score, rng.integers(0, 5, (count, units)).astype(float)


def order(score: Floats, tie_break: Floats) -> list[int]:
    best_first: list[int] = np.lexsort((-tie_break, -score)).tolist()
    return best_first


def percentiles(score: Floats, tie_break: Floats) -> Floats:
    rows = []
    for s, b in zip(score, tie_break, strict=True):
        pairs = sorted(set(zip(s.tolist(), b.tolist(), strict=True)))
        dense = [pairs.index(pair) for pair in zip(s.tolist(), b.tolist(), strict=True)]
        rows.append(rankdata(dense) / len(s))
    return np.stack(rows)


@pytest.mark.parametrize("seed", range(3))
def test_rules_match_their_definition(seed: int) -> None:
    score, tie_break = targets(seed)
    percentile = percentiles(score, tie_break)
    soft_min = -np.log(np.mean(np.exp(-4 * percentile), axis=0)) / 4
    standard = np.full(score.shape, -np.inf)  # unit 3 is -inf for all
    finite = [unit for unit in range(20) if unit != 3]
    standard[:, finite] = zscore(score[:, finite], axis=1)
    expected: dict[Rule, Floats] = {
        "mean": standard.mean(axis=0),
        "max": standard.max(axis=0),
        "soft_min": soft_min,
    }
    for rule, by_hand in expected.items():
        combined, mean = combine_scores(score, tie_break, rule, sharpness=4)
        np.testing.assert_allclose(combined, by_hand, atol=1e-12)
        np.testing.assert_allclose(mean, percentile.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_round_robin_is_targets_that_choose_in_turn(seed: int) -> None:
    score, tie_break = targets(seed)
    lists = [order(s, b) for s, b in zip(score, tie_break, strict=True)]
    combined, _ = combine_scores(score, tie_break, "round_robin")
    assert combined.tolist() == [-min(best.index(unit) for best in lists) for unit in range(20)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_prefix_of_round_robin_holds_the_best_of_each_target(seed: int, count: int) -> None:
    score, tie_break = targets(seed, count)
    chosen = order(*combine_scores(score, tie_break, "round_robin"))
    for n in range(21):
        for s, b in zip(score, tie_break, strict=True):
            assert set(order(s, b)[: n // count]) <= set(chosen[:n])


@pytest.mark.parametrize("rule", RULES)
def test_one_target_keeps_its_order(rule: Rule) -> None:
    score, tie_break = targets(1, count=1)
    assert order(*combine_scores(score, tie_break, rule)) == order(score[0], tie_break[0])


@pytest.mark.parametrize("rule", RULES)
def test_the_order_and_scale_of_targets_do_not_matter(rule: Rule) -> None:
    score, tie_break = targets(2, count=5)
    combined = combine_scores(score, tie_break, rule)
    shuffled = np.random.default_rng(0).permutation(5)
    for other in (
        combine_scores(score[shuffled], tie_break[shuffled], rule),
        combine_scores(score * np.arange(1, 6)[:, None] + 7, tie_break * 9, rule),
    ):
        np.testing.assert_allclose(other[0], combined[0], atol=1e-12)
        assert (other[1] == combined[1]).all()


@pytest.mark.parametrize("rule", RULES)
def test_permuting_untied_units_permutes_the_scores(rule: Rule) -> None:
    score = np.random.default_rng(3).normal(size=(3, 20))
    units = np.random.default_rng(0).permutation(20)
    combined, mean = combine_scores(score, np.zeros_like(score), rule)
    permuted, permuted_mean = combine_scores(score[:, units], np.zeros_like(score), rule)
    np.testing.assert_allclose(permuted, combined[units], atol=1e-12)
    assert (permuted_mean == mean[units]).all()


def test_soft_min_lies_between_minimum_and_mean() -> None:
    score, tie_break = targets(4)
    percentile = percentiles(score, tie_break)
    blunt, mean = combine_scores(score, tie_break, "soft_min", sharpness=1e-6)
    np.testing.assert_allclose(blunt, mean, atol=1e-5)
    sharp, _ = combine_scores(score, tie_break, "soft_min", sharpness=1e6)
    np.testing.assert_allclose(sharp, percentile.min(axis=0), atol=1e-5)


def test_the_rules_differ_in_whom_they_serve() -> None:
    # unit 0 is best for one target and worst for the other, unit 1 is second for both
    score = np.array([[9.0, 5.0, 4.0, 3.0, 2.0], [0.0, 5.0, 9.0, 4.0, 3.0]])
    none = np.zeros_like(score)
    assert order(*combine_scores(score, none, "soft_min"))[0] == 1
    assert set(order(*combine_scores(score, none, "max"))[:2]) == {0, 2}
    assert 1 not in order(*combine_scores(score, none, "round_robin"))[:2]


def test_bad_scores_are_refused() -> None:
    score, tie_break = targets(0)
    with pytest.raises(ValueError, match="T by U"):
        combine_scores(score, tie_break[:-1], "mean")
    with pytest.raises(ValueError, match="NaN"):
        combine_scores(score * np.nan, tie_break, "mean")
    with pytest.raises(ValueError, match="a score is inf"):
        combine_scores(-score, tie_break, "mean")
    with pytest.raises(ValueError, match="sharpness"):
        combine_scores(score, tie_break, "soft_min", sharpness=0)
    with pytest.raises(ValueError, match="round_robin"):
        combine_scores(score, tie_break, "median")  # type: ignore[arg-type]
