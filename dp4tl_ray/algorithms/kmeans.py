"""K-means: exact Lloyd iterations over any number of processes, and mini-batches for one.

Shapes: N examples, D features, K clusters, n examples of a chunk or a sample.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.memory import CHUNK_BYTES, row_chunks

Features = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]
Centres = npt.NDArray[np.float32]

CACHE_BYTES = 32 * 2**20
"""On a CPU, a chunk that stays in the cache between the product and the search for its minimum."""
SEEDING_ROWS = 8
"""Examples per cluster among which k-means++ chooses."""
MIN_STEPS = 20
"""Mini-batch steps at least, which a small source gets by more epochs."""
FADE = 0.1
"""Weight that an example of a mini-batch keeps in the next epoch. Examples seen early were
assigned to centres that have moved since; with weight 1 the objective ends 1 to 3 % higher."""
SPLIT = 0.1
"""Distance at which an empty cluster is put beside another, in deviations of the other. Far less
would leave to rounding which examples it takes."""


@dataclass(frozen=True)
class Clusters:
    """Centres, and the examples assigned to them."""

    centres_KD: Centres
    cluster_N: Indices
    squared_distance_N: npt.NDArray[np.float32]
    """From each example to its centre."""
    objective: float
    """Sum of the squared distances, over all processes."""


def kmeans(
    features_ND: Features,
    num_clusters: int,
    generator: np.random.Generator,
    *,
    algorithm: Literal["mini_batch", "lloyd"] = "mini_batch",
    num_iterations: int = 20,
    device: torch.device | str = "cpu",
    chunk_bytes: int = CHUNK_BYTES,
) -> Clusters:
    """Cluster examples, from k-means++ seeds.

    Args:
        features_ND: Features of any float dtype, read in chunks.
        num_clusters: K.
        generator: Draws the seeds and the mini-batches.
        algorithm: "mini_batch" reads the features about four times, more often if they are few;
            "lloyd" num_iterations + 1 times.
        num_iterations: At most, of Lloyd.
        device: Where the products run.
        chunk_bytes: Temporary memory of one chunk.

    Raises:
        ValueError: There are fewer examples than clusters, or a feature is not finite.

    Memory: 20 N + 6 SEEDING_ROWS K D bytes and one chunk.
    """
    if algorithm == "mini_batch":
        return mini_batch_kmeans(
            features_ND, num_clusters, generator, device=device, chunk_bytes=chunk_bytes
        )
    seeds_KD = kmeans_plus_plus(features_ND, num_clusters, generator, device=device)
    return lloyd(
        features_ND,
        seeds_KD,
        num_iterations=num_iterations,
        device=device,
        chunk_bytes=chunk_bytes,
    )


def assign(
    features_ND: Features,
    centres_KD: npt.NDArray[np.floating],
    *,
    device: torch.device | str = "cpu",
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Indices, npt.NDArray[np.float32]]:
    """Find the nearest centre of each example; of equally near ones, the first.

    Distances are |x|^2 - 2 (x c - |c|^2 / 2) in float32: exact to about 1e-6 |x|^2.

    Returns:
        The cluster (N,) and the squared distance (N,) of each example.

    Raises:
        ValueError: A feature or a centre is not finite, or their number of features differs.

    Memory: 12 N + 4 K D bytes and one chunk.
    """
    cluster_N = np.empty(len(features_ND), np.int64)
    squared_distance_N = np.empty(len(features_ND), np.float32)
    centres = _checked_centres(features_ND, centres_KD, device)
    for part, _, cluster_n, squared_distance_n in _nearest(features_ND, centres, None, chunk_bytes):
        cluster_N[part] = cluster_n.cpu().numpy()
        squared_distance_N[part] = squared_distance_n.cpu().numpy()
    return cluster_N, squared_distance_N


def lloyd(
    features_ND: Features,
    centres_KD: npt.NDArray[np.floating],
    *,
    num_iterations: int,
    tolerance: float = 1e-4,
    device: torch.device | str = "cpu",
    chunk_bytes: int = CHUNK_BYTES,
) -> Clusters:
    """Iterate Lloyd's algorithm from given centres: assign all examples, move centres to means.

    The objective never increases. An empty cluster is put beside the centre with the largest
    objective, at a tenth of its deviation, and takes its share in the next iteration.

    Args:
        features_ND: Features.
        centres_KD: Where to start.
        num_iterations: At most.
        tolerance: Stop when the objective falls by less than this fraction.
        device: Where the products run.
        chunk_bytes: Temporary memory of one chunk.

    Raises:
        ValueError: As `assign`.

    Memory: 12 N + 28 K D bytes and one chunk.
    """
    centres = _checked_centres(features_ND, centres_KD, device)
    previous = math.inf
    for _ in range(num_iterations):
        sum_KD, count_K, objective_K = lloyd_sums(features_ND, centres, chunk_bytes=chunk_bytes)
        means_KD = (sum_KD / count_K.clamp(min=1)[:, None]).float()
        centres = torch.where(count_K[:, None] > 0, means_KD, centres)
        _split_largest(centres, count_K, objective_K)
        objective = float(objective_K.sum())
        if objective >= (1 - tolerance) * previous:
            break
        previous = objective
    return _clusters(features_ND, centres, chunk_bytes)


def lloyd_sums(
    features_ND: Features,
    centres_KD: Tensor,
    rows_n: Indices | None = None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Assign examples to their nearest centres and sum over each cluster, reading them once.

    Args:
        features_ND: Examples.
        centres_KD: Centres, on the device where the products shall run.
        rows_n: Only these examples; all by default.
        chunk_bytes: Temporary memory of one chunk.

    Returns:
        In float64: the sum of the examples (K, D), their number (K,) and the sum of their squared
        distances (K,). Sums of disjoint examples add up.
    """
    num_clusters = len(centres_KD)
    sum_KD = torch.zeros_like(centres_KD, dtype=torch.float64)
    count_K = sum_KD.new_zeros(num_clusters)
    objective_K = sum_KD.new_zeros(num_clusters)
    for _, x_nD, cluster_n, distance_n in _nearest(features_ND, centres_KD, rows_n, chunk_bytes):
        count_k = torch.bincount(cluster_n, minlength=num_clusters)
        # the examples of a cluster are a bag: unlike index_add_, the same sum every time on a GPU
        by_cluster_n, start_K = cluster_n.argsort(stable=True), count_k.cumsum(0) - count_k
        sum_KD += F.embedding_bag(by_cluster_n, x_nD, start_K, mode="sum")
        count_K += count_k
        objective_K += torch.bincount(cluster_n, distance_n.double(), num_clusters)
    return sum_KD, count_K, objective_K


