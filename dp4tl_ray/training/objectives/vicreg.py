"""VICReg (Bardes et al. 2022): variance, invariance and covariance of the embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp4tl_ray.algorithms.non_contrastive import vicreg
from dp4tl_ray.specs.self_supervised import VICReg
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.learner import Embeddings, Learner, mlp


class VICRegLearner(Learner):
    """Gradients go back through both views."""

    def __init__(self, network: Classifier, recipe: VICReg) -> None:
        super().__init__(network)
        hidden = recipe.hidden or network.num_features
        widths = [network.num_features, hidden, hidden, recipe.dim]
        self.expander = mlp(widths, recipe.batch_norm.group_size, norms="hidden", biases=False)
        self.recipe = recipe

    def forward(
        self, first: Tensor, second: Tensor, key_first: Tensor, key_second: Tensor
    ) -> tuple[Embeddings, Embeddings]:
        """Embed both views."""
        embeddings = self.expander(self.network.features(torch.cat([first, second])))
        return embeddings.chunk(2), ()

    def loss(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """Weigh the three terms, over the whole batch."""
        first, second = queries
        recipe = self.recipe
        return vicreg(first, second, recipe.invariance, recipe.variance, recipe.covariance)
