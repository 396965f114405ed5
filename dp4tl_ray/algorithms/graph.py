"""D2 pruning: message passing over a graph of neighbours, to balance difficulty and diversity.

Shapes: N examples, D features, K neighbours, n examples of one block.
"""

import heapq
import math

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.algorithms.coresets import SMALLER_BLOCKS, blocks, centred
from dp4tl_ray.algorithms.memory import require_memory, row_chunks

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]
Squares = npt.NDArray[np.float32]


def neighbor_graph(
    features_ND: Features, block_of_N: Indices, *, num_neighbors: int, limit_bytes: float
) -> tuple[Indices, Squares]:
    """Find the nearest neighbours of each example among the others of its block, exactly.

    Args:
        features_ND: Features, read one block at a time.
        block_of_N: Block of each example, at least 0: a class, or all 0 for one graph.
        num_neighbors: K, at least 1.
        limit_bytes: Memory that may be used.

    Returns:
        The neighbours, nearest first, and their squared Euclidean distances, both (N, K). Where
        a block has too few others, the example itself at an infinite distance.

    Raises:
        ValueError: K is below 1, or there is not one block per example.
        MemoryLimitError: The graph and the features of a block do not fit.

    Memory: 12 N K + 4 n D bytes, n the size of the largest block. Time: n^2 D per block.
    """
    if num_neighbors < 1:
        raise ValueError(f"num_neighbors must be at least 1, got {num_neighbors}")
    num_examples, dim = features_ND.shape
    largest = int(np.bincount(block_of_N).max(initial=0))
    require_memory(
        12.0 * num_examples * num_neighbors + 4.0 * largest * dim,
        limit_bytes,
        f"{num_neighbors} neighbours of {num_examples} examples, 12 N K, and a block of "
        f"{largest}, 4 n D",
        SMALLER_BLOCKS,
    )
    neighbor_NK = np.tile(np.arange(num_examples)[:, None], num_neighbors)
    square_NK = np.full(neighbor_NK.shape, np.inf, np.float32)
    for rows in blocks(features_ND, block_of_N):
        x_nD = torch.from_numpy(centred(features_ND, rows))
        norm_n = x_nD.square().sum(dim=1)
        num_found = min(num_neighbors, len(rows) - 1)
        for part in row_chunks(len(rows), 4 * len(rows)):
            own = torch.arange(part.start, part.stop)
            square = torch.addmm(norm_n, x_nD[part], x_nD.T, alpha=-2) + norm_n[part, None]
            square[own - part.start, own] = torch.inf
            nearest = square.topk(num_found, dim=1, largest=False)
            neighbor_NK[rows[part], :num_found] = rows[nearest.indices.numpy()]
            square_NK[rows[part], :num_found] = nearest.values.clamp(min=0).numpy()
    return neighbor_NK, square_NK


def d2_order(
    example_score_N: Floats,
    neighbor_NK: Indices,
    square_NK: Squares,
    *,
    gamma_forward: float = 1.0,
    gamma_reverse: float = 1.0,
) -> Indices:
    """Order examples by D2 pruning: difficult, in difficult regions, and far from each other.

    Forward, each example takes up the difficulty of its neighbours N(i):
        x_i <- x_i + sum_{j in N(i)} exp(-gamma_forward d_ij^2 / s^2) x_j
    and then the largest is chosen again and again, and lowers its neighbours:
        x_j <- x_j - exp(-gamma_reverse d_ij^2 / s^2) x_i, for j in N(i).
    s^2 is the mean of d_ij^2 over the graph, so that gamma does not depend on the scale of the
    features. The graph is directed.

    Args:
        example_score_N: Difficulty, higher is harder, at least 0.
        neighbor_NK: Neighbours of each example.
        square_NK: Their squared distances; at an infinite one no message is passed.
        gamma_forward: Above 0; larger passes fewer messages forward.
        gamma_reverse: Above 0; larger asks for less diversity.

    Returns:
        The examples in the order they are chosen, (N,). Ties go to the lower index.

    Raises:
        ValueError: A score is negative or not finite, or a gamma is not a positive number.

    Maharana et al. 2024, arXiv:2310.07931, there without s^2. Memory: N K
    bytes and the heap of about 200 N. Time: N K log N.
    """
    for name, gamma in {"gamma_forward": gamma_forward, "gamma_reverse": gamma_reverse}.items():
        if not 0 < gamma < math.inf:
            raise ValueError(f"{name} must be a number above 0, got {gamma}")
    if not (np.isfinite(example_score_N) & (example_score_N >= 0)).all():
        raise ValueError("D2 needs scores that are finite and at least 0: shift or rank them first")
    scale = _mean_edge(square_NK)
    value_N = example_score_N.astype(np.float64)
    for part in row_chunks(len(value_N), 24 * neighbor_NK.shape[1]):
        weight = np.exp(-gamma_forward / scale * square_NK[part])
        value_N[part] += (weight * example_score_N[neighbor_NK[part]]).sum(axis=1)
    return _pick_order(value_N.tolist(), neighbor_NK, square_NK, gamma_reverse / scale)


def _mean_edge(square_NK: Squares) -> float:
    """Return the mean squared distance over the graph; 1 where all are 0 or there are none."""
    is_edge_NK = np.isfinite(square_NK)
    if not is_edge_NK.any():
        return 1.0
    return float(square_NK.mean(dtype=np.float64, where=is_edge_NK)) or 1.0


def _pick_order(
    value_N: list[float], neighbor_NK: Indices, square_NK: Squares, gamma: float
) -> Indices:
    """Choose the largest value again and again, each lowering its neighbours.

    The heap holds an upper bound of every value. A value that falls is corrected when it comes
    up; one that rises, as the neighbour of a negative one does, gets a second entry.
    """
    heap = [(-value, i) for i, value in enumerate(value_N)]
    heapq.heapify(heap)
    waiting = [True] * len(value_N)
    order = []
    while heap:
        bound, chosen = heapq.heappop(heap)
        if not waiting[chosen]:
            continue
        value = value_N[chosen]
        if -bound > value:
            heapq.heappush(heap, (-value, chosen))
            continue
        waiting[chosen] = False
        order.append(chosen)
        message_K = (np.exp(-gamma * square_NK[chosen]) * value).tolist()
        for other, message in zip(neighbor_NK[chosen].tolist(), message_K, strict=True):
            value_N[other] -= message
            if message < 0 and waiting[other]:
                heapq.heappush(heap, (-value_N[other], other))
    return np.array(order, np.int64)