def mini_batch_kmeans(
    features_ND: Features,
    num_clusters: int,
    generator: np.random.Generator,
    *,
    batch_size: int = 8192,
    num_epochs: int = 3,
    device: torch.device | str = "cpu",
    chunk_bytes: int = CHUNK_BYTES,
) -> Clusters:
    """Cluster by mini-batches, from k-means++ seeds, and assign all examples once at the end.

    Each centre is the running mean of the examples that were nearest to it, where those of earlier
    epochs fade. Epochs visit every example once, in a new order; there are more of them for a small
    source, until MIN_STEPS steps are done. A centre that was nearest to no example of an epoch is
    put beside another, as in `lloyd`.

    Raises:
        ValueError: There are fewer examples than clusters, or a feature is not finite.

    Sculley 2010. Memory: 20 N + 6 SEEDING_ROWS K D bytes and one chunk.
    """
    seeds_KD = kmeans_plus_plus(features_ND, num_clusters, generator, device=device)
    centres = torch.from_numpy(seeds_KD).to(device)
    num_batches = math.ceil(len(features_ND) / batch_size)
    seen_K = torch.zeros(num_clusters, dtype=torch.float64, device=device)
    for _ in range(max(num_epochs, math.ceil(MIN_STEPS / num_batches))):
        epoch_count_K, epoch_objective_K = torch.zeros_like(seen_K), torch.zeros_like(seen_K)
        order_N = generator.permutation(len(features_ND))
        for batch in np.array_split(order_N, num_batches):
            # in order, because the features may be on disk
            sums = lloyd_sums(features_ND, centres, np.sort(batch), chunk_bytes=chunk_bytes)
            sum_KD, count_K, objective_K = sums
            seen_K += count_K
            moved_KD = (sum_KD - count_K[:, None] * centres) / seen_K.clamp(min=1)[:, None]
            centres += moved_KD.float()
            epoch_count_K += count_K
            epoch_objective_K += objective_K
        seen_K *= FADE * (epoch_count_K > 0)
        _split_largest(centres, epoch_count_K, epoch_objective_K)
    return _clusters(features_ND, centres, chunk_bytes)


