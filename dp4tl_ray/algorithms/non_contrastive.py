"""Losses on two views of an image that need no other images as negatives.

They are computed in fp32 even under autocast. Gradients flow into every argument that asks for one:
the papers' stop-gradient at the targets is the caller's.

Shapes: B images, D dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to variances, so that the gradient of their root is finite."""


def negative_cosine(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Return minus the mean cosine of predictions and targets.

    Chen and He 2021 (SimSiam), arXiv:2011.10566, equation 1. The squared distance of unit vectors
    in Grill et al. 2020 (BYOL), arXiv:2006.07733, is 2 + 2 times it.
    """
    prediction_BD, target_BD = _full(prediction_BD), _full(target_BD)
    return -(F.normalize(prediction_BD) * F.normalize(target_BD)).sum(dim=1).mean()


def vicreg(
    first_BD: Tensor, second_BD: Tensor, invariance: float, variance: float, covariance: float
) -> Tensor:
    """Return the weighted sum of three terms on the embeddings of two views.

    Bardes et al. 2022, arXiv:2105.04906. Where the paper's text and the code of its authors differ,
    this follows the code, for which the published weights are: the squared distance of the views is
    a mean over dimensions too, and the variance term is the mean of the two views'.

    Args:
        first_BD: One view of each image, at least two images.
        second_BD: The other view of the same images.
        invariance: Weight of the squared distance of the views.
        variance: Weight of what each dimension's deviation lacks to 1.
        covariance: Weight of the squared covariances of different dimensions, both views added.
    """
    views = _full(first_BD), _full(second_BD)
    lack = torch.stack([_lack_of_variance(view_BD) for view_BD in views]).mean()
    shared = torch.stack([_shared_variance(view_BD) for view_BD in views]).sum()
    return invariance * F.mse_loss(*views) + variance * lack + covariance * shared


def _full(embeddings: Tensor) -> Tensor:
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def _lack_of_variance(view_BD: Tensor) -> Tensor:
    """Return the mean over dimensions of what their standard deviation lacks to 1."""
    return F.relu(1 - (view_BD.var(dim=0) + STD_FLOOR).sqrt()).mean()


def _shared_variance(view_BD: Tensor) -> Tensor:
    """Return the squared covariances off the diagonal, summed and divided by D."""
    centred_BD = view_BD - view_BD.mean(dim=0)
    with torch.autocast(view_BD.device.type, enabled=False):
        covariance_DD = centred_BD.T @ centred_BD / (len(view_BD) - 1)
    return covariance_DD.fill_diagonal_(0).square().sum() / view_BD.shape[1]
