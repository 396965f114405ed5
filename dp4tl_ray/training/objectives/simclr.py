"""SimCLR (Chen et al. 2020): each view against all others of the batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp4tl_ray.algorithms.contrastive import nt_xent
from dp4tl_ray.specs.self_supervised import SimCLR
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.learner import Embeddings, Learner, mlp


class SimCLRLearner(Learner):
    """Gradients go back through both views."""

    def __init__(self, network: Classifier, recipe: SimCLR) -> None:
        super().__init__(network)
        widths = [network.num_features, recipe.hidden or network.num_features, recipe.dim]
        self.projector = mlp(widths, recipe.batch_norm.group_size)
        self.temperature = recipe.temperature

    def forward(
        self, first: Tensor, second: Tensor, key_first: Tensor, key_second: Tensor
    ) -> tuple[Embeddings, Embeddings]:
        """Embed both views."""
        embeddings = self.projector(self.network.features(torch.cat([first, second])))
        return embeddings.chunk(2), ()

    def loss(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """Return the normalised, temperature-scaled cross-entropy."""
        first, second = queries
        return nt_xent(first, second, self.temperature)
