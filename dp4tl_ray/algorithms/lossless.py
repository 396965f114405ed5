"""Lossless: is pretraining on a pruned source no worse than on the full one, by more than a margin?

A one-sided test of non-inferiority by bootstrap over seeds and test examples. Shapes: S seeds,
N test examples, B bootstrap draws. A loss is full minus pruned accuracy, as a fraction.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Correct = NDArray[np.bool_]
Floats = NDArray[np.float64]

MIN_SEEDS = 3
"""Below this many seeds there is a curve and no verdict."""
CONFIDENCE = 0.95
"""Of the one-sided bound: about one star in twenty may be undeserved at a loss of one margin."""
SENSITIVE_MARGINS = 3
"""Margins by which the full source must beat the untrained floor before a target can tell."""


def loss_upper_bound(
    full: Sequence[Correct],
    pruned: Sequence[Correct],
    generator: np.random.Generator,
    *,
    confidence: float = CONFIDENCE,
    num_draws: int = 10_000,
) -> float:
    """Bound the mean loss of accuracy from above, with one-sided confidence, 95 % by default.

    Entry s of `full` and `pruned` says which test examples (N,) are classified correctly under
    seed s. Seeds and examples are resampled, and their deviations added. Simulated with a true
    loss of one margin, 3 to 8 % of such bounds fall below it. The nested bootstrap without a
    t-quantile for few seeds reached 10 %, a t-test over seeds alone 30 to 40 %: seeds that are
    tested on the same examples are wrong together.
    """
    losses = _losses(full, pruned)
    loss_S = np.array([loss_N.mean() for loss_N in losses])
    drawn_B = loss_S.mean() + _seed_deviations(loss_S, confidence, num_draws, generator)
    for size in sorted({len(loss_N) for loss_N in losses}):
        same_size_SN = np.stack([loss_N for loss_N in losses if len(loss_N) == size])
        weight = len(same_size_SN) / len(losses)
        drawn_B += weight * _example_deviations(same_size_SN, num_draws, generator)
    return float(np.quantile(drawn_B, confidence))


def lossless_ratio(bounds: Mapping[float, float | None], margin: float) -> float | None:
    """Return the largest pruning ratio that passed; null when not even the smallest did.

    Maps a ratio to the upper bound of its loss, null where it could not be tested. Ratios are
    tested upwards and stopped at the first that does not pass, which is why their number needs
    no correction.
    """
    passed = None
    for ratio in sorted(bounds):
        bound = bounds[ratio]
        if bound is None or bound >= margin:
            break
        passed = ratio
    return passed


def is_sensitive(full: Sequence[float], floor: Sequence[float], margin: float) -> bool:
    """Say whether a target can tell: the full source beats the floor by three margins.

    Both are accuracies, one per seed; the floor is the untrained network.
    """
    return bool(np.mean(full) - np.mean(floor) >= SENSITIVE_MARGINS * margin)


def gain_kept(accuracy: float, full: float, floor: float) -> float:
    """Return the share of the pretraining gain that is kept; 1 is all, above 1 is more."""
    return (accuracy - floor) / (full - floor)


def _losses(full: Sequence[Correct], pruned: Sequence[Correct]) -> list[NDArray[np.int8]]:
    """Subtract per seed (N,): 1 where only the full source is right, -1 where only the pruned."""
    if len(full) != len(pruned) or len(full) < MIN_SEEDS:
        raise ValueError(
            f"needs the same {MIN_SEEDS} seeds or more twice, got {len(full)} and {len(pruned)}"
        )
    for seed, (a, b) in enumerate(zip(full, pruned, strict=True)):
        if a.shape != b.shape or a.ndim != 1 or not len(a):
            raise ValueError(f"pair {seed}: test examples differ, {a.shape} and {b.shape}")
    return [a.astype(np.int8) - b.astype(np.int8) for a, b in zip(full, pruned, strict=True)]


def _seed_deviations(
    loss_S: Floats, confidence: float, num_draws: int, generator: np.random.Generator
) -> Floats:
    """Resample seeds: deviations of the mean (B,), stretched to what few seeds deserve.

    A bootstrap of S values is too narrow by sqrt((S - 1) / S), and its tail is normal, not t.
    """
    num_seeds = len(loss_S)
    stretch = np.sqrt(num_seeds / (num_seeds - 1))
    stretch *= _t_quantile(num_seeds - 1, confidence) / NormalDist().inv_cdf(confidence)
    drawn_BS = generator.integers(num_seeds, size=(num_draws, num_seeds))
    deviations: Floats = stretch * (loss_S[drawn_BS].mean(axis=1) - loss_S.mean())
    return deviations


def _example_deviations(
    loss_SN: NDArray[np.int8], num_draws: int, generator: np.random.Generator
) -> Floats:
    """Resample the test examples that seeds share: deviations of their mean loss (B,).

    The noise of one example under one seed is in the spread over seeds already, so only the part
    that an example brings to every seed is left here: none with one seed, and none on average
    where seeds have other examples.
    """
    num_seeds, num_examples = loss_SN.shape
    sum_N = loss_SN.sum(axis=0, dtype=np.int64)
    variance = sum_N.var() / num_seeds**2
    if num_seeds == 1 or variance == 0:
        return np.zeros(num_draws)
    mean_S1 = loss_SN.mean(axis=1, keepdims=True)
    noise_SN = loss_SN - mean_S1 - sum_N / num_seeds + mean_S1.mean()
    noise = (noise_SN**2).sum() / (num_seeds - 1) / num_examples / num_seeds
    shared = np.sqrt(max(0.0, 1 - noise / variance))
    # sum_N takes at most 2S + 1 values, so N draws are one multinomial over them
    values_V, count_V = np.unique(sum_N, return_counts=True)
    drawn_BV = generator.multinomial(num_examples, count_V / num_examples, size=num_draws)
    deviations = drawn_BV @ values_V / num_examples - sum_N.mean()
    scaled: Floats = shared * deviations / num_seeds
    return scaled


@cache
def _t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return a quantile of Student's t; with x = sqrt(degrees) tan(a) its density is a cosine's."""
    angle = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angle) ** (degrees - 1)
    area = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(2 * confidence - 1, area / area[-1], angle)))
