"""Nearest-neighbour classification: similar training images vote for their classes.

Shapes: N training examples, M queries, D features, K classes, k neighbours; m, the queries of a
chunk. The M x N similarities are never held.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.memory import CHUNK_BYTES, row_chunks


def knn_predict(
    train: tuple[Tensor, Tensor],
    query_MD: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[int, Tensor]:
    """Predict the class of each query by a weighted vote of its k most similar examples.

    A neighbour votes with exp(cosine / temperature) (Wu et al. 2018, arXiv:1805.01978). Equal votes
    go to the lower class. A feature vector of zeros has cosine 0 to everything.

    Args:
        train: Features (N, D) and classes in [0, num_classes), (N,).
        query_MD: Features of the queries, on the same device.
        num_classes: K.
        ks: Numbers of neighbours, in [1, N].
        temperature: Small ones let the nearest neighbours decide.
        chunk_bytes: Temporary memory of one chunk.

    Returns:
        k -> predicted classes, (M,).

    Raises:
        ValueError: A k is not in [1, N].
    """
    train_ND, labels_N = F.normalize(train[0].float()), train[1]
    if not 1 <= min(ks) <= max(ks) <= len(train_ND):
        raise ValueError(
            f"{sorted(ks)} neighbours among {len(train_ND)} examples; allowed: 1 to that"
        )
    predicted: dict[int, list[Tensor]] = {k: [] for k in sorted(ks)}
    bytes_per_query = 4 * (2 * train_ND.shape[1] + 2 * len(train_ND)) + 32 * max(ks)
    for part in row_chunks(len(query_MD), bytes_per_query + 8 * num_classes, chunk_bytes):
        cosine_mN = F.normalize(query_MD[part].float()) @ train_ND.T
        cosine_mk, index_mk = cosine_mN.topk(max(ks))
        # relative to the nearest one, which no temperature can overflow
        weight_mk = ((cosine_mk.double() - cosine_mk[:, :1]) / temperature).exp()
        votes_mK = weight_mk.new_zeros(len(index_mk), num_classes)
        counted = 0
        for k in sorted(ks):
            some = slice(counted, k)
            votes_mK.scatter_add_(1, labels_N[index_mk[:, some]], weight_mk[:, some])
            predicted[k].append(votes_mK.argmax(dim=1))
            counted = k
    return {k: torch.cat(parts) for k, parts in predicted.items()}


def best_k(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> tuple[int, float]:
    """Choose the number of neighbours on validation; more than there are examples count as all.

    Returns:
        The number and its validation accuracy. Ties go to the smaller number.
    """
    possible = sorted({min(k, len(train[0])) for k in ks})
    predicted = knn_predict(train, val[0], num_classes, possible, temperature)
    accuracy = {k: float((predicted[k] == val[1]).double().mean()) for k in possible}
    best = max(possible, key=accuracy.__getitem__)  # the first of equal ones
    return best, accuracy[best]
