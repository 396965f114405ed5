"""A worker's way through a batch: share by share, pass by pass, and one gradient in the end."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dp4tl_ray.specs.training import Training
from dp4tl_ray.training.batch_norm import movements
from dp4tl_ray.training.shares import microbatches, shares
from dp4tl_ray.training.worker import Worker


class TrainingError(RuntimeError):
    """A training cannot be done as asked; raised on every worker alike."""


class DivergedError(TrainingError):
    """The loss, or a gradient that an attack follows, is no longer a finite number."""


@dataclass(frozen=True)
class Pass:
    """Some rows of a batch that go forward and backward at once.

    Each pass of a sharded network needs all workers; one whose share takes fewer of them fills up
    with idle passes, of weight and movement 0, while it would wait for the others anyway.
    """

    rows: slice
    """Within the batch."""
    weight: float
    """Of the pass's mean loss."""
    movement: float
    """How far it moves the running statistics."""


def cut_passes(
    recipe: Training, worker: Worker, microbatch: int | None, *, together: bool
) -> list[list[Pass]]:
    """Return the passes of a worker through its rows of a batch, share by share.

    Args:
        recipe: Gives the batch and its groups.
        worker: Gives the shares.
        microbatch: Examples of a pass; None takes a share at once.
        together: Whether all workers must go through equally many passes.
    """
    size, group_size = recipe.batch_size, recipe.batch_norm.group_size
    try:
        cut = shares(size, group_size, worker.parts)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    passes = [microbatches(share, group_size, microbatch) for share in cut]
    mine = passes if worker.shards > 1 else [passes[worker.rank]]
    lengths = [rows.stop - rows.start for share in mine for rows in share]
    moves = iter(movements(lengths))
    # the mean over all shares is then the mean over the batch; exactly 1 where shares are equal
    weights = (length * worker.parts / size for length in lengths)
    counted = [[Pass(rows, next(weights), next(moves)) for rows in share] for share in mine]
    if together:
        most = max(len(share) for share in passes)
        idle = [Pass(counted[0][0].rows, 0.0, 0.0)] * (most - len(counted[0]))
        counted[0] = idle + counted[0]
    return counted


class GradientSum:
    """Adds up the gradients of shares that one worker takes in turn, as DDP adds its workers'.

    Each share's own sum comes first, and is divided before it is added. Where a worker takes one
    share, its gradient is left as it is.
    """

    def __init__(self, module: nn.Module, num_shares: int) -> None:
        self.parameters: Sequence[nn.Parameter] = [
            parameter for parameter in module.parameters() if parameter.requires_grad
        ]
        self.num_shares, self.sums = num_shares, list[Tensor]()

    def end_share(self) -> None:
        """Take the gradient that a share has left in the parameters."""
        if self.num_shares == 1:
            return
        gradients = [parameter.grad for parameter in self.parameters]
        found = [gradient for gradient in gradients if gradient is not None]
        assert len(found) == len(gradients), "a parameter takes no part in the training"
        for gradient in found:
            gradient.mul_(1 / self.num_shares)
        if self.sums:
            torch._foreach_add_(self.sums, found)
        else:
            self.sums = found
        for parameter in self.parameters:
            parameter.grad = None

    def give_back(self) -> None:
        """Leave the sum in the parameters."""
        for parameter, gradient in zip(self.parameters, self.sums, strict=False):
            parameter.grad = gradient