def kmeans_plus_plus(
    features_ND: Features,
    num_clusters: int,
    generator: np.random.Generator,
    *,
    device: torch.device | str = "cpu",
) -> Centres:
    """Draw K examples far from each other, among a uniform subsample of SEEDING_ROWS K.

    Each is the best of 2 + log K candidates, drawn in proportion to their squared distance to the
    nearest example drawn before: the one that leaves the smallest sum of squared distances.

    Returns:
        The drawn examples, (K, D).

    Raises:
        ValueError: There are fewer examples than clusters, or a drawn feature is not finite.

    Arthur and Vassilvitskii 2007. Memory: 8 N + 6 SEEDING_ROWS K D bytes.
    """
    num_examples = len(features_ND)
    if not 1 <= num_clusters <= num_examples:
        raise ValueError(
            f"{num_clusters} clusters of {num_examples} examples: "
            "the number of clusters must be in [1, number of examples]"
        )
    num_drawn = min(num_examples, SEEDING_ROWS * num_clusters)
    rows_n = np.sort(generator.choice(num_examples, num_drawn, replace=False))
    x_nD = load_rows(features_ND, rows_n, device)
    norm_n = _squared_norms(x_nD)
    chosen = [int(generator.integers(num_drawn))]
    distance_n = _squared_distances(x_nD, norm_n, chosen)[:, 0].clamp(min=0)
    num_candidates = 2 + int(math.log(num_clusters))
    while len(chosen) < num_clusters:
        cumulative_n = distance_n.double().cumsum(0)
        drawn_c = torch.from_numpy(generator.random(num_candidates)).to(device) * cumulative_n[-1]
        # past the end only where every example equals a chosen one
        row_c = torch.searchsorted(cumulative_n, drawn_c, right=True).clamp_(max=num_drawn - 1)
        distance_nc = _squared_distances(x_nD, norm_n, row_c.tolist()).minimum(distance_n[:, None])
        best = int(distance_nc.sum(dim=0, dtype=torch.float64).argmin())
        chosen.append(int(row_c[best]))
        distance_n = distance_nc[:, best].clamp(min=0)
    return x_nD[chosen].cpu().numpy()


def _squared_distances(x_nD: Tensor, norm_n: Tensor, row_c: list[int]) -> Tensor:
    """Return the squared distances of all examples to some of them, (n, c), before clamping."""
    distance_nc = _linear(x_nD, -2 * x_nD[row_c], norm_n[row_c]).add_(norm_n[:, None])
    distance_nc[row_c, range(len(row_c))] = 0
    return distance_nc


def load_rows(
    features_ND: Features, rows: slice | Indices, device: torch.device | str = "cpu"
) -> Tensor:
    """Return some examples as float32 on a device; not to be changed in place.

    It is a view of the features where these allow it.

    Raises:
        ValueError: A value is not finite.
    """
    # torch takes no array that is read-only, as memory-mapped files are
    part = np.require(features_ND[rows], requirements=["C", "W"])
    x_nD = torch.from_numpy(part).to(device, torch.float32)
    # a sum is several times cheaper than looking at each value
    if not torch.isfinite(x_nD.sum()):
        finite_n = torch.isfinite(x_nD).all(dim=1).cpu().numpy()
        if not finite_n.all():
            row = np.arange(len(features_ND))[rows][~finite_n][0]
            raise ValueError(f"row {row} of features of shape {features_ND.shape} is not finite")
    return x_nD


