"""Nearest neighbours between a source and a target.

Shapes: N source examples, T target examples, D features, k neighbours; n and t, the source and
target examples of a chunk. The N x T similarities are never held: the source is read once for
every TARGETS target examples.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.kmeans import Features, Indices, load_rows
from dp4tl_ray.algorithms.memory import CHUNK_BYTES, row_chunks

Floats = npt.NDArray[np.float64]

TARGETS = 1024
"""Target examples searched for at once."""


def max_cosine(
    source_ND: Features,
    target_TD: Features,
    *,
    device: torch.device | str = "cpu",
    chunk_bytes: int = CHUNK_BYTES,
) -> Floats:
    """Score each source example by its cosine to the most similar target example, (N,).

    NormSim with the infinity norm, Wang et al. 2024. Higher is more relevant and kept; an example
    of all zeros has cosine 0.

    Raises:
        ValueError: The target is empty, or has other features than the source.

    Memory: 8 N bytes and one chunk.
    """
    _check(source_ND, target_TD)
    score_N = np.full(len(source_ND), -np.inf)
    for block in _target_blocks(target_TD):
        for part, cosine_tn in _cosines(source_ND, target_TD, block, device, chunk_bytes):
            _raise_to(score_N[part], cosine_tn.amax(dim=0))
    return score_N


def normsim_2(
    source_ND: Features,
    target_TD: Features,
    *,
    device: torch.device | str = "cpu",
    chunk_bytes: int = CHUNK_BYTES,
) -> Floats:
    """Score each source example by the root mean square of its cosines to the target, (N,).

    NormSim with the Euclidean norm, Wang et al. 2024: sqrt(h S h) with h the source example at
    unit length and S the mean outer product of the target examples at unit length. Higher is more
    relevant and kept.

    Raises:
        ValueError: As `max_cosine`.

    Memory: 8 N + 20 D^2 bytes and one chunk.
    """
    _check(source_ND, target_TD)
    dim = source_ND.shape[1]
    outer_DD = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    for part in row_chunks(len(target_TD), 8 * dim, chunk_bytes):
        h_tD = F.normalize(load_rows(target_TD, part, device))
        outer_DD += h_tD.T @ h_tD
    mean_outer_DD = (outer_DD / len(target_TD)).float()
    score_N = np.empty(len(source_ND))
    for part in row_chunks(len(source_ND), 16 * dim, chunk_bytes):
        h_nD = F.normalize(load_rows(source_ND, part, device))
        squared_n = torch.linalg.vecdot(h_nD @ mean_outer_DD, h_nD).clamp_(min=0)
        score_N[part] = squared_n.double().sqrt().cpu().numpy()
    return score_N


def nearest_source(
    target_TD: Features,
    source_ND: Features,
    k: int,
    *,
    device: torch.device | str = "cpu",
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Indices, Floats]:
    """Find the k source examples nearest to each target example, nearest first.

    The search is exact up to the rounding of float32 products, about 1e-6 |x|^2; the distances of
    those found are then computed in float64 from differences, so that a duplicate is at 0. Equal
    distances are ordered by index.

    Returns:
        Indices into the source (T, k) and squared distances (T, k).

    Raises:
        ValueError: k is not in [1, N], the target is empty, or the features differ.

    Memory: 24 T k bytes and one chunk.
    """
    _check(source_ND, target_TD)
    _check_k(k, len(source_ND))
    index_Tk = np.empty((len(target_TD), k), np.int64)
    for block in _target_blocks(target_TD):
        target_tD = load_rows(target_TD, block, device)
        norm_t1 = torch.linalg.vecdot(target_tD, target_tD)[:, None]
        nearest = _no_neighbors(target_tD)
        for part in _source_chunks(source_ND, target_tD, chunk_bytes):
            x_nD = load_rows(source_ND, part, device)
            norm_n = torch.linalg.vecdot(x_nD, x_nD)
            distance_tn = torch.addmm(norm_n, target_tD, x_nD.T, alpha=-2).add_(norm_t1)
            nearest = _merge(nearest, distance_tn, part.start, k)
        index_Tk[block] = _indices(nearest)
    return _exact(target_TD, source_ND, index_Tk, chunk_bytes)


def retrieval_scores(
    source_ND: Features,
    target_TD: Features,
    *,
    num_neighbors: int,
    device: torch.device | str = "cpu",
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Floats, Floats]:
    """Score source examples by their best place in the neighbour lists of the target examples.

    Each target example lists the num_neighbors source examples of highest cosine, place 1 first.
    Every target example adds its first choice before any adds its second, so what is kept is
    the union of equally long lists and no target example goes without.

    Returns:
        The score (N,): minus the best place in any list, -(num_neighbors + 1) in none. The tie
        break (N,): the cosine to the most similar target example, as `max_cosine`. Higher is kept
        in both.

    Raises:
        ValueError: num_neighbors is not in [1, N], the target is empty, or the features differ.

    Memory: 16 N bytes, 8 TARGETS num_neighbors and one chunk.
    """
    _check(source_ND, target_TD)
    _check_k(num_neighbors, len(source_ND))
    place_N = np.full(len(source_ND), num_neighbors + 1.0)
    tie_break_N = np.full(len(source_ND), -np.inf)
    for block in _target_blocks(target_TD):
        nearest = _no_neighbors(load_rows(target_TD, block, device))
        for part, cosine_tn in _cosines(source_ND, target_TD, block, device, chunk_bytes):
            _raise_to(tie_break_N[part], cosine_tn.amax(dim=0))
            nearest = _merge(nearest, 1 - cosine_tn, part.start, num_neighbors)
        for place, index_t in enumerate(_indices(nearest).T, start=1):
            place_N[index_t] = np.minimum(place_N[index_t], place)
    return -place_N, tie_break_N


def coverage_radius(
    target_TD: Features,
    kept_ND: Features,
    *,
    device: torch.device | str = "cpu",
    chunk_bytes: int = CHUNK_BYTES,
) -> Floats:
    """Return the distance from each target example to its nearest kept source example, (T,).

    Raises:
        ValueError: Nothing is kept, the target is empty, or the features differ.

    Memory: 24 T bytes and one chunk.
    """
    _, squared_T1 = nearest_source(target_TD, kept_ND, 1, device=device, chunk_bytes=chunk_bytes)
    radius_T: Floats = np.sqrt(squared_T1[:, 0])
    return radius_T


def _target_blocks(target_TD: Features) -> Iterator[slice]:
    """Yield blocks of target examples."""
    return row_chunks(len(target_TD), 1, TARGETS)


def _source_chunks(source_ND: Features, target_tD: Tensor, chunk_bytes: int) -> Iterator[slice]:
    """Yield chunks of source examples: each needs itself twice, products and merge entries."""
    num_targets, dim = target_tD.shape
    return row_chunks(len(source_ND), 4 * (2 * dim + 6 * num_targets), chunk_bytes)


def _cosines(
    source_ND: Features,
    target_TD: Features,
    block: slice,
    device: torch.device | str,
    chunk_bytes: int,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the cosines of a block of target examples to chunks of the source, (t, n)."""
    unit_tD = F.normalize(load_rows(target_TD, block, device))
    for part in _source_chunks(source_ND, unit_tD, chunk_bytes):
        yield part, unit_tD @ F.normalize(load_rows(source_ND, part, device)).T


