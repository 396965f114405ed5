"""How the workers of a training hold its network: a copy each, or a shard each."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dp4tl_ray.training.networks import blocks
from dp4tl_ray.training.worker import Worker

# Buffers are averaged once per epoch instead: they are linear in the groups. torch renamed the
# switch in 2.15.
_SYNC = "forward_sync_buffers"
_KNOWN = signature(DistributedDataParallel.__init__).parameters
_LEAVE_BUFFERS: dict[str, Any] = {_SYNC if _SYNC in _KNOWN else "broadcast_buffers": False}


class Parallel:
    """A network in training, whose gradients are averaged over the workers.

    With fsdp2, weights, gradients and optimizer state are sharded over the workers, block by
    block; this needs a process group of just these workers. Without one, as where one process
    works alone, fsdp2 is the same as no sharding. Buffers are never sharded.
    """

    def __init__(self, network: nn.Module, worker: Worker) -> None:
        self._network = network
        self.sharded = is_sharded(worker)
        self.model: nn.Module = network
        """Holds the parameters that an optimizer moves, under the network's names."""
        self._module: Any
        if self.sharded:
            # the whole network stays where it is, normally on the CPU, until the training ends
            self._module = self.model = _shard(copy.deepcopy(network), worker)
        else:
            network.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            several = worker.world_size > 1
            self._module = (
                DistributedDataParallel(network, **_LEAVE_BUFFERS) if several else network
            )
        self.forward: Callable[..., Any] = (
            torch.compile(self._module) if worker.compile else self._module
        )
        self.alone: Callable[..., Any] = torch.compile(self.model) if worker.compile else self.model
        """A pass that no other worker takes part in, for gradients of images: DDP would prepare
        to average those of weights."""

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Keep gradients on their worker until the last pass of an optimizer step."""
        if self.sharded:
            self._module.set_requires_gradient_sync(last)
        if isinstance(self._module, DistributedDataParallel) and not last:
            with self._module.no_sync():
                yield
        else:
            yield

    def float_state(self) -> dict[str, Tensor]:
        """Return parameters and buffers that are not counts, as this worker holds them."""
        return {n: t for n, t in self.model.state_dict().items() if t.is_floating_point()}

    def finish(self, averages: dict[str, Tensor]) -> None:
        """Put the weights into the network that was given; all workers do so together.

        Args:
            averages: Take the place of the last weights, by name.
        """
        final = {**self.model.state_dict(), **averages}
        with torch.no_grad():
            for name, tensor in self._network.state_dict().items():
                # without a shard's placement it is whole already
                whole = final[name].full_tensor() if _is_shard(final[name]) else final[name]
                tensor.copy_(whole)


def is_sharded(worker: Worker) -> bool:
    """Tell whether each worker is to hold a shard of the network.

    For that torch's process group must be that of these workers, not that of a lane they work in.
    """
    have_group = dist.is_initialized() and dist.get_world_size() == worker.world_size
    return worker.sharding == "fsdp2" and have_group


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _shard(network: nn.Module, worker: Worker) -> nn.Module:
    """Shard a network in place, over all workers."""
    # seconds to import, which a training that shards nothing should not pay
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if worker.device.type == "cuda":
        torch.cuda.set_device(worker.device)
    mesh = init_device_mesh(worker.device.type, (worker.world_size,))
    for module in [*blocks(network), network]:
        fully_shard(module, mesh=mesh)
    return network.to(worker.device)
