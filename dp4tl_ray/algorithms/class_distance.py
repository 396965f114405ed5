"""Distances of classes: which source classes lie near the classes of the target?

Shapes: N examples, D features, C source classes, T target classes or target examples, U source
units (classes or clusters).
"""

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.algorithms.memory import CHUNK_BYTES, require_memory, row_chunks

Floats = npt.NDArray[np.float64]

LIMIT_BYTES = 4 * 2**30


def class_means(
    features_ND: npt.NDArray[np.floating[Any]],
    labels_N: npt.NDArray[np.int64],
    num_classes: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the mean feature (C, D) and the number of examples (C,) of each class.

    The mean of a class without examples is NaN, which `emd_greedy_scores` understands.

    Args:
        features_ND: Features, read in chunks.
        labels_N: Classes in [0, num_classes).
        num_classes: C.
        chunk_bytes: Memory of a chunk.

    Raises:
        ValueError: Examples and labels differ in number, or a label is outside its range.

    Memory: 8 C D bytes + O(chunk).
    """
    if features_ND.ndim != 2 or labels_N.shape != features_ND.shape[:1]:
        raise ValueError(f"features {features_ND.shape} and labels {labels_N.shape} do not match")
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < num_classes:
        raise ValueError(f"labels must be in [0, {num_classes})")
    means_CD = np.zeros((num_classes, features_ND.shape[1]))
    for part in row_chunks(len(labels_N), 24 * features_ND.shape[1], chunk_bytes):
        add_by_label(means_CD, np.asarray(features_ND[part], np.float64), labels_N[part])
    count_C = np.bincount(labels_N, minlength=num_classes)
    means_CD[count_C == 0] = np.nan
    means_CD /= np.maximum(count_C, 1)[:, None]
    return means_CD, count_C


def add_by_label(total_CD: Floats, rows_ND: Floats, labels_N: npt.NDArray[np.int64]) -> None:
    """Add each row to the total of its label, in place."""
    order_N = np.argsort(labels_N, kind="stable")
    present, starts = np.unique(labels_N[order_N], return_index=True)
    total_CD[present] += np.add.reduceat(rows_ND[order_N], starts, axis=0)


def emd_greedy_scores(source_means_CD: Floats, target_means_TD: Floats) -> tuple[Floats, Floats]:
    """Score source classes by how early a target class in turn would pick them.

    Every target class picks its nearest source class, then its second nearest, and so on: a
    score is minus the best place (0 is nearest) that any target class gives the source class.
    Only the order of distances matters, so similarities exp(-gamma * distance) give the same.
    After the domain similarity and greedy choice of Cui et al. 2018, arXiv:1806.06193.

    Args:
        source_means_CD: As `class_means` returns them; NaN for a class without examples.
        target_means_TD: The same of the target; classes without examples have no say.

    Returns:
        Scores (C,), and what decides between equal ones (C,): minus the distance to the nearest
        target class that gives the best place. Both -inf for a class without examples.

    Raises:
        ValueError: The features differ in number, or no target class has an example.

    Higher is kept. Memory: 24 T C + 8 C D + 8 T D bytes.
    """
    if source_means_CD.ndim != 2 or target_means_TD.shape[1:] != source_means_CD.shape[1:]:
        raise ValueError(
            f"means of source {source_means_CD.shape} and target {target_means_TD.shape} "
            "must have the same features"
        )
    present_C = ~np.isnan(source_means_CD).any(axis=1)
    present_T = ~np.isnan(target_means_TD).any(axis=1)
    if not present_T.any():
        raise ValueError("no target class has an example")
    # differences, not products: a class that is in both datasets is at distance 0 exactly
    distance_TC = torch.cdist(
        torch.from_numpy(np.asarray(target_means_TD[present_T], np.float64)),
        torch.from_numpy(np.asarray(source_means_CD[present_C], np.float64)),
        compute_mode="donot_use_mm_for_euclid_dist",
    ).numpy()
    place_TC = np.empty(distance_TC.shape, np.int64)
    order_TC = np.argsort(distance_TC, axis=1, kind="stable")
    np.put_along_axis(place_TC, order_TC, np.arange(distance_TC.shape[1])[None], axis=1)
    best_C = place_TC.min(axis=0)
    score_C = np.full(len(source_means_CD), -np.inf)
    tie_break_C = score_C.copy()
    score_C[present_C] = -best_C
    tie_break_C[present_C] = -np.where(place_TC == best_C, distance_TC, np.inf).min(axis=0)
    return score_C, tie_break_C


def facility_location_mutual_information_scores(
    similarity_TU: npt.NDArray[np.floating[Any]],
    *,
    eta: float = 1.0,
    limit_bytes: float = LIMIT_BYTES,
) -> Floats:
    """Score units by their place in the greedy order of a facility-location mutual information.

    Maximises sum_t max_{u in A} s_tu + eta * sum_{u in A} max_t s_tu (FLQMI): the first sum
    covers the target, the second rewards what is close to it. Once the target is covered the
    first can grow no more, and the order goes on by the second. The objective is monotone and
    submodular, so every prefix is within 1 - 1/e of the best set of its size. Evaluated lazily:
    a gain can only shrink, so most need no second look. Kothawade et al. 2021, arXiv:2103.00128.

    Args:
        similarity_TU: Similarities, 0 or more, of target classes or examples with source units.
        eta: Weight of closeness against coverage, 0 or more.
        limit_bytes: Memory that may be used.

    Returns:
        Minus the place of each unit, (U,): 0 is chosen first. Equal gains go to the lower index.

    Raises:
        ValueError: A similarity is negative or not finite, or eta is negative.
        MemoryLimitError: 8 T U bytes are more than limit_bytes.

    Higher is kept. Memory: 8 T U + 8 T bytes.
    """
    num_targets, num_units = similarity_TU.shape
    if not 0 <= eta < np.inf:
        raise ValueError(f"eta must be 0 or more, got {eta}")
    require_memory(
        8 * num_targets * num_units,
        limit_bytes,
        f"the similarities of {num_targets} targets and {num_units} units, 8 T U",
        "use the means of the target's classes instead of its examples",
    )
    similarity_UT = np.ascontiguousarray(similarity_TU.T, np.float64)
    if not (similarity_UT >= 0).all() or np.isinf(similarity_UT).any():
        raise ValueError("similarities must be finite and 0 or more, such as exp(-distance)")
    closeness_U = eta * similarity_UT.max(axis=1)
    covered_T = np.zeros(num_targets)

    def gain(unit: int) -> float:
        return float(np.maximum(similarity_UT[unit] - covered_T, 0).sum() + closeness_U[unit])

    score_U = np.empty(num_units)
    queue = [(-gain(unit), unit, 0) for unit in range(num_units)]
    heapq.heapify(queue)
    for place in range(num_units):
        while queue[0][2] < place:  # a bound from an earlier place
            unit = queue[0][1]
            heapq.heapreplace(queue, (-gain(unit), unit, place))
        unit = heapq.heappop(queue)[1]
        score_U[unit] = -place
        np.maximum(covered_T, similarity_UT[unit], out=covered_T)
    return score_U
