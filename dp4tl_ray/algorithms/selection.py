"""Selection: scores of units -> an order of the examples -> kept examples.

Every selector is an order of all examples, best first, and keeping at a ratio keeps a prefix of
it: a larger ratio keeps a subset of what a smaller one keeps, and budgets are exact. A unit is
what receives a score: a class, a cluster, or one example. Shapes: U units, N examples.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Scores:
    """Scores of the units of a source; higher is kept, one score serves all ratios."""

    score_U: npt.NDArray[np.float64]
    tie_break_U: npt.NDArray[np.float64]
    """Decides between equal scores, higher first; then the lower unit index."""
    unit_of_N: npt.NDArray[np.int64]
    """Unit of each example."""
    priority_N: npt.NDArray[np.float64]
    """Order of the examples within a unit, higher first; then the lower example index."""

    def ranked_units(self) -> npt.NDArray[np.int64]:
        """Return the units, best first."""
        return np.lexsort((-self.tie_break_U, -self.score_U))


def top_order(scores: Scores) -> npt.NDArray[np.int64]:
    """Order the examples by their unit, best first, and within a unit by priority, (N,)."""
    ranked_U = scores.ranked_units()
    rank_of_U = np.empty_like(ranked_U)
    rank_of_U[ranked_U] = np.arange(len(ranked_U))
    return np.lexsort((-scores.priority_N, rank_of_U[scores.unit_of_N]))


def stratified_order(scores: Scores, labels_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Order the examples so that every prefix holds nearly the same share of each class, (N,).

    Within a class, and between classes whose turn it is, the order is top_order.

    Args:
        scores: Scores of the units.
        labels_N: Class of each example.
    """
    best_first_N = top_order(scores)
    place_N, size_N = _places(labels_N[best_first_N])
    return best_first_N[np.argsort((place_N + 0.5) / size_N, kind="stable")]


def quota_order(scores: Scores, alpha: float) -> npt.NDArray[np.int64]:
    """Order the examples so that a prefix holds units in proportion to size * mass**alpha, (N,).

    The mass of a unit is its score. Quotas follow Webster's divisor method: example i = 0, 1, ...
    of unit u is worth n_u mass_u**alpha / (i + 1/2), and a unit that runs out leaves its share to
    the others. alpha = 0 is stratified over units, alpha = inf is top_order; between them, larger
    concentrates more. Units without mass come last where alpha > 0. Ties follow top_order.

    Args:
        scores: Scores of the units, as masses.
        alpha: Strength of the scores, in [0, inf].

    Raises:
        ValueError: alpha is negative, or a score is negative or not finite.
    """
    mass_U = scores.score_U
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    if not (np.isfinite(mass_U) & (mass_U >= 0)).all():
        raise ValueError("a quota needs scores that are masses: finite and at least 0")
    best_first_N = top_order(scores)
    if math.isinf(alpha) or not mass_U.any():
        return best_first_N
    strength_U = np.zeros(len(mass_U))
    if alpha > 0:
        strength_U[mass_U == 0] = -np.inf
        has_mass = mass_U > 0
        # logs, because mass**alpha leaves the range of a float
        strength_U[has_mass] = alpha * (np.log(mass_U[has_mass]) - np.log(mass_U.max()))
    unit_N = scores.unit_of_N[best_first_N]
    place_N, size_N = _places(unit_N)
    # the quotient is rounded once, so that exact ties stay ties under the logarithm
    worth_N = strength_U[unit_N] - np.log((place_N + 0.5) / size_N)
    return best_first_N[np.argsort(-worth_N, kind="stable")]


