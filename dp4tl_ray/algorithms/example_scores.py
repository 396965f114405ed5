"""Scores of single examples. Shapes: N examples, C classes."""

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.label_mapping import softmax


def el2n_scores(
    logits_NC: npt.NDArray[np.float32], labels_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the error norm |softmax(logits) - one_hot(label)|_2, (N,).

    Paul et al. 2021, arXiv:2107.07075.
    """
    error_NC = softmax(logits_NC)
    error_NC[np.arange(len(labels_N)), labels_N] -= 1
    norms: npt.NDArray[np.float64] = np.linalg.norm(error_NC, axis=1)
    return norms


def stratified_scores(
    priority_N: npt.NDArray[np.float64], labels_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Order examples so that every prefix holds nearly the same share of each class.

    Args:
        priority_N: Order within a class, higher first.
        labels_N: Class of each example.
    """
    order = np.lexsort((-priority_N, labels_N))
    sizes = np.bincount(labels_N)
    starts = np.concatenate([[0], sizes.cumsum()[:-1]])
    place_N = np.empty(len(labels_N))
    place_N[order] = np.arange(len(labels_N)) - starts[labels_N[order]]
    scores: npt.NDArray[np.float64] = -(place_N + 0.5) / sizes[labels_N]
    return scores
