"""Scores of single examples from logits and features. Shapes: N examples, D features, C classes.

Logits and features may be of any float type and memory-mapped: they are read in chunks, in
float32, so that the memory is a few MiB beside the score. Higher is kept.
"""

from collections.abc import Iterator
from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.memory import row_chunks

Floats = npt.NDArray[np.float64]

CACHE_BYTES = 4 * 2**20
"""Temporary memory of one chunk: each is passed over several times, at the speed of the cache."""


def el2n_scores(
    logits_NC: npt.NDArray[np.floating[Any]], labels_N: npt.NDArray[np.int64]
) -> Floats:
    """Return the error norm |softmax(logits) - one_hot(label)|_2, (N,).

    Large errors are kept first. Paul et al. 2021, arXiv:2107.07075.

    Args:
        logits_NC: Logits.
        labels_N: True class of each example, in [0, C).

    Raises:
        ValueError: The labels do not fit the logits.
    """
    _require_labels(logits_NC, labels_N)
    score_N = np.empty(len(logits_NC))
    for part, shifted_nC in _shifted_chunks(logits_NC):
        exp_nC = np.exp(shifted_nC, out=shifted_nC)
        sum_n = exp_nC.sum(axis=1)
        np.put_along_axis(exp_nC, labels_N[part, None], 0, axis=1)
        # the error of the true class is minus the sum of the others: 1 - p would cancel
        others_n = exp_nC.sum(axis=1)
        score_N[part] = np.sqrt(np.vecdot(exp_nC, exp_nC) + others_n**2) / sum_n
    return score_N


def grand_last_layer_scores(
    logits_NC: npt.NDArray[np.floating[Any]],
    features_ND: npt.NDArray[np.floating[Any]],
    labels_N: npt.NDArray[np.int64],
) -> Floats:
    """Return the norm of the gradient of the cross-entropy in the last layer, (N,).

    For weights and bias together it is |softmax(logits) - one_hot(label)| sqrt(|feature|^2 + 1).
    Large gradients are kept first. GraNd (Paul et al. 2021, arXiv:2107.07075), restricted to the
    last layer.

    Args:
        logits_NC: Logits.
        features_ND: Inputs of the last layer.
        labels_N: True class of each example, in [0, C).

    Raises:
        ValueError: The labels or the features do not fit the logits.
    """
    if len(features_ND) != len(logits_NC):
        raise ValueError(f"{len(features_ND)} features, but logits of {len(logits_NC)} examples")
    score_N = el2n_scores(logits_NC, labels_N)
    for part in row_chunks(len(features_ND), 4 * features_ND.shape[1], CACHE_BYTES):
        feature_nD = np.asarray(features_ND[part], np.float32)
        score_N[part] *= np.sqrt(np.vecdot(feature_nD, feature_nD) + 1)
    return score_N


def uncertainty_scores(
    logits_NC: npt.NDArray[np.floating[Any]],
    measure: Literal["entropy", "margin", "least_confidence"],
) -> Floats:
    """Return how unsure the network is of its prediction, (N,); needs no labels.

    The most uncertain are kept first. With the probabilities p_1 >= p_2 >= ...: the entropy
    -sum p log p in nats, the margin -(p_1 - p_2), or the least confidence 1 - p_1.

    Args:
        logits_NC: Logits of two or more classes.
        measure: Which of the three.

    Raises:
        ValueError: There are fewer than two classes.
    """
    if logits_NC.shape[1] < 2:
        raise ValueError(f"uncertainty needs 2 classes or more, got {logits_NC.shape[1]}")
    score_N = np.empty(len(logits_NC))
    for part, shifted_nC in _shifted_chunks(logits_NC):
        top_n1 = shifted_nC.argmax(axis=1)[:, None]
        exp_nC = np.exp(shifted_nC)
        # the largest is exp(0) = 1; without it, what a confident network leaves is not rounded off
        np.put_along_axis(exp_nC, top_n1, 0, axis=1)
        others_n = exp_nC.sum(axis=1)
        match measure:
            case "entropy":
                weighted_n = np.vecdot(exp_nC, shifted_nC)
                score_N[part] = np.log1p(others_n) - weighted_n / (1 + others_n)
            case "margin":
                score_N[part] = (exp_nC.max(axis=1) - 1) / (1 + others_n)
            case "least_confidence":
                score_N[part] = others_n / (1 + others_n)
            case _:
                assert_never(measure)
    return score_N


def _shifted_chunks(
    logits_NC: npt.NDArray[np.floating[Any]],
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield chunks of logits minus their largest, as copies that the caller may change."""
    # the copy, and one more for its exponential
    for part in row_chunks(len(logits_NC), 8 * logits_NC.shape[1], CACHE_BYTES):
        shifted_nC = np.array(logits_NC[part], np.float32)
        shifted_nC -= shifted_nC.max(axis=1, keepdims=True)
        yield part, shifted_nC


def _require_labels(
    logits_NC: npt.NDArray[np.floating[Any]], labels_N: npt.NDArray[np.int64]
) -> None:
    num_examples, num_classes = logits_NC.shape
    if len(labels_N) != num_examples:
        raise ValueError(f"{len(labels_N)} labels, but logits of {num_examples} examples")
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {labels_N.min()} to {labels_N.max()}"
        )
