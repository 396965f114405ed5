"""The queue of keys of He et al. 2020 (MoCo), arXiv:1911.05722: the newest K keys, as one tensor.

Shapes: B keys of a batch, K keys in the queue, D dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_queue(size: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return random directions, unit vectors (size, dim), in place of keys that are still to come.

    Args:
        size: K.
        dim: D.
        generator: Of the CPU, so that the queue is the same on every device.
    """
    return F.normalize(torch.randn(size, dim, generator=generator))


@torch.no_grad()
def enqueue(queue_KD: Tensor, pointer: Tensor, keys_BD: Tensor) -> None:
    """Replace the oldest keys by a batch's, in place; a device is not waited for.

    Args:
        queue_KD: Written to at the pointer and the rows after it, the first row following the last.
        pointer: Row of the oldest key, a 0-d int64 tensor on the queue's device; moved on.
        keys_BD: New keys, oldest first, stored as they are; at most K.

    Raises:
        ValueError: There are more keys than the queue holds.
    """
    if len(keys_BD) > len(queue_KD):
        raise ValueError(f"{len(keys_BD)} keys do not fit into a queue of {len(queue_KD)}")
    rows_B = (pointer + torch.arange(len(keys_BD), device=queue_KD.device)) % len(queue_KD)
    queue_KD[rows_B] = keys_BD.to(queue_KD.dtype)
    pointer.add_(len(keys_BD)).remainder_(len(queue_KD))
