"""Agreement of scores and of kept sets: cheap triage before anything is trained.

Shapes: U units (classes, clusters or examples).
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def spearman(a_U: Floats, b_U: Floats) -> float:
    """Return Spearman's rank correlation of two scores of the same units; ties get mean ranks.

    Such as the scores by two halves of a target: low means that the target is too small to tell.
    NaN where either is constant, for then there is no order to agree on.

    Raises:
        ValueError: The scores differ in shape, or one is NaN.
    """
    if a_U.shape != b_U.shape or a_U.ndim != 1:
        raise ValueError(f"needs two scores of the same units, got {a_U.shape} and {b_U.shape}")
    a, b = mid_ranks(a_U), mid_ranks(b_U)
    a -= a.mean()
    b -= b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def mean_jaccard(kept: Sequence[npt.NDArray[np.int64]]) -> float:
    """Return the mean over pairs of kept sets of |intersection| / |union|; two empty ones give 1.

    Such as the sets kept under several seeds: two random ones that keep a share q of many
    examples share q / (2 - q).

    Args:
        kept: Indices that each set keeps, in any order.

    Raises:
        ValueError: There are fewer than two sets.
    """
    if len(kept) < 2:
        raise ValueError(f"needs two kept sets or more, got {len(kept)}")
    return float(np.mean([_jaccard(a, b) for a, b in combinations(map(np.unique, kept), 2)]))


def mid_ranks(score_U: Floats, tie_break_U: Floats | None = None) -> Floats:
    """Return ascending ranks from 1 to U, (U,); equal pairs (score, tie break) get the mean rank.

    Raises:
        ValueError: A value is NaN.
    """
    keys = [score_U] if tie_break_U is None else [tie_break_U, score_U]
    if any(np.isnan(key).any() for key in keys):
        raise ValueError("scores must not be NaN: it has no rank")
    order = np.lexsort(keys)
    starts_group = np.ones(len(order), bool)
    starts_group[1:] = np.any([key[order[1:]] != key[order[:-1]] for key in keys], axis=0)
    group = starts_group.cumsum() - 1
    size = np.bincount(group)
    ranks = np.empty(len(order))
    ranks[order] = (size.cumsum() - (size - 1) / 2)[group]
    return ranks


def _jaccard(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - shared
    return shared / union if union else 1.0
