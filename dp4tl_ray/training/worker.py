"""The one thing that a stage knows about where it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

Progress = dict[str, float | int | str]


def _ignore(progress: Progress) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Worker:
    """One of `world_size` processes that train one network on equal shares of every batch."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Callable[[Progress], None] = _ignore
    """Receives plain numbers once per epoch."""

    def sum_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the workers, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the workers, in place."""
        self.sum_(tensors)
        if self.world_size > 1:
            for tensor in tensors:
                tensor /= self.world_size


def seed_for(seed: int, *purpose: str | int) -> list[int]:
    """Derive independent seeds for different purposes from the seed of a step.

    Returns entropy for numpy's `default_rng`; a purpose is spelt out in bytes, so that two
    purposes never share a stream.
    """
    text = "/".join(str(part) for part in purpose)
    return [seed, *text.encode()]
