"""Learners that predict what a slowly moving encoder says of the other view."""

import torch
from torch import Tensor, nn

from dp4tl_ray.algorithms.schedules import momentum_at
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.learner import Embeddings, Follower, Learner


class PredictingLearner(Learner):
    """Queries are predictions of both views, keys the follower's embeddings of the other ones."""

    def __init__(
        self, network: Classifier, projector: nn.Module, predictor: nn.Module, momentum: float
    ) -> None:
        super().__init__(network)
        self.projector, self.predictor = projector, predictor
        self.follower = Follower(
            network, projector, lambda progress: momentum_at(momentum, progress)
        )

    def advance(self, step: int, total: int) -> None:
        """Move the follower."""
        self.follower.follow((self.network, self.projector), step, total)

    def forward(
        self, first: Tensor, second: Tensor, key_first: Tensor, key_second: Tensor
    ) -> tuple[Embeddings, Embeddings]:
        """Predict from both views; the keys of the other views come first."""
        features = self.network.features(torch.cat([first, second]))
        queries = self.predictor(self.projector(features))
        with torch.no_grad():
            keys = self.follower(torch.cat([key_second, key_first]))
        return queries.chunk(2), keys.chunk(2)
