"""Batch normalisation whose statistics do not depend on how many workers share a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.1
"""Share of the way that the running statistics move with a batch."""


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Normalise each group of `group_size` consecutive examples by its own statistics.

    The running statistics move once per forward pass, towards the mean over its groups. That is
    linear in the groups, so that workers who hold different groups get the one-worker statistics
    by averaging their buffers, whenever they like.
    """

    movement: Tensor | None
    """Share of the way that the next pass moves, where a batch takes several (see `movements`); a
    tensor, because a compiled network would be compiled again for each number. None moves by
    MOMENTUM."""

    def __init__(self, num_features: int, *, group_size: int) -> None:
        super().__init__(num_features, momentum=MOMENTUM)
        self.group_size, self.movement = group_size, None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalise; in evaluation, or within one group, exactly torch's batch norm."""
        one_pass = self.movement is None
        if not self.training or (one_pass and len(x_NCHW) <= self.group_size):
            return super().forward(x_NCHW)
        assert self.running_mean is not None and self.running_var is not None
        means, variances, outputs = [], [], []
        for group in torch.split(x_NCHW, self.group_size):
            mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            # momentum 1 writes the group's own statistics into the two buffers
            outputs.append(
                F.batch_norm(group, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            )
            means.append(mean)
            variances.append(var)
        movement = MOMENTUM if self.movement is None else self.movement
        self.running_mean.lerp_(torch.stack(means).mean(dim=0), movement)
        self.running_var.lerp_(torch.stack(variances).mean(dim=0), movement)
        return torch.cat(outputs)


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
