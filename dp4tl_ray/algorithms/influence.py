"""Influence of source units, measured: from pretraining on many random subsets of the units.

The expensive yardstick for every cheaper score. Shapes: S subsets, U units (classes or clusters).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.memory import require_memory

Floats = npt.NDArray[np.float64]

LIMIT_BYTES = 4 * 2**30
MIN_SUBSETS = 10
"""Below this, a fit is a guess."""


@dataclass(frozen=True)
class Influence:
    """A linear model of the outcome by which units were kept."""

    score_U: Floats
    """Change of the outcome when a unit is added; 0 for a unit that was kept always or never."""
    l2: float
    """The strength of the penalty that predicts left-out subsets best."""
    r2_loo: float
    """Share of the outcome's variance predicted for left-out subsets; NaN if it has none."""


def influence_scores(
    kept_SU: npt.NDArray[np.bool_],
    outcome_S: Floats,
    *,
    l2_values: Sequence[float],
    limit_bytes: float = LIMIT_BYTES,
) -> Influence:
    """Regress the outcome on which units were kept, by ridge regression with a free intercept.

    Minimises |outcome - intercept - kept @ score|^2 + l2 |score|^2. The strength is the one with
    the least squared error on subsets left out one at a time, in closed form; ties go to the
    stronger. Unlike a difference of means it accounts for the other units that a subset kept.
    After the counterfactual influences of Jain et al. 2022, arXiv:2207.05739.

    Args:
        kept_SU: Which units each subset kept.
        outcome_S: Outcome of each subset, such as accuracy on the target; higher is better.
        l2_values: Strengths to choose from, above 0.
        limit_bytes: Memory that may be used.

    Raises:
        ValueError: There are fewer than 10 subsets, shapes differ, an outcome is not finite, or
            l2_values are empty or not above 0.
        MemoryLimitError: 64 S U bytes are more than limit_bytes.

    Higher is kept. Memory: 64 S U bytes.
    """
    _check(kept_SU, outcome_S)
    if not l2_values or not all(0 < l2 < np.inf for l2 in l2_values):
        raise ValueError(f"l2_values must be above 0, at least one, got {list(l2_values)}")
    require_memory(
        64 * kept_SU.size,
        limit_bytes,
        f"a regression over {kept_SU.shape[0]} subsets of {kept_SU.shape[1]} units, 64 S U",
        "score clusters or classes instead of examples, or use the mean difference",
    )
    x_SU = kept_SU.astype(np.float64)
    x_SU -= x_SU.mean(axis=0)
    y_S = outcome_S.astype(np.float64) - outcome_S.mean()
    left_SR, singular_R, right_RU = np.linalg.svd(x_SU, full_matrices=False)
    along_R = left_SR.T @ y_S
    best_error, best_l2 = np.inf, 0.0
    for l2 in sorted(l2_values, reverse=True):
        shrink_R = singular_R**2 / (singular_R**2 + l2)
        # leaving one out divides a residual by 1 - leverage; the intercept's leverage is 1 / S
        leverage_S = 1 / len(y_S) + left_SR**2 @ shrink_R
        residual_S = (y_S - left_SR @ (shrink_R * along_R)) / (1 - leverage_S)
        error = float(residual_S @ residual_S)
        if error < best_error:
            best_error, best_l2 = error, float(l2)
    score_U = (singular_R / (singular_R**2 + best_l2) * along_R) @ right_RU
    score_U[kept_SU.all(axis=0) | ~kept_SU.any(axis=0)] = 0
    total = float(y_S @ y_S)
    return Influence(score_U, best_l2, 1 - best_error / total if total > 0 else float("nan"))


def _check(kept_SU: npt.NDArray[np.bool_], outcome_S: Floats) -> None:
    if kept_SU.ndim != 2 or kept_SU.dtype != bool or outcome_S.shape != kept_SU.shape[:1]:
        raise ValueError(
            f"needs subsets by units, true or false, and one outcome per subset, got "
            f"{kept_SU.dtype} {kept_SU.shape} and {outcome_S.shape}"
        )
    if len(outcome_S) < MIN_SUBSETS:
        raise ValueError(f"needs {MIN_SUBSETS} subsets or more, got {len(outcome_S)}")
    if not np.isfinite(outcome_S).all():
        raise ValueError("outcomes must be finite; leave out subsets whose training failed")
