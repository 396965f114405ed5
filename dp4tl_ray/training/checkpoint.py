"""Training state on disk: written whole or not at all, and never unpickled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dp4tl_ray.atomic import write_atomically


@dataclass(frozen=True)
class Checkpoint:
    """Where one training keeps the state from which it can continue exactly."""

    path: Path

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the saved state in one step."""
        flat = {name: t.detach().contiguous() for name, t in tensors.items()}
        metadata = {"facts": json.dumps(facts)}
        write_atomically(self.path, lambda part: save_file(flat, part, metadata))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the saved state, or None where there is none that can be read."""
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimizer's state to named tensors."""
    return {
        f"optimizer.{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of `optimizer_tensors` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            index, name = rest.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
