"""Selection: scores of units and a pruning ratio -> kept examples.

A unit is what receives a score: a class, a cluster, or one example. Shapes: U units, N examples.
"""

from dataclasses import dataclass

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
    """Order of the examples within a unit, higher first."""

    def ranked_units(self) -> npt.NDArray[np.int64]:
        """Return the units, best first."""
        index_U = np.arange(len(self.score_U))
        return np.lexsort((index_U, -self.tie_break_U, -self.score_U))


def kept_indices(scores: Scores, pruning_ratio: float, whole_units: bool) -> npt.NDArray[np.int64]:
    """Return the kept examples, ascending.

    With whole_units, keep the round((1 - ratio) U) best units, the paper's rule over classes.
    Otherwise keep exactly round((1 - ratio) N) examples: the best units whole, the last one in
    part. Either way a larger ratio keeps a subset of what a smaller one keeps.

    Raises:
        ValueError: The ratio is outside [0, 1).
    """
    if not 0 <= pruning_ratio < 1:
        raise ValueError(f"pruning_ratio must be in [0, 1), got {pruning_ratio}")
    ranked_U = scores.ranked_units()
    if whole_units:
        kept_units = ranked_U[: round((1 - pruning_ratio) * len(ranked_U))]
        return np.flatnonzero(np.isin(scores.unit_of_N, kept_units))
    rank_of_U = np.empty_like(ranked_U)
    rank_of_U[ranked_U] = np.arange(len(ranked_U))
    best_first_N = np.lexsort(
        (np.arange(len(scores.unit_of_N)), -scores.priority_N, rank_of_U[scores.unit_of_N])
    )
    return np.sort(best_first_N[: round((1 - pruning_ratio) * len(best_first_N))])
