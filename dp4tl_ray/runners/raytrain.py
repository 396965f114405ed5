"""Ray Train as lanes need it: gloo on the network of the nodes, and nothing of Ray Data."""

import os
import socket
import struct
import sys
from typing import Any

from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend

SIOCGIFADDR = 0x8915
"""Linux's request for the address of an interface."""


class LaneTrainer(TorchTrainer):  # type: ignore[misc]
    """A Train run without Ray Data, which would start a process of its own for every lane."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ != "DatasetsCallback"]


class OnRaysNetwork(TorchConfig):  # type: ignore[misc]
    """Ray's settings of a process group, with gloo on the network that the nodes share.

    Left alone, gloo listens on the address that the machine's own name stands for. On Debian and
    Ubuntu that is 127.0.1.1, which no other machine can reach.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return what sets the process group up."""
        return _OnRaysNetwork


class _OnRaysNetwork(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_rays_interface)
        super().on_start(worker_group, backend_config)


def use_rays_interface() -> None:
    """Name to gloo, in this process, the interface of the address that Ray knows this node by."""
    import ray

    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str:
    """Return the name of the interface that has an IPv4 address; empty if none has."""
    if sys.platform != "linux":
        return ""
    from fcntl import ioctl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
