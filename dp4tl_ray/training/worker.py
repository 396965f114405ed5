"""The one thing that a stage knows about where it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

Progress = dict[str, float | int | str]


def _go_on(progress: Progress) -> bool:
    """Report to nobody."""
    return True


@dataclass(frozen=True)
class Worker:
    """One of `world_size` processes that train one network on shares of every batch."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Callable[[Progress], bool] = _go_on
    """Receives plain numbers after every epoch, and while pictures are packed, on rank 0; answers
    whether to go on."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """Whether each worker holds the whole network or a shard of it."""
    shards: int = 1
    """Shares of a batch that this worker alone takes one after another, as so many would at once:
    what runs without Ray repeats what several workers compute."""
    microbatch: int | None = None
    """Examples of a share per forward pass; null takes the share at once."""
    compile: bool = False
    """Whether to compile the network."""
    checkpoint_steps: int | None = None
    """Steps after which a training is saved within an epoch; None waits for its end."""

    def __post_init__(self) -> None:
        if self.world_size > 1 and self.shards > 1:
            raise ValueError("a worker takes several shares only where it is the only one")

    def sum_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the workers, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def mean_(self, tensors: list[Tensor], weight: float = 1.0) -> None:
        """Replace each tensor by its mean over the workers, in place.

        Args:
            tensors: Of this worker.
            weight: Of this worker; the workers' weights have the mean 1.
        """
        if self.world_size > 1:
            for tensor in tensors:
                tensor *= weight
            self.sum_(tensors)
            for tensor in tensors:
                tensor /= self.world_size

    def barrier(self) -> None:
        """Wait for the other workers."""
        if self.world_size > 1:
            dist.barrier()

    @property
    def parts(self) -> int:
        """Shares of a batch, over all workers."""
        return self.world_size * self.shards


def seed_for(seed: int, *purpose: str | int) -> list[int]:
    """Derive independent seeds for different purposes from the seed of a step.

    Returns entropy for numpy's `default_rng`; a purpose is spelt out in bytes, so that two
    purposes never share a stream.
    """
    text = "/".join(str(part) for part in purpose)
    return [seed, *text.encode()]


def number_for(seed: int, *purpose: str | int) -> int:
    """Derive one number below 2**63 for a purpose, for generators that take no more."""
    entropy = np.random.SeedSequence(seed_for(seed, *purpose))
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))