def _nearest(
    features_ND: Features, centres_KD: Tensor, rows_n: Indices | None, chunk_bytes: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield chunks: where, the examples, their clusters and squared distances."""
    num_clusters, dim = centres_KD.shape
    device = centres_KD.device
    bias_K = -_squared_norms(centres_KD) / 2
    budget = min(chunk_bytes, CACHE_BYTES) if device.type == "cpu" else chunk_bytes
    num_rows = len(features_ND) if rows_n is None else len(rows_n)
    for part in row_chunks(num_rows, 4 * (num_clusters + 3 * dim), budget):
        x_nD = load_rows(features_ND, part if rows_n is None else rows_n[part], device)
        yield part, x_nD, *_nearest_of(x_nD, centres_KD, bias_K)


def _nearest_of(x_nD: Tensor, centres_KD: Tensor, bias_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return cluster and squared distance of each example; bias is -|c|^2 / 2.

    The nearest centre has the largest x c - |c|^2 / 2.
    """
    affinity_nK = _linear(x_nD, centres_KD, bias_K)
    cluster_n = _argmax(affinity_nK)
    largest_n = affinity_nK.gather(1, cluster_n[:, None])[:, 0]
    return cluster_n, _squared_norms(x_nD).sub_(largest_n, alpha=2).clamp_(min=0)


def _squared_norms(x_nD: Tensor) -> Tensor:
    """Return |x|^2, (n,), without a copy of x."""
    norm_n: Tensor = torch.linalg.vector_norm(x_nD, dim=1)
    return norm_n.square_()


def _linear(x_nD: Tensor, weight_KD: Tensor, bias_K: Tensor) -> Tensor:
    """Return x W^T + b, (n, K)."""
    if x_nD.device.type != "cpu":
        return F.linear(x_nD, weight_KD, bias_K)
    # a convolution of pixels is the same product, by oneDNN with two threads or more: on AMD it is
    # a tenth faster than by MKL, and three times with few centres
    pixels = x_nD[None, None].permute(0, 3, 1, 2)
    return F.conv2d(pixels, weight_KD[:, :, None, None], bias_K)[0, :, 0].T


def _argmax(value_nK: Tensor) -> Tensor:
    """Return where each row is largest, (n,); the first of equal places."""
    if value_nK.device.type != "cpu":
        return value_nK.argmax(dim=1)
    # numpy searches a row several times faster than torch
    return torch.from_numpy(value_nK.numpy().argmax(axis=1))


def _clusters(features_ND: Features, centres_KD: Tensor, chunk_bytes: int) -> Clusters:
    """Assign all examples to final centres."""
    centres = centres_KD.cpu().numpy()
    cluster_N, squared_distance_N = assign(
        features_ND, centres, device=centres_KD.device, chunk_bytes=chunk_bytes
    )
    objective = float(squared_distance_N.sum(dtype=np.float64))
    return Clusters(centres, cluster_N, squared_distance_N, objective)


def _split_largest(centres_KD: Tensor, count_K: Tensor, objective_K: Tensor) -> None:
    """Put each centre without examples beside the one with the largest objective, in place.

    That one stays at its mean, so that the objective cannot increase. Without randomness, so that
    all processes do the same.
    """
    objective_K = objective_K.clone()
    dim = centres_KD.shape[1]
    alternating_D = 1 - 2 * (torch.arange(dim, device=centres_KD.device) % 2)
    for empty in torch.nonzero(count_K == 0)[:, 0].tolist():
        largest = int(objective_K.argmax())
        deviation = math.sqrt(float(objective_K[largest] / count_K[largest].clamp(min=1)) / dim)
        centres_KD[empty] = centres_KD[largest] + SPLIT * deviation * alternating_D
        objective_K[largest] /= 2


def _checked_centres(
    features_ND: Features, centres_KD: npt.NDArray[np.floating], device: torch.device | str
) -> Tensor:
    """Return centres as a float32 tensor, not to be changed in place, if they fit the features."""
    if centres_KD.ndim != 2 or features_ND.shape[1:] != centres_KD.shape[1:]:
        raise ValueError(
            f"centres of shape {centres_KD.shape} for features of shape {features_ND.shape}: "
            "both must have one row each and the same number of features"
        )
    return load_rows(centres_KD, slice(None), device)
