"""Coresets: greedy orders of examples within blocks, from features.

A block is a class, a random part, or everything; the methods cost O(n^2 D) for a block of n. A
score is -(place + 1/2) / n, where place is the position in the greedy order of the block: the
best examples of all blocks together hold the same share of each block, and within it the greedy
coreset. Shapes: N examples, D features, n examples of one block.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.memory import require_memory, row_chunks

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]
Block = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
GramRow = Callable[[int], Block]

GRAM_ROWS = 4096
"""Largest block whose Gram matrix is kept, 4 n^2 bytes; beyond, a row is computed when needed."""
SMALLER_BLOCKS = "use smaller blocks, such as classes or random_blocks"


def herding_scores(features_ND: Features, block_of_N: Indices, *, limit_bytes: float) -> Floats:
    """Score by herding: each step brings the mean of the chosen nearest to the block's mean, (N,).

    With t chosen examples S and the mean mu, the next is argmin_j |(t + 1) mu - sum_S h - h_j|.

    Args:
        features_ND: Features, read one block at a time.
        block_of_N: Block of each example, at least 0.
        limit_bytes: Memory that may be used.

    Returns:
        -(place + 1/2) / n, higher is chosen earlier. Ties go to the lower index.

    Raises:
        MemoryLimitError: A block does not fit.

    Welling 2009. Memory: 4 n D + 4 min(n, 4096)^2 bytes for the largest block.
    """
    score_N = np.empty(len(block_of_N))
    for rows in blocks(features_ND, block_of_N):
        x_nD = _greedy_block(features_ND, rows, limit_bytes)
        norm_n = np.einsum("nd,nd->n", x_nD, x_nD)
        # centred features have their mean, the target, at 0
        order = herding_order(_gram_row(x_nD), norm_n, np.zeros(len(rows)))
        score_N[rows[order]] = place_scores(len(rows))
    return score_N


def k_center_scores(features_ND: Features, block_of_N: Indices, *, limit_bytes: float) -> Floats:
    """Score by greedy k-center: the next is the example farthest from all chosen ones, (N,).

    The first is the example nearest to the mean of the block. The radius of every prefix is at
    most twice the best radius for its size.

    Args:
        features_ND: Features, read one block at a time.
        block_of_N: Block of each example, at least 0.
        limit_bytes: Memory that may be used.

    Returns:
        -(place + 1/2) / n, higher is chosen earlier. Ties go to the lower index.

    Raises:
        MemoryLimitError: A block does not fit.

    Sener and Savarese 2018, arXiv:1708.00489. Memory: 4 n D + 4 min(n, 4096)^2 bytes for the
    largest block.
    """
    score_N = np.empty(len(block_of_N))
    for rows in blocks(features_ND, block_of_N):
        x_nD = _greedy_block(features_ND, rows, limit_bytes)
        score_N[rows[_k_center_order(x_nD)]] = place_scores(len(rows))
    return score_N


def facility_location_scores(
    features_ND: Features, block_of_N: Indices, *, limit_bytes: float
) -> Floats:
    """Score by greedy facility location: maximise sum_i max_{j in S} s_ij in a block, (N,).

    The similarity is s_ij = (1 + cos(h_i, h_j)) / 2, which is at least 0; the cosine with a
    feature of length 0 counts as 0. The greedy value is at least 1 - 1/e of the best.

    Args:
        features_ND: Features, read one block at a time.
        block_of_N: Block of each example, at least 0.
        limit_bytes: Memory that may be used.

    Returns:
        -(place + 1/2) / n, higher is chosen earlier. Ties go to the lower index.

    Raises:
        MemoryLimitError: A block does not fit.

    Nemhauser et al. 1978 for the greedy, Minoux 1978 for its lazy form. Memory: 4 n^2 + 4 n D
    bytes for the largest block.
    """
    score_N = np.empty(len(block_of_N))
    for rows in blocks(features_ND, block_of_N):
        num, dim = len(rows), features_ND.shape[1]
        what = f"facility location in a block of {num} examples, 4 n^2 + 4 n D"
        require_memory(4.0 * num * (num + dim), limit_bytes, what, SMALLER_BLOCKS)
        x_nD = _loaded(features_ND, rows)
        x_nD /= np.maximum(np.linalg.norm(x_nD, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        similarity_nn = x_nD @ x_nD.T
        similarity_nn += 1
        similarity_nn /= 2
        # now multiples of 2^-25, whose sums are exact in float64: two examples that only cover
        # each other always have equal gains, and stay a tie if each covers itself by exactly 1
        np.fill_diagonal(similarity_nn, 1)
        score_N[rows[_facility_location_order(similarity_nn)]] = place_scores(num)
    return score_N


def moderate_scores(
    features_ND: Features, labels_N: Indices, *, scope: Literal["class", "source"]
) -> Floats:
    """Score by nearness to the median distance: neither typical nor far from the class, (N,).

    The distance of an example is |h_i - median of its class|, the median taken per feature. It
    is ranked, and the central quantiles are kept: the score is -|(rank + 1/2) / n - 1/2|.

    Args:
        features_ND: Features, read in parts.
        labels_N: Class of each example, at least 0.
        scope: Ranks within the class, or among all examples.

    Returns:
        At most 0; higher is more central. Equal distances are ranked by index.

    Xia et al. 2023, Moderate Coreset.
    """
    distance_N = np.empty(len(labels_N))
    for rows in blocks(features_ND, labels_N):
        median_D = _median(features_ND, rows)
        for part in row_chunks(len(rows), 8 * features_ND.shape[1]):
            x = np.asarray(features_ND[rows[part]], np.float32)
            distance_N[rows[part]] = np.linalg.norm(x - median_D, axis=1)
    score_N = np.empty(len(labels_N))
    ranked = labels_N if scope == "class" else np.zeros_like(labels_N)
    for rows in blocks(features_ND, ranked):
        nearest_first = rows[np.argsort(distance_N[rows], kind="stable")]
        score_N[nearest_first] = -np.abs(-place_scores(len(rows)) - 0.5)
    return score_N


def random_blocks(num_examples: int, block_size: int, generator: np.random.Generator) -> Indices:
    """Deal the examples at random to as few blocks of at most block_size as possible, (N,).

    The sizes of two blocks differ by at most 1.

    Raises:
        ValueError: The block size is below 1.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    num_blocks = -(-num_examples // block_size)
    return generator.permutation(np.arange(num_examples) % max(num_blocks, 1))


def blocks(features_ND: Features, block_of_N: Indices) -> Iterator[Indices]:
    """Yield the examples of each block, ascending.

    Raises:
        ValueError: There is not one block per example.
    """
    if block_of_N.shape != features_ND.shape[:1]:
        raise ValueError(
            f"needs one block per example, got {block_of_N.shape} blocks and "
            f"{features_ND.shape} features"
        )
    by_block_N = np.argsort(block_of_N, kind="stable")
    starts = np.flatnonzero(np.diff(block_of_N[by_block_N])) + 1
    yield from (rows for rows in np.split(by_block_N, starts) if len(rows))


def centred(features_ND: Features, rows: Indices) -> Block:
    """Read some rows of the features and subtract their mean, which sharpens their differences."""
    x_nD = _loaded(features_ND, rows)
    x_nD -= x_nD.mean(axis=0, dtype=np.float64).astype(np.float32)
    return x_nD


def place_scores(size: int) -> Floats:
    """Return the scores of a block's examples in their greedy order, -(place + 1/2) / size."""
    scores: Floats = -(np.arange(size) + 0.5) / size
    return scores


def herding_order(gram_row: GramRow, norm_n: Block, target_n: Floats) -> Indices:
    """Order vectors so that the mean of every prefix is near a target, greedily, (n,).

    With t chosen vectors S and the target g, the next is argmin_j |(t + 1) g - sum_S x - x_j|^2,
    which up to a constant is |x_j|^2 + 2 sum_S <x_s, x_j> - 2 (t + 1) <g, x_j>.

    Args:
        gram_row: Inner products of vector i with all, (n,).
        norm_n: Squared lengths of the vectors.
        target_n: Inner products of the target with the vectors.
    """
    cost_n = norm_n.astype(np.float64)
    order = np.empty(len(norm_n), np.int64)
    for step in range(len(order)):
        cost_n -= 2 * target_n
        order[step] = chosen = int(cost_n.argmin())
        cost_n += 2 * gram_row(chosen)
        cost_n[chosen] = np.inf
    return order


def _k_center_order(x_nD: Block) -> Indices:
    """Order centred features farthest first, from the one nearest to the mean."""
    gram_row = _gram_row(x_nD)
    norm_n = np.einsum("nd,nd->n", x_nD, x_nD)
    order = np.empty(len(x_nD), np.int64)
    # squared distance to the nearest chosen example; -inf once chosen
    nearest_n = np.full(len(x_nD), np.inf, np.float32)
    chosen = int(norm_n.argmin())
    for step in range(len(order)):
        order[step] = chosen
        square_n = norm_n + norm_n[chosen] - 2 * gram_row(chosen)
        np.minimum(nearest_n, square_n, out=nearest_n)
        nearest_n[chosen] = -np.inf
        chosen = int(nearest_n.argmax())
    return order


def _facility_location_order(similarity_nn: Block) -> Indices:
    """Order by gain, lazily: a gain only falls, so one that is still on top is the largest."""
    order = np.empty(len(similarity_nn), np.int64)
    best_n = np.zeros(len(similarity_nn))

    def gain(candidate: int) -> float:
        return float(np.maximum(similarity_nn[candidate] - best_n, 0).sum())

    heap = [(-gain(i), i) for i in range(len(similarity_nn))]
    heapq.heapify(heap)
    for step in range(len(order)):
        while True:
            chosen = heap[0][1]
            entry = (-gain(chosen), chosen)
            if entry == heap[0]:
                break
            heapq.heapreplace(heap, entry)
        heapq.heappop(heap)
        order[step] = chosen
        np.maximum(best_n, similarity_nn[chosen], out=best_n)
    return order


def _gram_row(x_nD: Block) -> GramRow:
    """Return what gives the inner products of vector i with all."""
    if len(x_nD) > GRAM_ROWS:
        return lambda i: x_nD @ x_nD[i]
    gram_nn = x_nD @ x_nD.T
    return lambda i: gram_nn[i]


def _greedy_block(features_ND: Features, rows: Indices, limit_bytes: float) -> Block:
    """Return the centred features of a block, if they and the Gram matrix fit."""
    num, dim = len(rows), features_ND.shape[1]
    needed = 4.0 * num * dim + 4.0 * min(num, GRAM_ROWS) ** 2
    what = f"the greedy order of a block of {num} examples, 4 n D + 4 min(n, {GRAM_ROWS})^2"
    require_memory(needed, limit_bytes, what, SMALLER_BLOCKS)
    return centred(features_ND, rows)


def _loaded(features_ND: Features, rows: Indices) -> Block:
    """Read the features of a block."""
    x_nD = np.empty((len(rows), features_ND.shape[1]), np.float32)
    for part in row_chunks(len(rows), 4 * features_ND.shape[1]):
        x_nD[part] = features_ND[rows[part]]
    return x_nD


def _median(features_ND: Features, rows: Indices) -> Block:
    """Return the median per feature, (D,), a few features at a time where the block is large."""
    median_D = np.empty(features_ND.shape[1], np.float32)
    for part in row_chunks(len(median_D), 12 * len(rows)):
        x = np.asarray(features_ND[rows, part], np.float32)
        median_D[part] = np.median(x, axis=0)
    return median_D
