"""Has self-supervised training collapsed? How much of the space do the features fill?

Spread tells that all features have become one; effective rank also that they have become a line or
a plane, which spread may not see. Both in float64. Shapes: N examples, D features.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SPREAD = 0.5
"""Spread of embeddings below which a training has collapsed."""
MIN_RANK, MIN_RANK_SHARE = 8.0, 0.25
"""Effective rank below which it has too: so many dimensions, or that share of a narrower space."""


def embedding_spread(features_ND: Tensor) -> float:
    """Return the mean deviation per dimension of the features' directions, times sqrt(D).

    Chen and He 2021 (SimSiam), arXiv:2011.10566, figure 2. About 1 where directions are spread over
    the sphere, 0 where they are all the same; never above 1.
    """
    unit_ND = F.normalize(features_ND.double())
    return float(unit_ND.std(dim=0, correction=0).mean()) * math.sqrt(features_ND.shape[1])


def effective_rank(features_ND: Tensor) -> float:
    """Return the exponential of the entropy of the centred features' normalised singular values.

    Roy and Vetterli 2007, "The effective rank". k where the features vary equally along k
    directions, 1 where they lie on a line, 0 where they are all equal.
    """
    features_ND = features_ND.double()
    centred_ND = features_ND - features_ND.mean(dim=0)
    values = torch.linalg.svdvals(centred_ND)
    # below this, a value may be what rounding leaves of equal features
    rounding = max(features_ND.shape) * torch.finfo(torch.float64).eps
    values = values[values > rounding * torch.linalg.vector_norm(features_ND)]
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp()) if len(values) else 0.0


def collapse_alarm(embedding_spread: float, embedding_rank: float, width: int) -> str:
    """Say in words that embeddings have collapsed; empty where they have not.

    The bounds are far below what trainings that learn were seen to have: a spread above 0.9, and an
    effective rank above a third of the width.

    Args:
        embedding_spread: Of embeddings after the training; about 1 at best.
        embedding_rank: Their effective rank.
        width: Dimensions that they could fill.
    """
    if embedding_spread < MIN_SPREAD:
        return f"collapsed: the embeddings have a spread of {embedding_spread:.2f}, not about 1"
    if embedding_rank < min(MIN_RANK, MIN_RANK_SHARE * width):
        return f"collapsed: the embeddings fill {embedding_rank:.1f} of {width} dimensions"
    return ""
