"""Scores within clusters: distance to the prototype, and semantic duplicates.

Shapes: N examples, D features, K clusters, n examples of one cluster or chunk.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.kmeans import Features, Indices, load_rows
from dp4tl_ray.algorithms.memory import CHUNK_BYTES, require_memory, row_chunks

Floats = npt.NDArray[np.float64]
Keep = Literal["far", "near"]

NO_DUPLICATE = 2.0
"""Score of the first example of a cluster, above minus any cosine."""


def prototype_scores(
    features_ND: Features,
    centres_KD: npt.NDArray[np.floating],
    cluster_N: Indices,
    *,
    keep: Keep = "far",
    chunk_bytes: int = CHUNK_BYTES,
) -> Floats:
    """Score examples by 1 - cosine to the centre of their own cluster, (N,).

    Args:
        features_ND: Features.
        centres_KD: Centre of each cluster, the prototype.
        cluster_N: Cluster of each example.
        keep: "far" keeps the hard examples, best for a large source; "near" keeps the easy ones,
            best for a small one, and turns the sign.
        chunk_bytes: Temporary memory of one chunk.

    Raises:
        ValueError: There is not one cluster per example, or keep is neither.

    Sorscher et al. 2022, arXiv:2206.14486. Memory: 8 N + 8 K D bytes and one chunk.
    """
    _check(features_ND, cluster_N, keep)
    unit_KD = F.normalize(load_rows(centres_KD, slice(None))).numpy()
    score_N = np.empty(len(features_ND))
    for part in row_chunks(len(features_ND), 16 * features_ND.shape[1], chunk_bytes):
        h_nD = F.normalize(load_rows(features_ND, part))
        cosine_n = torch.linalg.vecdot(h_nD, load_rows(unit_KD, cluster_N[part]))
        score_N[part] = 1 - cosine_n.double().numpy()
    return score_N if keep == "far" else -score_N


def semdedup_scores(
    features_ND: Features,
    cluster_N: Indices,
    *,
    limit_bytes: float,
    keep: Keep = "far",
    chunk_bytes: int = CHUNK_BYTES,
) -> Floats:
    """Score examples by how little they duplicate another one of their cluster, (N,).

    Each cluster is put in order of cosine to its centre, the mean of its examples at unit length.
    The score is minus the largest cosine to an example that comes before, so what is removed first
    is what has the closest duplicate before it. The first of a cluster scores NO_DUPLICATE.

    Args:
        features_ND: Features.
        cluster_N: Cluster of each example.
        limit_bytes: Memory that may be used.
        keep: Which one of two duplicates: "far" orders a cluster from the farthest from its centre
            on, "near" from the nearest on; equals by index.
        chunk_bytes: Temporary memory of one chunk.

    Raises:
        MemoryLimitError: The largest cluster does not fit.
        ValueError: There is not one cluster per example, or keep is neither.

    SemDeDup, Abbas et al. 2023, arXiv:2303.09540. Memory: 8 N bytes, 12 n D for the largest
    cluster of n examples, and one chunk of n cosines per example.
    """
    _check(features_ND, cluster_N, keep)
    size_K = np.bincount(cluster_N)
    largest = int(size_K.max(initial=0))
    require_memory(
        12.0 * largest * features_ND.shape[1] + 4.0 * largest,
        limit_bytes,
        f"a cluster of {largest} examples, 12 n D + 4 n",
        "use more clusters",
    )
    score_N = np.empty(len(features_ND))
    members = np.split(np.argsort(cluster_N, kind="stable"), size_K.cumsum()[:-1])
    for rows_n in members:
        h_nD = F.normalize(load_rows(features_ND, rows_n))
        to_centre_n = h_nD @ F.normalize(h_nD.mean(dim=0), dim=0)
        order_n = to_centre_n.argsort(stable=True, descending=keep == "near")
        redundancy_n = _redundancy(h_nD[order_n], chunk_bytes)
        score_N[rows_n[order_n.numpy()]] = -redundancy_n.double().numpy()
    return score_N


def _redundancy(h_nD: Tensor, chunk_bytes: int) -> Tensor:
    """Return the largest product of each row with a row before it, (n,)."""
    redundancy_n = h_nD.new_full((len(h_nD),), -NO_DUPLICATE)
    for part in row_chunks(len(h_nD), 4 * len(h_nD), chunk_bytes):
        cosine = h_nD[part] @ h_nD[: part.stop].T
        not_before = torch.ones(cosine.shape, dtype=torch.bool).triu(part.start)
        redundancy_n[part] = cosine.masked_fill_(not_before, -NO_DUPLICATE).amax(dim=1)
    return redundancy_n


def _check(features_ND: Features, cluster_N: Indices, keep: Keep) -> None:
    """Refuse a cluster too many or too few, and anything but far and near."""
    if len(cluster_N) != len(features_ND):
        raise ValueError(f"{len(cluster_N)} clusters for {len(features_ND)} examples")
    if keep not in ("far", "near"):
        raise ValueError(f"keep must be 'far' or 'near', got {keep!r}")
