"""MoCo v3 (Chen et al. 2021): contrast with the keys of the batch; for ResNets and transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp4tl_ray.algorithms.contrastive import info_nce_in_batch
from dp4tl_ray.specs.self_supervised import MoCoV3
from dp4tl_ray.training.networks import Classifier, patch_embedding
from dp4tl_ray.training.objectives.learner import mlp
from dp4tl_ray.training.objectives.predicting import PredictingLearner


class MoCoV3Learner(PredictingLearner):
    """Each view's prediction is told from the others by the follower's key of the other view."""

    shuffles = True

    def __init__(self, network: Classifier, recipe: MoCoV3) -> None:
        group_size, hidden = recipe.batch_norm.group_size, recipe.hidden or network.num_features
        patches = patch_embedding(network)
        # a transformer's projector has a layer more
        widths = [network.num_features, *[hidden] * (2 if patches else 1), recipe.dim]
        for parameter in patches:
            parameter.requires_grad_(not recipe.freeze_patches)
        super().__init__(
            network,
            projector=mlp(widths, group_size, norms="all"),
            predictor=mlp([recipe.dim, hidden, recipe.dim], group_size, norms="all"),
            momentum=recipe.momentum,
        )
        self.temperature = recipe.temperature

    def loss(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """Add up both directions."""
        each = [
            info_nce_in_batch(query, key, self.temperature)
            for query, key in zip(queries, keys, strict=True)
        ]
        return torch.stack(each).sum()
