"""Non-inferiority: the bound against its definition in loops, and against simulated truth."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from dp4tl_ray.algorithms.lossless import (
    Correct,
    _t_quantile,
    gain_kept,
    is_sensitive,
    loss_upper_bound,
    lossless_ratio,
)


def bound_by_hand(full: Sequence[Correct], pruned: Sequence[Correct], num_draws: int) -> float:
    """The definition, in loops: add deviations of resampled seeds and of shared examples."""
    dice = random.Random(0)
    losses = [
        [int(a) - int(b) for a, b in zip(f, p, strict=True)]
        for f, p in zip(full, pruned, strict=True)
    ]
    num_seeds = len(losses)
    loss_of_seed = [sum(x) / len(x) for x in losses]
    mean = sum(loss_of_seed) / num_seeds
    stretch = (num_seeds / (num_seeds - 1)) ** 0.5
    stretch *= stats.t.ppf(0.95, num_seeds - 1) / stats.norm.ppf(0.95)
    groups = [[x for x in losses if len(x) == n] for n in sorted({len(x) for x in losses})]
    shares = [shared_share_by_hand(group) for group in groups]
    drawn = []
    for _ in range(num_draws):
        seeds = [dice.randrange(num_seeds) for _ in range(num_seeds)]
        value = mean + stretch * (sum(loss_of_seed[s] for s in seeds) / num_seeds - mean)
        for group, share in zip(groups, shares, strict=True):
            size = len(group[0])
            examples = [dice.randrange(size) for _ in range(size)]
            for x in group:
                value += share * (sum(x[n] for n in examples) - sum(x)) / size / num_seeds
        drawn.append(value)
    return float(np.quantile(drawn, 0.95))


def shared_share_by_hand(group: list[list[int]]) -> float:
    """Square root of the share of the variance of mean losses that examples bring to all seeds."""
    if len(group) == 1:
        return 0.0
    num_seeds, size = len(group), len(group[0])
    column = [sum(x[n] for x in group) / num_seeds for n in range(size)]
    row = [sum(x) / size for x in group]
    mean = sum(row) / num_seeds
    variance = sum((c - mean) ** 2 for c in column) / size
    residual = sum(
        (group[s][n] - row[s] - column[n] + mean) ** 2
        for s in range(num_seeds)
        for n in range(size)
    )
    noise = residual / (num_seeds - 1) / size / num_seeds
    return float(max(0.0, 1 - noise / variance) ** 0.5)


def world(
    generator: np.random.Generator,
    sizes: Sequence[int],
    loss: float,
    *,
    seed_sd: float = 0.0,
    shared: float = 0.0,
) -> tuple[list[Correct], list[Correct]]:
    """Draw predictions that differ on 10 % of the examples, by `loss` in expectation.

    The loss varies over seeds by `seed_sd`, and examples decide alike under all seeds with
    probability `shared`.
    """
    common, is_common = generator.random(max(sizes)), generator.random(max(sizes)) < shared
    full, pruned = [], []
    for size in sizes:
        tilt = (loss + generator.normal(0, seed_sd)) / 2
        u = np.where(is_common[:size], common[:size], generator.random(size))
        only_full, only_pruned = u < 0.05 + tilt, u > 0.95 + tilt
        both = generator.random(size) < 0.8
        full.append(only_full | (both & ~only_pruned))
        pruned.append(only_pruned | (both & ~only_full))
    return full, pruned


@pytest.mark.parametrize("sizes", [(60,) * 5, (80,) * 3, (40, 60, 50, 45), (50, 50, 30, 70)])
@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_the_bound_matches_its_definition(sizes: tuple[int, ...], shared: float) -> None:
    full, pruned = world(np.random.default_rng(1), sizes, 0.03, seed_sd=0.03, shared=shared)
    ours = loss_upper_bound(full, pruned, np.random.default_rng(0), num_draws=40_000)
    loss = float(np.mean([f.mean() - p.mean() for f, p in zip(full, pruned, strict=True)]))
    by_hand = bound_by_hand(full, pruned, 4_000)
    assert by_hand > loss + 0.01
    assert ours == pytest.approx(by_hand, abs=0.08 * (by_hand - loss))


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize(("seed_sd", "shared"), [(0.0, 0.0), (0.01, 0.0), (0.0, 0.9), (0.005, 0.5)])
def test_a_loss_of_one_margin_is_rarely_called_lossless(
    num_seeds: int, seed_sd: float, shared: float
) -> None:
    generator, margin, num_runs = np.random.default_rng(2), 0.01, 500
    called = 0
    for _ in range(num_runs):
        pair = world(generator, (800,) * num_seeds, margin, seed_sd=seed_sd, shared=shared)
        called += loss_upper_bound(*pair, generator, num_draws=1_000) < margin
    assert 0.01 <= called / num_runs <= 0.08


def test_no_loss_and_many_examples_pass_mostly() -> None:
    generator, num_runs = np.random.default_rng(3), 100
    passed = 0
    for _ in range(num_runs):
        pair = world(generator, (20_000,) * 5, 0.0, seed_sd=0.002, shared=0.3)
        passed += loss_upper_bound(*pair, generator, num_draws=1_000) < 0.01
    assert passed / num_runs >= 0.95


def test_equal_generators_give_equal_bounds() -> None:
    pair = world(np.random.default_rng(4), (100,) * 3, 0.02, shared=0.5)
    bounds = {loss_upper_bound(*pair, np.random.default_rng(s)) for s in (7, 7, 7, 8)}
    assert len(bounds) == 2


@pytest.mark.parametrize("sizes", [(10, 10, 10), (10, 20, 30)])
def test_certainty_needs_no_allowance(sizes: tuple[int, ...]) -> None:
    right, wrong = [np.ones(n, bool) for n in sizes], [np.zeros(n, bool) for n in sizes]
    assert loss_upper_bound(right, right, np.random.default_rng(0)) == 0
    assert loss_upper_bound(right, wrong, np.random.default_rng(0)) == 1
    assert loss_upper_bound(wrong, right, np.random.default_rng(0)) == -1


def test_two_seeds_give_no_bound() -> None:
    two = [np.ones(10, bool)] * 2
    with pytest.raises(ValueError, match="3 seeds"):
        loss_upper_bound(two, two, np.random.default_rng(0))


def test_pairs_must_share_their_test_examples() -> None:
    ten, nine = np.ones(10, bool), np.ones(9, bool)
    with pytest.raises(ValueError, match="pair 1"):
        loss_upper_bound([ten] * 3, [ten, nine, ten], np.random.default_rng(0))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 200])
def test_t_quantile_matches_scipy(degrees: int) -> None:
    assert _t_quantile(degrees) == pytest.approx(stats.t.ppf(0.95, degrees), rel=1e-5)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({0.8: 0.002, 0.5: 0.004}, 0.8),
        ({0.3: 0.0, 0.5: 0.02, 0.8: 0.0}, 0.3),
        ({0.3: 0.02, 0.5: 0.0}, None),
        ({0.3: 0.0, 0.5: None, 0.8: 0.0}, 0.3),
        ({0.3: None}, None),
        ({0.3: 0.01}, None),
        ({}, None),
    ],
)
def test_ratios_are_tested_upwards_and_stopped_at_the_first_failure(
    bounds: dict[float, float | None], expected: float | None
) -> None:
    assert lossless_ratio(bounds, margin=0.01) == expected


def test_a_target_is_sensitive_from_three_margins_above_the_floor() -> None:
    assert is_sensitive([0.5, 0.75], [0.25, 0.25], margin=0.125)
    assert not is_sensitive([0.5, 0.74], [0.25, 0.25], margin=0.125)


def test_gain_kept_is_one_at_the_full_source_and_zero_at_the_floor() -> None:
    assert gain_kept(0.75, 0.75, 0.25) == 1
    assert gain_kept(0.25, 0.75, 0.25) == 0
    assert gain_kept(0.5, 0.75, 0.25) == 0.5
