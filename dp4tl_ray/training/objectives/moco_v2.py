"""MoCo v2 (Chen et al. 2020): contrast with a queue of keys from a slowly moving encoder."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.contrastive import info_nce
from dp4tl_ray.algorithms.key_queue import enqueue, random_queue
from dp4tl_ray.specs.self_supervised import MoCoV2
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.learner import Embeddings, Follower, Learner, mlp


class MoCoV2Learner(Learner):
    """Queries from the network, keys from its follower, negatives from the queue."""

    queue_KD: Tensor
    pointer: Tensor
    shuffles = True

    def __init__(self, network: Classifier, recipe: MoCoV2) -> None:
        super().__init__(network)
        self.recipe = recipe
        if not recipe.symmetric:
            self.query_views, self.key_views = (True, False), (False, True)
        features, group_size = network.num_features, recipe.batch_norm.group_size
        self.projector = mlp([features, recipe.hidden or features, recipe.dim], group_size)
        self.follower = Follower(network, self.projector, lambda progress: recipe.momentum)
        generator = torch.Generator().manual_seed(torch.initial_seed())
        self.register_buffer("queue_KD", random_queue(recipe.queue_size, recipe.dim, generator))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def advance(self, step: int, total: int) -> None:
        """Move the key encoder, before the keys are embedded."""
        self.follower.follow((self.network, self.projector), step, total)

    def forward(
        self, first: Tensor, second: Tensor, key_first: Tensor, key_second: Tensor
    ) -> tuple[Embeddings, Embeddings]:
        """Embed first views as queries, second views as keys; or both as both."""
        symmetric = self.recipe.symmetric
        to_query = torch.cat([first, second]) if symmetric else first
        queries = self.projector(self.network.features(to_query))
        with torch.no_grad():
            keys = self.follower(torch.cat([key_second, key_first]) if symmetric else key_second)
        parts = 2 if symmetric else 1
        return queries.chunk(parts), keys.chunk(parts)

    def loss(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """Compare with the queue as earlier batches left it."""
        each = [
            info_nce(query, key, self.queue_KD, self.recipe.temperature)
            for query, key in zip(queries, keys, strict=True)
        ]
        return torch.stack(each).mean()

    def end_batch(self, keys: Sequence[Tensor]) -> None:
        """Replace the oldest keys."""
        enqueue(self.queue_KD, self.pointer, F.normalize(torch.cat(list(keys))))
