"""Scores of examples from what the network said about them, epoch after epoch of a training.

Shapes: E epochs, N examples. Tables may be memory-mapped; they are read in blocks of columns, so
that the memory is one block beside the score. Higher is kept.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.memory import row_chunks

Floats = npt.NDArray[np.float64]


def forgetting_scores(correct_EN: npt.NDArray[np.bool_]) -> Floats:
    """Count how often an example goes from correct to wrong between two epochs, (N,).

    The forgotten are kept first; an example that is never correct counts as forgotten for ever.
    Toneva et al. 2019, arXiv:1812.05159.

    Args:
        correct_EN: Whether the prediction was correct.

    Returns:
        Number of forgetting events; infinity for an example that was never learned.

    Raises:
        ValueError: There are fewer than two epochs.
    """
    _require_two_epochs(len(correct_EN))
    score_N = np.empty(correct_EN.shape[1])
    for part, correct_En in _column_chunks(correct_EN):
        events_n = (correct_En[:-1] & ~correct_En[1:]).sum(axis=0)
        score_N[part] = np.where(correct_En.any(axis=0), events_n, np.inf)
    return score_N


def aum_scores(
    margin_EN: npt.NDArray[np.floating[Any]], keep: Literal["hard", "easy"] = "hard"
) -> Floats:
    """Return the area under the margin, the margin averaged over the epochs, (N,).

    A small area marks an example that is hard, or whose label is wrong. Pleiss et al. 2020,
    arXiv:2001.10528.

    Args:
        margin_EN: Logit of the true class minus the largest other logit.
        keep: "hard" keeps small areas first and flips the sign; "easy" keeps large ones, as one
            does to drop wrong labels.

    Returns:
        The area, or minus the area for "hard".

    Raises:
        ValueError: There are fewer than two epochs.
    """
    _require_two_epochs(len(margin_EN))
    area_N: Floats = margin_EN.mean(axis=0, dtype=np.float64)
    return -area_N if keep == "hard" else area_N


def dyn_unc_scores(true_probability_EN: npt.NDArray[np.floating[Any]], window: int = 10) -> Floats:
    """Return how much the probability of the true class moves within a window of epochs, (N,).

    The sample standard deviation (divided by window - 1) within a window, averaged over all
    windows; the uncertain are kept first. He et al. 2023, arXiv:2306.05175. The released code
    leaves out the window of the last epoch; here no epoch is left out.

    Args:
        true_probability_EN: Predicted probability of the true class.
        window: Epochs of a window.

    Raises:
        ValueError: There are fewer than two epochs, or the window is not in [2, E].
    """
    num_epochs = len(true_probability_EN)
    _require_two_epochs(num_epochs)
    _require_window(window, 2, num_epochs)
    score_N = np.empty(true_probability_EN.shape[1])
    for part, probability_En in _column_chunks(true_probability_EN):
        deviations = [x_Wn.std(axis=0, ddof=1) for x_Wn in _windows(probability_En, window)]
        score_N[part] = np.mean(deviations, axis=0)
    return score_N


def tdds_scores(
    divergence_EN: npt.NDArray[np.floating[Any]], window: int = 10, decay: float = 0.9
) -> Floats:
    """Return how much the steps between epochs vary, late windows weighing most, (N,).

    Temporal dual-depth scoring. A window of epochs holds window - 1 steps; its value is the norm
    of their deviations from their mean, and the score is the exponential moving average of these
    values: a window that ends t epochs before the last weighs decay (1 - decay)^t. Large values
    are kept first. Zhang et al. 2024, arXiv:2311.13613.

    Args:
        divergence_EN: One row per step from an epoch to the next, E - 1 rows: sum over the classes
            of |p_next (log p_next - log p)|.
        window: Epochs of a window.
        decay: Weight of the last window, in (0, 1].

    Raises:
        ValueError: There are fewer than two epochs, the window is not in [3, E], or the decay is
            not in (0, 1].
    """
    num_epochs = len(divergence_EN) + 1
    _require_two_epochs(num_epochs)
    _require_window(window, 3, num_epochs)
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1], got {decay}")
    score_N = np.zeros(divergence_EN.shape[1])
    for part, steps_En in _column_chunks(divergence_EN):
        for x_Wn in _windows(steps_En, window - 1):
            value_n = np.linalg.norm(x_Wn - x_Wn.mean(axis=0), axis=0)
            score_N[part] = (1 - decay) * score_N[part] + decay * value_n
    return score_N


def _windows(x_En: npt.NDArray[Any], length: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield every run of `length` consecutive rows, in float64, first to last."""
    x_En = x_En.astype(np.float64)
    for start in range(len(x_En) - length + 1):
        yield x_En[start : start + length]


def _column_chunks(table_EN: npt.NDArray[Any]) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Yield blocks of examples: their place and their table, (E, n)."""
    num_epochs, num_examples = table_EN.shape
    # a float64 copy, and one more for what is derived from it
    for part in row_chunks(num_examples, 16 * num_epochs):
        yield part, np.asarray(table_EN[:, part])


def _require_two_epochs(num_epochs: int) -> None:
    if num_epochs < 2:
        raise ValueError(f"training dynamics need 2 complete epochs or more, got {num_epochs}")


def _require_window(window: int, smallest: int, num_epochs: int) -> None:
    if not smallest <= window <= num_epochs:
        raise ValueError(
            f"window must be in [{smallest}, {num_epochs}] for {num_epochs} complete epochs, "
            f"got {window}"
        )