def _raise_to(score_n: Floats, other_n: Tensor) -> None:
    """Take the larger of both, in place."""
    np.maximum(score_n, other_n.cpu().numpy(), out=score_n)


def _no_neighbors(target_tD: Tensor) -> Tensor:
    """Return empty lists to start `_merge` with."""
    return torch.empty(len(target_tD), 0, dtype=torch.int64, device=target_tD.device)


def _merge(nearest_tk: Tensor, distance_tn: Tensor, start: int, k: int) -> Tensor:
    """Merge distances to the source examples from `start` on into lists of the k nearest.

    An entry is one integer of the distance and the index, so that equal distances are ordered by
    index: the bits of floats that are not negative are ordered as the floats are.
    """
    index_n = torch.arange(start, start + distance_tn.shape[1], device=distance_tn.device)
    entry_tn = distance_tn.clamp_(min=0).view(torch.int32).long()
    entry_tn.bitwise_left_shift_(32).bitwise_or_(index_n)
    return _smallest(torch.cat([nearest_tk, _smallest(entry_tn, k)], dim=1), k)


def _smallest(entry_tn: Tensor, k: int) -> Tensor:
    """Return the k smallest of each row, in any order."""
    if entry_tn.shape[1] <= k:
        return entry_tn
    return entry_tn.topk(k, largest=False, sorted=False).values


def _indices(nearest_tk: Tensor) -> Indices:
    """Return the indices in entries of `_merge`, nearest first."""
    index_tk: Indices = (nearest_tk.sort(dim=1).values & 0xFFFFFFFF).cpu().numpy()
    return index_tk


def _exact(
    target_TD: Features, source_ND: Features, index_Tk: Indices, chunk_bytes: int
) -> tuple[Indices, Floats]:
    """Compute squared distances from differences, and order by them and then by index."""
    index_Tk.sort(axis=1)
    squared_Tk = np.empty(index_Tk.shape)
    num_neighbors, dim = index_Tk.shape[1], source_ND.shape[1]
    for part in row_chunks(len(index_Tk), 24 * num_neighbors * dim, chunk_bytes):
        target_t1D = target_TD[part].astype(np.float64)[:, None]
        difference_tkD = source_ND[index_Tk[part]].astype(np.float64) - target_t1D
        squared_Tk[part] = np.einsum("tkd,tkd->tk", difference_tkD, difference_tkD)
    order_Tk = squared_Tk.argsort(axis=1, kind="stable")
    return np.take_along_axis(index_Tk, order_Tk, 1), np.take_along_axis(squared_Tk, order_Tk, 1)


def _check(source_ND: Features, target_TD: Features) -> None:
    """Refuse a target without examples or with other features than the source."""
    if source_ND.ndim != 2 or source_ND.shape[1:] != target_TD.shape[1:] or not len(target_TD):
        raise ValueError(
            f"a target of shape {target_TD.shape} for a source of shape {source_ND.shape}: "
            "it must have one row or more and the same number of features"
        )


def _check_k(k: int, num_examples: int) -> None:
    """Refuse more neighbours than there are examples, or none."""
    if not 1 <= k <= num_examples:
        raise ValueError(f"{k} neighbours among {num_examples} source examples; allowed: 1 to that")
