"""BYOL (Grill et al. 2020): predict what a slowly moving encoder says of the other view."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp4tl_ray.algorithms.non_contrastive import negative_cosine
from dp4tl_ray.specs.self_supervised import BYOL
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.learner import mlp
from dp4tl_ray.training.objectives.predicting import PredictingLearner


class BYOLLearner(PredictingLearner):
    """Distance between predictions and the follower's embeddings, without negatives."""

    def __init__(self, network: Classifier, recipe: BYOL) -> None:
        group_size, hidden = recipe.batch_norm.group_size, recipe.hidden or network.num_features
        super().__init__(
            network,
            projector=mlp([network.num_features, hidden, recipe.dim], group_size, norms="hidden"),
            predictor=mlp([recipe.dim, hidden, recipe.dim], group_size, norms="hidden"),
            momentum=recipe.momentum,
        )

    def loss(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """Return the squared distances of unit vectors, both directions added."""
        each = [
            2 + 2 * negative_cosine(query, key) for query, key in zip(queries, keys, strict=True)
        ]
        return torch.stack(each).sum()
