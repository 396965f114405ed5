"""Batch normalisation whose statistics do not depend on how many workers share a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MOMENTUM = 0.1
"""Share of the way that the running statistics move with a batch."""


class GroupedBatchNorm(_BatchNorm):
    """Normalise each group of `group_size` consecutive examples by its own statistics.

    The running statistics move once per forward pass, towards the mean over its groups. That is
    linear in the groups, so that workers who hold different groups get the one-worker statistics
    by averaging their buffers, whenever they like. Passes are not counted: their number depends on
    how a batch is shared, so `num_batches_tracked` stays 0.
    """

    movement: Tensor | None
    """Share of the way that the next pass moves, where a batch takes several (see `movements`); a
    tensor, because a compiled network would be compiled again for each number. None moves by
    MOMENTUM."""
    frozen = False
    """Whether a pass in training leaves the running statistics as they are."""

    def __init__(
        self, num_features: int, *, group_size: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=MOMENTUM, affine=affine)
        self.group_size, self.movement = group_size, None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...); in evaluation, or within one group, exactly as torch does."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        mean, var = self.running_mean, self.running_var
        assert mean is not None and var is not None
        one_pass = self.movement is None and not self.frozen
        if not self.training or (one_pass and len(input) <= self.group_size):
            return self._normalise(input, mean, var, MOMENTUM)
        if self.frozen:
            groups = torch.split(input, self.group_size)
            return _together([self._normalise(group, None, None, 0.0) for group in groups])
        means, variances, outputs = [], [], []
        for group in torch.split(input, self.group_size):
            # momentum 1 writes the group's own statistics into the two buffers
            means.append(torch.zeros_like(mean))
            variances.append(torch.ones_like(var))
            outputs.append(self._normalise(group, means[-1], variances[-1], 1.0))
        movement = MOMENTUM if self.movement is None else self.movement
        mean.lerp_(torch.stack(means).mean(dim=0), movement)
        var.lerp_(torch.stack(variances).mean(dim=0), movement)
        return _together(outputs)

    def _normalise(
        self, x: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float
    ) -> Tensor:
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, momentum, self.eps)


def _together(groups: list[Tensor]) -> Tensor:
    """Concatenate; a single group as it is, which saves a copy."""
    return groups[0] if len(groups) == 1 else torch.cat(groups)


class GroupedBatchNorm1d(GroupedBatchNorm, nn.BatchNorm1d):
    """Of vectors, (N, C)."""


class GroupedBatchNorm2d(GroupedBatchNorm, nn.BatchNorm2d):
    """Of images, (N, C, H, W)."""


def movements(sizes: list[int]) -> list[float]:
    """Return how far each pass of a batch moves the running statistics.

    All of them together move once, by MOMENTUM, towards the mean over the batch. A later pass
    shrinks the part of an earlier one, which therefore moves further.

    Args:
        sizes: Examples of each pass.
    """
    moves, later = [], 0.0
    for size in reversed(sizes):
        share = size / sum(sizes)
        moves.append(MOMENTUM * share / (1 - MOMENTUM * later))
        later += share
    return moves[::-1]
