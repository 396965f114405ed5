"""Examples of a dataset, and the stream of batches in which a training meets them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dp4tl_ray.data.images import Images
from dp4tl_ray.specs.training import Budget
from dp4tl_ray.training.worker import Worker, seed_for


@dataclass(frozen=True)
class Examples:
    """What to train on: rows of an image array, and for a supervised training their labels."""

    images: Images
    """All images of the dataset, M of them."""
    rows: npt.NDArray[np.int64]
    """Rows to train on, (N,)."""
    labels: npt.NDArray[np.int64] | None = None
    """Class of each of these rows, (N,)."""

    def __len__(self) -> int:
        return len(self.rows)


def num_steps(budget: Budget, num_examples: int, batch_size: int) -> int:
    """Return the optimizer steps of a budget; batches are cut from one stream of epochs."""
    seen = budget.examples_seen or num_examples * (budget.epochs or 0)
    return seen // batch_size


def batches(
    num_examples: int, batch_size: int, seed: int, start: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield positions in [0, num_examples), batch after batch, from step `start` on, for ever.

    The stream is the concatenation of one permutation per epoch, each a function of (seed, epoch)
    alone; a batch may cross the border of an epoch, so that nothing is dropped.
    """
    epoch, skip = divmod(start * batch_size, num_examples)
    pending = np.empty(0, np.int64)
    while True:
        rng = np.random.default_rng(seed_for(seed, "order", epoch))
        pending = np.concatenate([pending, rng.permutation(num_examples)[skip:]])
        epoch, skip = epoch + 1, 0
        whole = len(pending) // batch_size * batch_size
        yield from pending[:whole].reshape(-1, batch_size)
        pending = pending[whole:]


def to_pixels(images_NHWC: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Turn images into floats in [0, 1], (N, channels, height, width), channels last in memory."""
    return floats(torch.from_numpy(images_NHWC).to(device))


def floats(images_NHWC: Tensor) -> Tensor:
    """Turn bytes into floats in [0, 1], (N, channels, height, width), where they are."""
    return images_NHWC.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def pinned(array: npt.NDArray[Any], worker: Worker) -> Tensor:
    """Make a tensor of an array, in memory from which a GPU reads without waiting."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if worker.device.type == "cuda" else tensor
