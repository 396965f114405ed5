"""Density ratios: how much more probable is a source example in the target than in the source?

Shapes: N source examples, T target examples, D features, K codes.
"""

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.algorithms.kmeans import Features, Indices, load_rows
from dp4tl_ray.algorithms.linear_probe import solve_probe
from dp4tl_ray.algorithms.memory import CHUNK_BYTES, require_memory, row_chunks

Floats = npt.NDArray[np.float64]


def domain_classifier_scores(
    source_ND: Features,
    target_TD: Features,
    generator: np.random.Generator,
    *,
    num_negatives: int = 10_000,
    l2: float = 1e-3,
    limit_bytes: float,
    chunk_bytes: int = CHUNK_BYTES,
) -> Floats:
    """Score source examples by the logit of a linear classifier of target against source, (N,).

    Logistic regression on standardised features of all target examples against a uniform sample
    of the source. The logit estimates the log density ratio up to a constant. Higher looks more
    like the target and is kept.

    Args:
        source_ND: Features of the source.
        target_TD: Features of the target.
        generator: Draws the sample of the source.
        num_negatives: Source examples to fit on; all of a smaller source.
        l2: Strength of the penalty of `solve_probe`.
        limit_bytes: Memory that may be used.
        chunk_bytes: Temporary memory of one chunk.

    Raises:
        MemoryLimitError: The examples to fit on do not fit.
        ValueError: The features differ, or an example set is empty.

    Memory: 8 N + 32 (T + num_negatives) D bytes and one chunk.
    """
    if source_ND.shape[1:] != target_TD.shape[1:] or not len(source_ND) or not len(target_TD):
        raise ValueError(
            f"a target of shape {target_TD.shape} for a source of shape {source_ND.shape}: "
            "both must have one row or more and the same number of features"
        )
    num_examples, dim = source_ND.shape
    num_negatives = min(num_negatives, num_examples)
    require_memory(
        32.0 * (len(target_TD) + num_negatives) * dim,
        limit_bytes,
        "fitting a domain classifier, 32 (T + num_negatives) D",
        "lower num_negatives or give fewer target examples",
    )
    negatives = np.sort(generator.choice(num_examples, num_negatives, replace=False))
    features = torch.cat([load_rows(source_ND, negatives), load_rows(target_TD, slice(None))])
    is_target = torch.arange(len(features)) >= num_negatives
    probe = solve_probe(features, is_target.long(), 2, l2)
    weight_D = (probe.weight_KD[1] - probe.weight_KD[0]) / probe.scale_D
    bias = probe.bias_K[1] - probe.bias_K[0] - probe.mean_D @ weight_D
    score_N = np.empty(num_examples)
    for part in row_chunks(num_examples, 12 * dim, chunk_bytes):
        score_N[part] = (load_rows(source_ND, part).double() @ weight_D + bias).numpy()
    return score_N


def dsir_scores(
    source_cluster_N: Indices,
    target_cluster_T: Indices,
    num_clusters: int,
    *,
    smoothing: float = 1.0,
) -> Floats:
    """Score source examples by the log ratio of how often their code occurs, (N,).

    log p_target(code) - log p_source(code), where a code is the cluster of an example and
    `smoothing` is added to every count. Higher is more typical of the target and kept. All
    examples of a cluster are equal.

    Raises:
        ValueError: smoothing is not positive, or a cluster is not in [0, num_clusters).

    Data selection with importance resampling, Xie et al. 2023, arXiv:2302.03169.
    Memory: 8 N + 32 K bytes.
    """
    if not smoothing > 0:
        raise ValueError(f"smoothing must be positive, got {smoothing}")
    target_K = _log_frequencies(target_cluster_T, num_clusters, smoothing)
    source_K = _log_frequencies(source_cluster_N, num_clusters, smoothing)
    scores: Floats = (target_K - source_K)[source_cluster_N]
    return scores


def _log_frequencies(cluster_N: Indices, num_clusters: int, smoothing: float) -> Floats:
    """Return the log share of each cluster, (K,), after adding `smoothing` to its count."""
    if len(cluster_N) and not 0 <= cluster_N.min() <= cluster_N.max() < num_clusters:
        raise ValueError(
            f"clusters from {cluster_N.min()} to {cluster_N.max()}; "
            f"allowed: 0 to {num_clusters - 1}"
        )
    count_K = np.bincount(cluster_N, minlength=num_clusters) + smoothing
    frequencies: Floats = np.log(count_K) - np.log(count_K.sum())
    return frequencies
