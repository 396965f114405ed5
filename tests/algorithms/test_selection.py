import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chi2_contingency, chisquare

from dp4tl_ray.algorithms.label_mapping import label_mapping_scores
from dp4tl_ray.algorithms.selection import (
    Scores,
    ccs_order,
    gumbel_order,
    kept_prefix,
    kept_whole_units,
    quota_order,
    stratified_order,
    top_order,
)


def scores(seed: int, units: int = 9, n: int = 100) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores(
        score_U=rng.integers(0, 3, units).astype(float),  # many ties
        tie_break_U=rng.integers(0, 2, units).astype(float),
        unit_of_N=rng.integers(0, units, n),
        priority_N=rng.random(n),
    )


def labels(seed: int, n: int = 100) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed + 100).choice([0, 1, 3], n, p=[0.6, 0.3, 0.1])


ORDERS: dict[str, Callable[[Scores], npt.NDArray[np.int64]]] = {
    "top": top_order,
    "stratified": lambda s: stratified_order(s, labels(0)),
    "quota": lambda s: quota_order(s, 1.5),
    "ccs": lambda s: ccs_order(s.priority_N, np.random.default_rng(0)),
    "gumbel": lambda s: gumbel_order(s, np.random.default_rng(0), temperature=1.0),
}


def top_by_hand(s: Scores) -> list[int]:
    """The definition, in loops: best unit first, in it the highest priority first."""
    units = sorted(range(len(s.score_U)), key=lambda u: (-s.score_U[u], -s.tie_break_U[u], u))
    order = []
    for unit in units:
        members = [i for i in range(len(s.unit_of_N)) if s.unit_of_N[i] == unit]
        order += sorted(members, key=lambda i: -s.priority_N[i])
    return order


def divisor_by_hand(
    best_first: list[int], group: npt.NDArray[np.int64], weight: dict[int, float]
) -> list[int]:
    """Webster's method in a loop: the group with the largest weight / (given + 1/2) is next."""
    waiting = list(best_first)
    given = dict.fromkeys(weight, 0)
    order = []
    while waiting:
        worth = [weight[int(group[i])] / (given[int(group[i])] + 0.5) for i in waiting]
        chosen = waiting.pop(worth.index(max(worth)))
        given[int(group[chosen])] += 1
        order.append(chosen)
    return order


@pytest.mark.parametrize("seed", range(5))
def test_top_order_matches_the_definition(seed: int) -> None:
    s = scores(seed)
    assert top_order(s).tolist() == top_by_hand(s)


@pytest.mark.parametrize("name", ORDERS)
def test_every_order_is_a_permutation(name: str) -> None:
    assert sorted(ORDERS[name](scores(1)).tolist()) == list(range(100))


@pytest.mark.parametrize("name", ORDERS)
def test_every_order_gives_nested_subsets_of_exact_size(name: str) -> None:
    order = ORDERS[name](scores(1))
    kept = [kept_prefix(order, r / 20) for r in range(20)]
    assert [len(k) for k in kept] == [round((1 - r / 20) * 100) for r in range(20)]
    assert all((np.diff(k) > 0).all() for k in kept[:-1])
    assert all(set(more.tolist()) >= set(less.tolist()) for more, less in pairwise(kept))


@pytest.mark.parametrize("name", ["top", "stratified", "quota"])
def test_permuting_the_examples_permutes_the_order(name: str) -> None:
    s, classes = scores(2), labels(2)
    permutation = np.random.default_rng(9).permutation(100)
    moved = Scores(s.score_U, s.tie_break_U, s.unit_of_N[permutation], s.priority_N[permutation])
    if name == "stratified":
        order, moved_order = (
            stratified_order(s, classes),
            stratified_order(moved, classes[permutation]),
        )
    else:
        order, moved_order = ORDERS[name](s), ORDERS[name](moved)
    assert (permutation[moved_order] == order).all()


def test_equal_examples_keep_their_order() -> None:
    s = Scores(np.ones(1), np.zeros(1), np.zeros(50, np.int64), np.zeros(50))
    for name in ("top", "quota"):
        assert (ORDERS[name](s) == np.arange(50)).all()


@pytest.mark.parametrize("seed", range(5))
def test_stratified_order_matches_the_divisor_method(seed: int) -> None:
    s, classes = scores(seed), labels(seed)
    sizes = dict(enumerate(np.bincount(classes).astype(float)))
    assert stratified_order(s, classes).tolist() == divisor_by_hand(top_by_hand(s), classes, sizes)


def test_every_prefix_of_the_stratified_order_is_balanced() -> None:
    classes = np.repeat([0, 1, 2], [40, 20, 10])
    order = stratified_order(scores(3, n=70), classes)
    for n in range(7, 71, 7):
        counts = np.bincount(classes[order[:n]], minlength=3)
        assert np.abs(counts - n * np.array([4, 2, 1]) / 7).max() <= 1


