"""What an objective on two views adds to a network: heads, a second encoder, a loss."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dp4tl_ray.algorithms.schedules import debiased_rate
from dp4tl_ray.training.batch_norm import GroupedBatchNorm1d
from dp4tl_ray.training.networks import Classifier

Embeddings = tuple[Tensor, ...]
"""One (n, D) tensor per view that is embedded."""
Wanted = tuple[bool, bool]
"""Whether the first view is looked at, and the second."""


class Learner(nn.Module, ABC):
    """A network, and what learns with it."""

    shuffles = False
    """Whether keys are embedded in another order, and so in other batch-norm groups."""
    query_views: Wanted = (True, True)
    key_views: Wanted = (True, True)

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def forward(
        self, first: Tensor, second: Tensor, key_first: Tensor, key_second: Tensor
    ) -> tuple[Embeddings, Embeddings]:
        """Embed a share of a batch.

        Args:
            first: First views, (n, channels, height, width), pixels in [0, 1].
            second: Second views of the same images.
            key_first: First views of the images whose keys are wanted; where the learner shuffles,
                those of other rows of the batch.
            key_second: Their second views.

        Returns:
            Queries, through which gradients go back, and keys, through which none do.
        """

    @abstractmethod
    def loss(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        """Return the loss of a whole batch, each tensor (B, D) in the order of its rows."""

    def advance(self, step: int, total: int) -> None:
        """Move what follows the network, before a step."""

    def end_batch(self, keys: Sequence[Tensor]) -> None:
        """Remember what later batches need of this one."""


class Follower(nn.Module):
    """A moving average of a network and its head, without the bias towards where it began.

    With momentum m_t at step t it holds sum_t w_t x_t / sum_t w_t, where w_t is what the plain
    average x <- m_t x + (1 - m_t) x_t gives to the encoder's weights x_t; so the first step copies
    them, and short trainings are not held back by the weights as initialised.
    """

    def __init__(
        self, network: Classifier, projector: nn.Module, momentum: Callable[[float], float]
    ) -> None:
        super().__init__()
        self.network, self.projector = copy.deepcopy(network), copy.deepcopy(projector)
        self.requires_grad_(False)
        self._momentum, self._weight, self._moved = momentum, 0.0, 0

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings, (n, D)."""
        embeddings: Tensor = self.projector(self.network.features(pixels))
        return embeddings

    @torch.no_grad()
    def follow(self, encoder: Sequence[nn.Module], step: int, total: int) -> None:
        """Move towards the encoder's weights, once per step.

        Args:
            encoder: Its network and its projector.
            step: Which step is about to be taken; the rate is a function of it and of `total`.
            total: Steps of the training.
        """
        rate = 1.0
        while self._moved <= step:  # also through the steps before those of a resumed training
            momentum = self._momentum(self._moved / total)
            rate, self._weight = debiased_rate(momentum, self._weight)
            self._moved += 1
        for mine, other in zip((self.network, self.projector), encoder, strict=True):
            for kept, moved in zip(mine.parameters(), other.parameters(), strict=True):
                kept.lerp_(moved, rate)


def mlp(
    widths: Sequence[int], group_size: int, *, norms: str = "none", biases: bool = True
) -> nn.Sequential:
    """Build a head: linear layers with ReLU between them.

    Args:
        widths: Of input, hidden layers and output.
        group_size: Examples per batch-norm group.
        norms: `none`; `hidden`, batch norm after every hidden layer; `all`, after the output too,
            there without weight and bias.
        biases: Whether layers that no norm follows have biases.
    """
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for n, (width_in, width) in enumerate(pairwise(widths)):
        normed = norms == "all" or (norms == "hidden" and n < last)
        layers.append(nn.Linear(width_in, width, bias=biases and not normed))
        if normed:
            layers.append(GroupedBatchNorm1d(width, group_size=group_size, affine=n < last))
        if n < last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
