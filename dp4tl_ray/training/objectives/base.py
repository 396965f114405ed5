"""What the training loop asks of an objective."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dp4tl_ray.training.parallel import Parallel
from dp4tl_ray.training.passes import Pass
from dp4tl_ray.training.worker import Worker

Batch = TypeVar("Batch")


class Objective(ABC, Generic[Batch]):
    """What a training minimises, on this worker's rows of every batch."""

    kept = ""
    """Prefix of the module's names under which the network is that a training leaves."""
    replays = 1
    """Optimizer steps in a row on the same batch."""

    def __init__(self, module: nn.Module, passes: list[list[Pass]], worker: Worker) -> None:
        self.module = module
        """Everything that moves in the training, or that it continues from."""
        self.passes = passes
        """Of this worker, share by share."""
        self.rows = slice(passes[0][0].rows.start, passes[-1][-1].rows.stop)
        """What this worker takes of a batch."""
        self.worker = worker
        self.movement = torch.zeros((), device=worker.device)
        """How far the pass under way moves the running statistics of batch norms."""

    @property
    def weight(self) -> float:
        """This worker's share of a batch; the mean over the workers is 1."""
        return sum(one.weight for share in self.passes for one in share) / self.worker.shards

    @property
    def several_passes(self) -> bool:
        """Whether a batch takes more than one pass on this worker."""
        return sum(len(share) for share in self.passes) > 1

    @abstractmethod
    def gather(self, step: int, positions: npt.NDArray[np.int64]) -> Batch:
        """Bring this worker's part of a batch into memory, ahead of its turn.

        Args:
            step: The first of the training's steps on it.
            positions: The whole batch, as positions among the examples.
        """

    @abstractmethod
    def backward(self, parallel: Parallel, batch: Batch, step: int) -> Tensor:
        """Leave the gradient of the batch's mean loss in the parameters.

        Returns:
            This worker's part of that loss; the mean over the workers is the whole.
        """

    def end_epoch(self, parallel: Parallel) -> None:
        """Look at the network between two epochs; all workers do so together."""

    def can_pause(self, step: int) -> bool:
        """Say whether a checkpoint after `step` steps keeps all there is to keep."""
        return True

    def memory(self) -> list[float]:
        """Return what a checkpoint must keep of what `end_epoch` saw."""
        return []

    def remember(self, memory: list[float]) -> None:
        """Take back what a checkpoint kept."""

    def facts(self) -> dict[str, float]:
        """Say what a manifest should keep of this training, once it is over."""
        return {}
