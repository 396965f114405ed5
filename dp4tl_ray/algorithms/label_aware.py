"""Label mapping that reads the labels of the target: which source class tells which target class?

Shapes: N target examples, T target classes that have examples, C source classes.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.class_distance import add_by_label
from dp4tl_ray.algorithms.label_mapping import softmax
from dp4tl_ray.algorithms.memory import CHUNK_BYTES, row_chunks

Floats = npt.NDArray[np.float64]


def label_aware_scores(
    logits_NC: npt.NDArray[np.floating[Any]],
    labels_N: npt.NDArray[np.int64],
    *,
    statistic: Literal["counts", "mutual_information"],
    smoothing: float = 1.0,
    balanced: bool = True,
    soft: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Floats:
    """Score source classes by what their predictions say about the labels of the target, (C,).

    counts: the share of target class t among the examples that are predicted as k, count(k, t) /
    (count(k) + smoothing), normalised over k, summed over t. After the Bayesian label mapping of
    Cai et al. 2024, arXiv:2410.24018. Scores sum to 1.

    mutual_information: the part of source class k in the mutual information of label and
    prediction, sum_t J_tk log(J_tk / (J_t J_k)) in nats, where J is the mean predicted probability
    within each label; the joint distribution of LEEP (Nguyen et al. 2020, arXiv:2002.12462). A
    source class that is predicted often, but for every target class alike, scores 0.

    Args:
        logits_NC: Logits of the surrogate on the target, read in chunks.
        labels_N: Labels of the target, any integers; a class without examples is simply absent.
        statistic: Which of the two.
        smoothing: Examples of evidence against a rare source class, 0 or more. counts only.
        balanced: Weigh every target class alike; otherwise by its number of examples.
        soft: Sum predicted probabilities instead of counting predicted classes. counts only;
            mutual_information always does.
        chunk_bytes: Memory of a chunk.

    Raises:
        ValueError: There is no example, logits and labels differ in number, the statistic is
            unknown or the smoothing negative.

    Higher is kept. Memory: 24 T C bytes + O(chunk) + O(N).
    """
    if logits_NC.ndim != 2 or labels_N.shape != logits_NC.shape[:1] or not len(labels_N):
        raise ValueError(f"logits {logits_NC.shape} and labels {labels_N.shape} do not match")
    if statistic not in ("counts", "mutual_information"):
        raise ValueError(f"statistic must be counts or mutual_information, got {statistic!r}")
    if not 0 <= smoothing < np.inf:
        raise ValueError(f"smoothing must be 0 or more, got {smoothing}")
    present_T, class_N = np.unique(labels_N, return_inverse=True)
    size_T = np.bincount(class_N)
    weight_T = np.full(len(size_T), 1 / len(size_T)) if balanced else size_T / len(labels_N)
    counted = statistic == "counts" and not soft
    table_TC = np.zeros((len(present_T), logits_NC.shape[1]))
    for part in row_chunks(len(labels_N), 32 * logits_NC.shape[1], chunk_bytes):
        logits = np.asarray(logits_NC[part], np.float32)
        if counted:
            np.add.at(table_TC, (class_N[part], logits.argmax(axis=1)), 1)
        else:
            add_by_label(table_TC, softmax(logits), class_N[part])
    if statistic == "counts":
        return weight_T @ _normalised_shares(table_TC, smoothing)
    return _mutual_information_parts(table_TC * (weight_T / size_T)[:, None])


def _normalised_shares(table_TC: Floats, smoothing: float) -> Floats:
    """Return the share of each target class in a source class, normalised over source classes."""
    evidence_C = table_TC.sum(axis=0) + smoothing
    share_TC = table_TC / np.where(evidence_C > 0, evidence_C, 1)
    normalised: Floats = share_TC / share_TC.sum(axis=1, keepdims=True)
    return normalised


def _mutual_information_parts(joint_TC: Floats) -> Floats:
    """Return sum_t J log(J / (J_t J_k)) of a joint distribution, (C,); 0 log 0 is 0."""
    seen_TC = joint_TC > 0
    log_TC = np.log(joint_TC, out=np.zeros_like(joint_TC), where=seen_TC)
    label_T1 = joint_TC.sum(axis=1, keepdims=True)
    predicted_C = joint_TC.sum(axis=0)
    log_TC -= np.log(label_T1)
    log_TC -= np.log(predicted_C, out=np.zeros_like(predicted_C), where=predicted_C > 0)
    parts: Floats = (joint_TC * log_TC).sum(axis=0)
    return parts