def with_masses(seed: int) -> Scores:
    s = scores(seed)
    mass_U = np.random.default_rng(seed).gamma(0.5, size=9)
    return Scores(mass_U, s.tie_break_U, s.unit_of_N, s.priority_N)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_quota_order_matches_the_divisor_method(seed: int, alpha: float) -> None:
    s = with_masses(seed)
    sizes = np.bincount(s.unit_of_N, minlength=9)
    weight = dict(enumerate(sizes * s.score_U**alpha))
    assert quota_order(s, alpha).tolist() == divisor_by_hand(top_by_hand(s), s.unit_of_N, weight)


def test_quota_without_strength_is_stratified_over_units() -> None:
    s = scores(4)
    assert (s.score_U == 0).any()
    assert (quota_order(s, 0) == stratified_order(s, s.unit_of_N)).all()


def test_quota_of_infinite_strength_is_the_top_order() -> None:
    s = scores(5)
    assert (quota_order(s, math.inf) == top_order(s)).all()
    distinct = with_masses(5)
    assert (quota_order(distinct, 1e5) == top_order(distinct)).all()


def test_quota_puts_units_without_mass_last_in_top_order() -> None:
    s = scores(4)
    order, top = quota_order(s, 0.5), top_order(s)
    without = int((s.score_U[s.unit_of_N] == 0).sum())
    assert 0 < without < 100
    assert (order[-without:] == top[-without:]).all()
    nothing = Scores(np.zeros(9), s.tie_break_U, s.unit_of_N, s.priority_N)
    assert (quota_order(nothing, 0.5) == top_order(nothing)).all()


def test_quota_stands_masses_of_any_magnitude() -> None:
    s = with_masses(7)
    tiny = Scores(s.score_U * 1e-300, s.tie_break_U, s.unit_of_N, s.priority_N)
    assert (quota_order(tiny, 3.0) == quota_order(s, 3.0)).all()


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_quota_refuses_scores_that_are_no_masses(bad: float) -> None:
    s = with_masses(0)
    s.score_U[3] = bad
    with pytest.raises(ValueError, match="masses"):
        quota_order(s, 1.0)


@pytest.mark.parametrize("alpha", [-0.1, math.nan])
def test_quota_refuses_a_strength_outside_the_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        quota_order(scores(0), alpha)


def water_filling(sizes: list[int], budget: int) -> list[int]:
    """CCS's allocation: smallest stratum first, each an equal part of what is left, or all of it.

    Zheng et al. 2023.
    """
    given: list[int] = []
    for waiting, size in zip(range(len(sizes), 0, -1), sorted(sizes), strict=True):
        given.append(min(size, (budget - sum(given)) // waiting))
    return sorted(given)


@pytest.mark.parametrize("budget", [1, 7, 40, 111, 250, 300])
def test_ccs_fills_the_strata_like_water(budget: int) -> None:
    score = np.random.default_rng(1).gamma(1.0, size=400)
    order = ccs_order(score, np.random.default_rng(2), hardest=0.2, num_strata=8)
    easy = np.sort(score)[:320]
    edges = np.linspace(easy[0], easy[-1], 9)
    stratum = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, 7)
    sizes = np.bincount(stratum[score <= easy[-1]], minlength=8)
    assert sizes.min() < 20 < 70 < sizes.max()
    counts = np.bincount(stratum[order[:budget]], minlength=8)
    assert sorted(counts.tolist()) == water_filling(sizes.tolist(), budget)


def test_ccs_puts_the_hardest_last_and_the_least_hard_of_them_first() -> None:
    score = np.random.default_rng(3).permutation(50).astype(float)
    order = ccs_order(score, np.random.default_rng(0), hardest=0.2)
    assert score[order[40:]].tolist() == list(range(40, 50))


def test_ccs_draws_at_random_within_a_stratum() -> None:
    first = [
        int(ccs_order(np.zeros(10), np.random.default_rng(s), hardest=0)[0]) for s in range(400)
    ]
    assert chisquare(np.bincount(first, minlength=10)).pvalue > 0.01


def test_ccs_puts_infinite_scores_at_the_ends() -> None:
    """Never learned: as far as not set aside, they are in the highest stratum with the highest."""
    score = np.concatenate([np.arange(10.0), np.full(10, math.inf), [-math.inf]])
    order = ccs_order(score, np.random.default_rng(0), hardest=4 / 21, num_strata=10)
    assert np.isinf(score[order[-4:]]).all()
    assert set(score[order[:10]].tolist()) >= set(range(1, 9))
    later = score[order[10:-4]]
    assert (np.isin(later, [9, math.inf]).sum(), np.isin(later, [0, -math.inf]).sum()) == (6, 1)
    all_infinite = ccs_order(np.full(5, math.inf), np.random.default_rng(0))
    assert sorted(all_infinite.tolist()) == list(range(5))


def test_ccs_refuses_what_it_cannot_sort_or_cut() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="NaN"):
        ccs_order(np.array([0.0, math.nan]), generator)
    with pytest.raises(ValueError, match="hardest"):
        ccs_order(np.zeros(3), generator, hardest=1.0)
    with pytest.raises(ValueError, match="num_strata"):
        ccs_order(np.zeros(3), generator, num_strata=0)


