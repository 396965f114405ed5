"""Gradient matching: a coreset whose mean gradient is near that of the target.

Gradients are those of the cross-entropy with respect to weight and bias of a linear head, in
closed form: g_i = e_i x [h_i; 1] with the error e = softmax(logits) - one_hot(label), so that
<g_i, g_j> = <e_i, e_j> (<h_i, h_j> + 1) and no gradient of an example is ever formed.
Shapes: N source examples, T target examples, C source classes, D features, n examples of a block.
"""

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.algorithms.coresets import (
    SMALLER_BLOCKS,
    blocks,
    herding_order,
    place_scores,
)
from dp4tl_ray.algorithms.memory import require_memory, row_chunks

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Model = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]


def gradient_gram(
    error_a: Singles, features_a: Singles, error_b: Singles, features_b: Singles
) -> Singles:
    """Return the inner products of the gradients of examples a with those of b, (A, B).

    Args:
        error_a: softmax(logits) - one_hot(label) of the examples a, (A, C).
        features_a: Their features, (A, D).
        error_b: As error_a, (B, C).
        features_b: As features_a, (B, D).

    Memory: 8 A B bytes.
    """
    gram = features_a @ features_b.T
    gram += 1
    gram *= error_a @ error_b.T
    return gram


def map_labels(logits_TC: Model, labels_T: Indices) -> Indices:
    """Give each target class the source class that most of its examples are classified as, (T,).

    Two target classes may share a source class. Ties go to the lower source class.

    Args:
        logits_TC: Logits of the source classifier on the target.
        labels_T: Target classes, at least 0.

    Raises:
        ValueError: There is not one label per example.

    Memory: 8 K C bytes for K target classes.
    """
    if len(logits_TC) != len(labels_T):
        raise ValueError(f"got {len(labels_T)} labels for {len(logits_TC)} target examples")
    num_classes = logits_TC.shape[1]
    vote_T = np.empty(len(labels_T), np.int64)
    for part in row_chunks(len(labels_T), 4 * num_classes):
        vote_T[part] = np.asarray(logits_TC[part], np.float32).argmax(axis=1)
    num_targets = int(labels_T.max(initial=-1)) + 1
    votes = np.bincount(
        labels_T.astype(np.int64) * num_classes + vote_T, minlength=num_targets * num_classes
    )
    mapped: Indices = votes.reshape(num_targets, num_classes).argmax(axis=1)[labels_T]
    return mapped


def target_gradient(logits_TC: Model, features_TD: Model, mapped_labels_T: Indices) -> Floats:
    """Return the mean gradient of the target, (C, D + 1), the bias in the last column.

    Args:
        logits_TC: Logits of the source classifier on the target.
        features_TD: Penultimate features of the target.
        mapped_labels_T: Source class that stands for the label of each example.

    Raises:
        ValueError: Shapes differ, a label is no source class, or there is no example.

    Memory: 12 C (D + 1) bytes.
    """
    _require_model(logits_TC, features_TD, mapped_labels_T)
    if not len(mapped_labels_T):
        raise ValueError("the target has no examples")
    num_classes, dim = logits_TC.shape[1], features_TD.shape[1]
    total = np.zeros((num_classes, dim + 1))
    for part in row_chunks(len(mapped_labels_T), 8 * (num_classes + dim)):
        error = _errors(logits_TC, mapped_labels_T, np.arange(part.start, part.stop))
        total[:, :dim] += error.T @ np.asarray(features_TD[part], np.float32)
        total[:, dim] += error.sum(axis=0, dtype=np.float64)
    total /= len(mapped_labels_T)
    return total


def gradient_matching_scores(
    logits_NC: Model,
    features_ND: Model,
    labels_N: Indices,
    target_gradient_CD1: Floats,
    block_of_N: Indices,
    *,
    limit_bytes: float,
) -> Floats:
    """Score source examples by how early they bring the mean gradient to the target's, (N,).

    Greedy per block: with t chosen examples S and the target's mean gradient g, the next is
    argmin_j |(t + 1) g - sum_S g_i - g_j|. This is the objective of GradMatch with equal weights,
    because pretraining weighs every kept example equally, and with the target as validation set.

    Args:
        logits_NC: Logits of the source classifier, read one block at a time.
        features_ND: Its penultimate features, read one block at a time.
        labels_N: Source classes.
        target_gradient_CD1: What target_gradient returns.
        block_of_N: Block of each example, at least 0; random ones are miniatures of the source.
        limit_bytes: Memory that may be used.

    Returns:
        -(place + 1/2) / n, higher is chosen earlier. Ties go to the lower index.

    Raises:
        ValueError: Shapes differ, or a label is no source class.
        MemoryLimitError: A block does not fit.

    Killamsetty et al. 2021. Memory: 8 n^2 + 8 n (C + D) bytes for the largest
    block.
    """
    _require_model(logits_NC, features_ND, labels_N)
    num_classes, dim = logits_NC.shape[1], features_ND.shape[1]
    if target_gradient_CD1.shape != (num_classes, dim + 1):
        raise ValueError(
            f"the target gradient must be {(num_classes, dim + 1)}, got {target_gradient_CD1.shape}"
        )
    weight, bias = np.split(target_gradient_CD1.astype(np.float32), [dim], axis=1)
    score_N = np.empty(len(labels_N))
    for rows in blocks(features_ND, block_of_N):
        num = len(rows)
        what = f"gradient matching in a block of {num} examples, 8 n^2 + 8 n (C + D)"
        require_memory(8.0 * num * (num + num_classes + dim), limit_bytes, what, SMALLER_BLOCKS)
        error = _errors(logits_NC, labels_N, rows)
        features = np.asarray(features_ND[rows], np.float32)
        gram_nn = gradient_gram(error, features, error, features)
        target_n = np.einsum("nd,nd->n", error @ weight, features) + (error @ bias)[:, 0]
        order = herding_order(gram_nn.__getitem__, gram_nn.diagonal(), target_n.astype(float))
        score_N[rows[order]] = place_scores(num)
    return score_N


def _errors(logits: Model, labels: Indices, rows: Indices) -> Singles:
    """Return softmax(logits) - one_hot(label) of some rows."""
    z = torch.from_numpy(np.asarray(logits[rows], np.float32))
    error: Singles = torch.softmax(z, dim=1).numpy()
    error[np.arange(len(rows)), labels[rows]] -= 1
    return error


def _require_model(logits: Model, features: Model, labels: Indices) -> None:
    """Refuse arrays that do not describe the same examples."""
    if not len(logits) == len(features) == len(labels):
        raise ValueError(
            f"logits, features and labels are of {len(logits)}, {len(features)} and "
            f"{len(labels)} examples"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"labels must be source classes, in [0, {logits.shape[1]})")