def ccs_order(
    example_score_N: npt.NDArray[np.float64],
    generator: np.random.Generator,
    *,
    hardest: float = 0.1,
    num_strata: int = 50,
) -> npt.NDArray[np.int64]:
    """Order the examples by coverage-centric coreset selection (CCS), (N,).

    The hardest examples are set aside, the range of the other scores is cut into strata of equal
    width, and the strata take turns, the harder first, each with a random example. So the budget
    of a prefix fills strata like water: equally, up to their size. The hardest come last, the
    least hard of them first.

    An infinite score belongs to the hardest as far as they reach, and what is left over to the
    stratum at its end of the range; the range is that of the finite scores.

    Args:
        example_score_N: Difficulty, higher is harder. Equal scores are shuffled.
        generator: Source of randomness.
        hardest: Fraction to set aside, in [0, 1).
        num_strata: Number of strata, at least 1; some may be empty.

    Raises:
        ValueError: A score is NaN, or a parameter is outside its range.

    Zheng et al. 2023, arXiv:2210.15809.
    """
    if np.isnan(example_score_N).any():
        raise ValueError("CCS needs scores that are numbers, and some are NaN")
    if not 0 <= hardest < 1:
        raise ValueError(f"hardest must be in [0, 1), got {hardest}")
    if num_strata < 1:
        raise ValueError(f"num_strata must be at least 1, got {num_strata}")
    num_rest = len(example_score_N) - round(hardest * len(example_score_N))
    shuffled_N = generator.permutation(len(example_score_N))
    easy_first_N = shuffled_N[np.argsort(example_score_N[shuffled_N], kind="stable")]
    rest = generator.permutation(easy_first_N[:num_rest])
    stratum = _equal_width_strata(example_score_N[rest], num_strata)
    place, _ = _places(stratum)
    return np.concatenate([rest[np.lexsort((-stratum, place))], easy_first_N[num_rest:]])


def gumbel_order(
    scores: Scores, generator: np.random.Generator, *, temperature: float
) -> npt.NDArray[np.int64]:
    """Draw units one by one without replacement, p ~ exp(score / temperature), (N,).

    The order of their examples is top_order's; units with a score of -inf come last. Where each
    example is its own unit, examples are drawn. Adding Gumbel noise and sorting is this draw.

    Args:
        scores: Scores of the units, as log-probabilities up to the temperature.
        generator: Source of randomness.
        temperature: Above 0; towards 0 the order is top_order, towards inf it is random.

    Raises:
        ValueError: The temperature is not a positive number.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a number above 0, got {temperature}")
    noise_U = temperature * generator.gumbel(size=len(scores.score_U))
    return top_order(replace(scores, score_U=scores.score_U + noise_U))


def kept_prefix(order_N: npt.NDArray[np.int64], pruning_ratio: float) -> npt.NDArray[np.int64]:
    """Return the first round((1 - ratio) N) examples of an order, as ascending indices.

    Raises:
        ValueError: The ratio is outside [0, 1), or keeps nothing.
    """
    return np.sort(order_N[: _num_kept(len(order_N), pruning_ratio, "examples")])


def kept_whole_units(scores: Scores, pruning_ratio: float) -> npt.NDArray[np.int64]:
    """Return the examples of the round((1 - ratio) U) best units, ascending.

    The paper's rule over classes; the number of examples follows from their sizes.

    Raises:
        ValueError: The ratio is outside [0, 1), or keeps nothing.
    """
    ranked_U = scores.ranked_units()
    kept_units = ranked_U[: _num_kept(len(ranked_U), pruning_ratio, "units")]
    kept = np.flatnonzero(np.isin(scores.unit_of_N, kept_units))
    if not len(kept):
        raise ValueError(
            f"pruning_ratio {pruning_ratio:g} keeps {len(kept_units)} of {len(ranked_U)} units, "
            "and no example is in them"
        )
    return kept


def _num_kept(total: int, pruning_ratio: float, what: str) -> int:
    """Return round((1 - ratio) total), which must not be 0."""
    if not 0 <= pruning_ratio < 1:
        raise ValueError(f"pruning_ratio must be in [0, 1), got {pruning_ratio}")
    kept = round((1 - pruning_ratio) * total)
    if kept == 0:
        raise ValueError(f"pruning_ratio {pruning_ratio:g} keeps none of {total} {what}")
    return kept


def _places(
    group_N: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each entry how many of its group come before it, and the size of the group."""
    by_group_N = np.argsort(group_N, kind="stable")
    sizes = np.bincount(group_N)
    place_N = np.empty(len(group_N), np.int64)
    place_N[by_group_N] = np.arange(len(group_N)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return place_N, sizes[group_N]


def _equal_width_strata(score_N: npt.NDArray[np.float64], num_strata: int) -> npt.NDArray[np.int64]:
    """Cut the range of the finite scores into strata, 0 the lowest; infinite ones at the ends."""
    finite = score_N[np.isfinite(score_N)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    # equal scores have a range of 0 and make one stratum
    fraction_N = (np.clip(score_N, low, high) - low) / ((high - low) or 1.0)
    return np.minimum((fraction_N * num_strata).astype(np.int64), num_strata - 1)