def test_gumbel_order_draws_like_sampling_without_replacement() -> None:
    logit = np.array([0.0, 0.5, 1.0, 2.0, -1.0])
    own_unit = Scores(logit, np.zeros(5), np.arange(5), np.zeros(5))
    p = np.exp(logit / 0.8) / np.exp(logit / 0.8).sum()
    generator = np.random.default_rng(0)
    ours = [gumbel_order(own_unit, generator, temperature=0.8)[:2] for _ in range(3000)]
    oracle = [generator.choice(5, 2, replace=False, p=p) for _ in range(6000)]
    pairs = np.stack([np.bincount([5 * a + b for a, b in d], minlength=25) for d in (ours, oracle)])
    assert (pairs.sum(axis=0) > 0).sum() == 20
    assert chi2_contingency(pairs[:, pairs.sum(axis=0) > 0]).pvalue > 0.01


def test_gumbel_order_keeps_units_together_and_impossible_ones_last() -> None:
    s = scores(8)
    s.score_U[[2, 5]] = -math.inf
    order = gumbel_order(s, np.random.default_rng(1), temperature=2.0)
    units = s.unit_of_N[order]
    assert (np.diff(units) != 0).sum() == len(np.unique(units)) - 1
    assert set(units[-np.isin(s.unit_of_N, [2, 5]).sum() :].tolist()) == {2, 5}
    for unit in range(9):
        assert (np.diff(s.priority_N[order[units == unit]]) <= 0).all()


def test_gumbel_order_of_a_low_temperature_is_the_top_order() -> None:
    s = with_masses(2)
    order = gumbel_order(s, np.random.default_rng(0), temperature=1e-300)
    assert (order == top_order(s)).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_gumbel_order_refuses_a_temperature_outside_the_range(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        gumbel_order(scores(0), np.random.default_rng(0), temperature=temperature)


def test_whole_units_keeps_the_papers_number_of_classes_whole() -> None:
    s = scores(2, units=10)
    kept = kept_whole_units(s, 0.7)
    classes = np.unique(s.unit_of_N[kept])
    assert len(classes) == 3
    assert len(kept) == np.isin(s.unit_of_N, classes).sum()
    assert (np.diff(kept) > 0).all()
    worst_kept = min(s.score_U[classes])
    assert worst_kept >= max(np.delete(s.score_U, classes))


def test_pruning_more_whole_units_keeps_a_subset() -> None:
    kept = [set(kept_whole_units(scores(1), r / 20).tolist()) for r in range(19)]
    assert all(more >= less for more, less in pairwise(kept))
    assert len(kept[0]) == 100


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2.0, float("nan")])
def test_a_ratio_outside_the_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="pruning_ratio"):
        kept_prefix(np.arange(100), ratio)
    with pytest.raises(ValueError, match="pruning_ratio"):
        kept_whole_units(scores(0), ratio)


def test_keeping_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.9 keeps none of 4 examples"):
        kept_prefix(np.arange(4), 0.9)
    with pytest.raises(ValueError, match=r"0\.96 keeps none of 9 units"):
        kept_whole_units(scores(0), 0.96)
    empty_best = Scores(np.array([1.0, 0.0]), np.zeros(2), np.ones(5, np.int64), np.zeros(5))
    with pytest.raises(ValueError, match="no example"):
        kept_whole_units(empty_best, 0.5)


@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_the_order_of_the_classes_does_not_leak_into_what_is_kept(ratio: float) -> None:
    """With few votes most kept classes are ties; renumbering them must keep the same ones."""
    classes, per_class = 40, 5
    logits = np.random.default_rng(0).normal(0, 3, (8, classes)).astype(np.float32)
    names = np.arange(classes)
    permutation = np.random.default_rng(1).permutation(classes)
    kept_names = []
    for order in (names, permutation):
        votes, mass = label_mapping_scores(logits[:, order])
        assert (votes == 0).sum() >= classes - 8
        unit_of_N = np.repeat(np.arange(classes), per_class)
        s = Scores(votes.astype(float), mass, unit_of_N, np.zeros(len(unit_of_N)))
        kept = np.unique(unit_of_N[kept_whole_units(s, ratio)])
        kept_names.append(set(names[order][kept].tolist()))
    assert kept_names[0] == kept_names[1]
