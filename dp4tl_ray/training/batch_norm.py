"""Batch normalisation whose statistics do not depend on how many workers share a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Normalise each group of `group_size` consecutive examples by its own statistics.

    The running statistics move once per batch, towards the mean over its groups. That is linear in
    the groups, so that workers who hold different groups get the one-worker statistics by
    averaging their buffers, whenever they like.
    """

    def __init__(self, num_features: int, *, group_size: int) -> None:
        super().__init__(num_features)
        self.group_size = group_size

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalise; in evaluation, or within one group, exactly torch's batch norm."""
        if not self.training or len(x_NCHW) <= self.group_size:
            return super().forward(x_NCHW)
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        means, variances, outputs = [], [], []
        for group in torch.split(x_NCHW, self.group_size):
            mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            # momentum 1 writes the group's own statistics into the two buffers
            outputs.append(
                F.batch_norm(group, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            )
            means.append(mean)
            variances.append(var)
        self.running_mean.lerp_(torch.stack(means).mean(dim=0), self.momentum)
        self.running_var.lerp_(torch.stack(variances).mean(dim=0), self.momentum)
        return torch.cat(outputs)
