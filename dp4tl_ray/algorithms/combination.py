"""Several targets at once: the scores of each -> one score.

Shapes: T targets, U units (classes, clusters or examples).
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.agreement import mid_ranks

Floats = npt.NDArray[np.float64]


def combine_scores(
    score_TU: Floats,
    tie_break_TU: Floats,
    rule: Literal["mean", "max", "round_robin", "soft_min"],
    *,
    sharpness: float = 10.0,
) -> tuple[Floats, Floats]:
    """Combine the scores of several targets; with one target every rule keeps its order.

    Targets are made comparable first. mean and max take standard scores, less the mean and divided
    by the deviation over units, so that what towers above the rest for one target counts for much.
    soft_min takes percentiles in (0, 1], 1 is best, by (score, tie break); exact ties get their
    mean rank.

    mean: what is good on average. max: what is very good for some target. soft_min: what no target
    rejects, the smooth minimum -log(mean_t exp(-sharpness * percentile)) / sharpness, between mean
    (sharpness to 0) and minimum (to infinity). round_robin: targets choose in turn; minus the best
    place that any target gives, so that n units hold the best n // T of every target.

    Args:
        score_TU: Scores of each target, higher is kept; -inf is allowed.
        tie_break_TU: Decides between equal scores of a target; zeros where nothing does.
        rule: One of the four.
        sharpness: Of soft_min, above 0; percentiles further apart than 1 / sharpness hardly mix.

    Returns:
        Scores (U,), and what decides between equal ones (U,): the mean percentile. The order of
        the targets changes neither.

    Raises:
        ValueError: Shapes differ, a score is NaN or inf, the rule unknown, sharpness not above 0.

    Higher is kept. Memory: 16 T U bytes.
    """
    if score_TU.ndim != 2 or score_TU.shape != tie_break_TU.shape or not len(score_TU):
        raise ValueError(f"scores {score_TU.shape}, tie breaks {tie_break_TU.shape}: need T by U")
    if np.isposinf(score_TU).any():
        raise ValueError("a score is inf, beside which nothing else counts")
    if not 0 < sharpness < np.inf:
        raise ValueError(f"sharpness must be above 0, got {sharpness}")
    pairs = list(zip(score_TU, tie_break_TU, strict=True))
    percentile_TU = np.stack([mid_ranks(*pair) for pair in pairs]) / score_TU.shape[1]
    # sums then do not depend on the order of the targets, not even in the last digit
    percentile_TU.sort(axis=0)
    mean_U = percentile_TU.mean(axis=0)
    match rule:
        case "mean":
            return _standard(score_TU).mean(axis=0), mean_U
        case "max":
            return _standard(score_TU)[-1], mean_U
        case "soft_min":
            return _soft_min(percentile_TU, sharpness), mean_U
        case "round_robin":
            return -np.min([_places(*pair) for pair in pairs], axis=0), mean_U
    raise ValueError(f"rule must be mean, max, round_robin or soft_min, got {rule!r}")


def _standard(score_TU: Floats) -> Floats:
    """Return standard scores, the targets of each unit in ascending order; -inf stays."""
    standard_TU = np.full(score_TU.shape, -np.inf)
    for standard_U, score_U in zip(standard_TU, score_TU, strict=True):
        finite = np.isfinite(score_U)
        deviation = score_U[finite].std() if finite.any() else 0.0
        standard_U[finite] = (score_U[finite] - score_U[finite].mean()) / (deviation or 1.0)
    standard_TU.sort(axis=0)
    return standard_TU


def _soft_min(sorted_TU: Floats, sharpness: float) -> Floats:
    above_TU = sorted_TU - sorted_TU[0]  # at least one exponential is then 1
    minimum: Floats = sorted_TU[0] - np.log(np.exp(-sharpness * above_TU).mean(axis=0)) / sharpness
    return minimum


def _places(score_U: Floats, tie_break_U: Floats) -> Floats:
    """Return the place of each unit, 0 is best; exact ties go to the lower index."""
    places = np.empty(len(score_U))
    places[np.lexsort((-tie_break_U, -score_U))] = np.arange(len(score_U))
    return places
