"""SimSiam (Chen and He 2021): predict the other view's embedding, without a second encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dp4tl_ray.algorithms.non_contrastive import negative_cosine
from dp4tl_ray.specs.self_supervised import SimSiam
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.learner import Embeddings, Learner, mlp


class SimSiamLearner(Learner):
    """Queries are predictions; keys are the embeddings of the other views, held fixed."""

    def __init__(self, network: Classifier, recipe: SimSiam) -> None:
        super().__init__(network)
        group_size, hidden = recipe.batch_norm.group_size, recipe.hidden or network.num_features
        widths = [network.num_features, hidden, hidden, recipe.dim]
        self.projector = mlp(widths, group_size, norms="all")
        self.predictor = mlp(
            [recipe.dim, recipe.bottleneck, recipe.dim], group_size, norms="hidden"
        )

    def forward(
        self, first: Tensor, second: Tensor, key_first: Tensor, key_second: Tensor
    ) -> tuple[Embeddings, Embeddings]:
        """Embed both views once; they are queries and keys."""
        embeddings = self.projector(self.network.features(torch.cat([first, second])))
        of_first, of_second = embeddings.detach().chunk(2)
        return self.predictor(embeddings).chunk(2), (of_second, of_first)

    def loss(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """Return the negative cosine, mean of both directions."""
        each = [negative_cosine(query, key) for query, key in zip(queries, keys, strict=True)]
        return torch.stack(each).mean()
