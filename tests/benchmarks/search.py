"""The search for the largest lossless ratio, on curves whose truth is known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.bisection import SEARCH_CONFIDENCE, answer, next_ratio
from dp4tl_ray.algorithms.lossless import Correct, loss_upper_bound
from tests.benchmarks.figure import Figure, figure

MARGIN, FULL = 0.01, 0.85
ALLOWED = 0.05
"""Share of searches that may call a lossy ratio lossless."""
RATIOS = tuple(n / 10 for n in range(1, 10))


@dataclass(frozen=True)
class Curve:
    """A true curve, and the noise under which it is seen."""

    loss: Callable[[float], float]
    """Ratio -> full minus pruned accuracy, in expectation."""
    seed_sd: float = 0.004
    """Deviation of an accuracy over seeds, beside the noise of the test examples."""
    num_seeds: int = 5
    num_examples: int = 1_000


def _hump(ratio: float) -> float:
    """Above the full source by two points in the middle, and far below at the end."""
    return -0.02 if 0.2 < ratio < 0.6 else 0.0 if ratio < 0.6 else 0.1 * (ratio - 0.5)


CURVES = {
    "gentle": Curve(lambda r: 0.02 * r, num_examples=4_000),
    "steep": Curve(lambda r: 0.0 if r < 0.65 else 0.05, seed_sd=0.002, num_examples=4_000),
    "at_margin_from_half": Curve(lambda r: -0.03 if r < 0.45 else MARGIN),
    "at_margin_everywhere": Curve(lambda r: MARGIN),
    "hump": Curve(_hump),
    "hump_to_margin": Curve(lambda r: -0.02 * np.sin(np.pi * r / 0.6) if r < 0.55 else MARGIN),
    "jagged": Curve(lambda r: (-0.02, MARGIN)[round(10 * r) % 2] + 0.01 * (r > 0.55)),
    "noisy": Curve(lambda r: 0.02 * r, seed_sd=0.015, num_examples=200),
    "three_seeds": Curve(lambda r: -0.03 if r < 0.25 else MARGIN, num_seeds=3),
}


@dataclass(frozen=True)
class Found:
    """What one search found, and after how many tests."""

    ratio: float | None
    num_tested: int
    lossy: bool
    """Whether it calls a ratio lossless that loses a margin or more."""


def search(curve: Curve, rng: np.random.Generator, num_draws: int = 400) -> Found:
    """Draw what networks predict, and search the ratios."""
    difficulty = rng.normal(size=curve.num_examples)
    full = _predictions(curve, FULL, difficulty, rng)
    passed: dict[float, bool] = {}
    while (ratio := next_ratio(RATIOS, passed)) is not None:
        pruned = _predictions(curve, FULL - curve.loss(ratio), difficulty, rng)
        bound = loss_upper_bound(
            full, pruned, rng, confidence=SEARCH_CONFIDENCE, num_draws=num_draws
        )
        passed[ratio] = bound < MARGIN
    found = answer(passed)
    lossy = found is not None and curve.loss(found) >= MARGIN - 1e-9
    return Found(found, len(passed), lossy)


def _predictions(
    curve: Curve, accuracy: float, difficulty: npt.NDArray[np.float64], rng: np.random.Generator
) -> list[Correct]:
    """Draw per seed which examples are right (N,).

    Half of the variance is an example's own, .15 that of an example under one way to prune, and
    the rest independent.
    """
    common = np.sqrt(0.5) * difficulty + np.sqrt(0.15) * rng.normal(size=len(difficulty))
    correct = []
    for _ in range(curve.num_seeds):
        level = NormalDist().inv_cdf(accuracy + rng.normal(0, curve.seed_sd))
        correct.append(common + np.sqrt(0.35) * rng.normal(size=len(difficulty)) < level)
    return correct


def lossless_search(num_runs: int = 500) -> Iterator[Figure]:
    """Count searches that call a lossy ratio lossless, and pretrainings against the grid's."""
    for name, curve in CURVES.items():
        rng = np.random.default_rng(0)
        found = [search(curve, rng) for _ in range(num_runs)]
        rate = sum(f.lossy for f in found) / num_runs
        yield figure(f"false_lossless_{name}", rate, ALLOWED, "share of searches")
        # the full source is pretrained too, on either side
        ours = curve.num_seeds * (1 + median(f.num_tested for f in found))
        grid = curve.num_seeds * (1 + len(RATIOS))
        yield figure(f"search_pretrainings_{name}", ours, grid, "pretrainings, median")
