"""Training state on disk: written whole or not at all, and never unpickled.

`FOLDER/step-N/` holds safetensors: one file with everything, or, where the network is sharded, one
file per worker in the layout of torch.distributed.checkpoint, each tensor's part with its offset.
`facts.json` is written last, and names the files: without it a step is not there. Either layout
is read by any number of workers, sharded or not.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.training.worker import Worker

log = logging.getLogger(__name__)

_PLACES = "DCP_SHARDING_INFO"
"""Where torch.distributed.checkpoint notes the place of each part in its tensor."""


def _keep_here(path: Path) -> None:
    """Publish nothing: the folder is where every worker looks."""


@dataclass(frozen=True)
class _Piece:
    """A tensor in a file, or a part of one."""

    path: Path
    place: tuple[slice, ...]


@dataclass(frozen=True)
class Saved:
    """A state that is there as a whole."""

    folder: Path
    facts: dict[str, Any]
    pieces: dict[str, list[_Piece]]

    def names(self, prefix: str) -> list[str]:
        """Return the names of the saved tensors that begin so."""
        return [name for name in self.pieces if name.startswith(prefix)]

    def size(self, name: str) -> torch.Size:
        """Return the shape of a tensor, its parts brought together."""
        places = [piece.place for piece in self.pieces[name]]
        return torch.Size(max(part.stop for part in dim) for dim in zip(*places, strict=True))

    def read(self, name: str) -> Tensor:
        """Return a tensor, its parts brought together."""
        parts: list[Tensor] = []
        for piece in self.pieces[name]:
            with safe_open(piece.path, framework="pt") as file:
                parts.append(file.get_tensor(name))
        if len(parts) == 1:
            return parts[0]
        tensor = torch.empty(self.size(name), dtype=parts[0].dtype)
        for piece, part in zip(self.pieces[name], parts, strict=True):
            tensor[piece.place] = part
        return tensor

    def fill(self, tensors: Mapping[str, Tensor], *, sharded: bool) -> None:
        """Write saved values into tensors by name, in place; all workers together if sharded."""
        if sharded:
            # seconds to import, which a training that shards nothing should not pay
            from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
            from torch.distributed.checkpoint.state_dict_loader import load

            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(self.folder)))
        else:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(self.read(name))


@dataclass(frozen=True)
class Checkpoint:
    """Where one training keeps the state from which it can continue exactly."""

    folder: Path
    publish: Callable[[Path], None] = _keep_here
    """Receives each file that this worker has written, facts.json last."""

    def save(
        self,
        worker: Worker,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        *,
        sharded: bool,
    ) -> None:
        """Replace the saved state; all workers call this together.

        Args:
            worker: The one that calls.
            tensors: By name; equal on all workers unless they are sharded.
            facts: Plain data, with the `step`.
            sharded: Whether each worker writes its shards; else rank 0 writes everything.
        """
        folder = self.folder / f"step-{facts['step']}"
        if worker.rank == 0:
            # what an earlier attempt left there must not be mixed in
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        files = []
        if sharded:
            worker.barrier()
            files = self._save_shards(worker, tensors, folder)
        elif worker.rank == 0:
            files = ["state.safetensors"]
            flat = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            save_file(flat, folder / files[0])
            self.publish(folder / files[0])
        if worker.rank == 0:
            text = json.dumps({**facts, "files": files})
            write_atomically(folder / "facts.json", lambda path: path.write_text(text))
            self.publish(folder / "facts.json")
        if sharded:
            worker.barrier()  # until the new state is whole, the old one is all there is
        for other in self._steps():
            if other != folder and (sharded or worker.rank == 0):
                shutil.rmtree(other, ignore_errors=True)

    def _save_shards(
        self, worker: Worker, tensors: Mapping[str, Tensor], folder: Path
    ) -> list[str]:
        """Write and publish this worker's shards; return the names of all workers' files."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(dict(tensors), storage_writer=writer)
        names = [
            f"shard-{rank:05d}-model-00001-of-00001.safetensors"
            for rank in range(1, worker.world_size + 1)
        ]
        mine = folder / names[worker.rank]
        wrote = torch.zeros(worker.world_size, device=worker.device)
        if mine.exists():  # a worker without any part writes no file
            self.publish(mine)
            wrote[worker.rank] = 1
        worker.sum_([wrote])
        return [name for name, one in zip(names, wrote.tolist(), strict=True) if one]

    def newest(self) -> Saved | None:
        """Return the newest state that is whole, or None; what is not whole is said aloud."""
        for folder in self._steps():
            try:
                return _open(folder)
            except FileNotFoundError:
                continue  # the training ended before the state was whole
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                log.warning("%s is damaged and is not continued from: %s", folder, error)
        return None

    def _steps(self) -> list[Path]:
        """Return the folders of all steps, newest first, whole or not."""
        found = [path for path in self.folder.glob("step-*") if path.name[5:].isdecimal()]
        return sorted(found, key=lambda path: -int(path.name[5:]))


def _open(folder: Path) -> Saved:
    """Find the saved tensors; what facts.json does not name was left by an earlier attempt."""
    facts = json.loads((folder / "facts.json").read_text())
    for path in folder.glob("*.safetensors"):
        if path.name not in facts["files"]:
            path.unlink(missing_ok=True)  # torch's reader would take it for a part
    pieces: dict[str, list[_Piece]] = {}
    for name in facts["files"]:
        with safe_open(folder / name, framework="pt") as file:
            places = json.loads((file.metadata() or {}).get(_PLACES, "{}"))
            for key in file.keys():  # noqa: SIM118
                shape = file.get_slice(key).get_shape()
                start = places[key]["saved_offsets"] if places else [0] * len(shape)
                place = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
                pieces.setdefault(key, []).append(_Piece(folder / name, place))
    return Saved(folder, facts, pieces)


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return an optimizer's state under the names of the parameters."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def make_optimizer_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, sizes: Mapping[str, torch.Size]
) -> None:
    """Give a fresh optimizer tensors to be filled.

    Args:
        model: Whose parameters it moves.
        optimizer: Has not taken a step.
        sizes: Shapes by the names that `optimizer_tensors` gives.
    """
    parameters = dict(model.named_parameters())
    for full_name, size in sizes.items():
        name, _, key = full_name.rpartition(".")
        parameter = parameters[name]
        # a count of steps is kept on the CPU, everything else has the form of its parameter
        like = parameter.detach()
        value = torch.zeros_like(like) if size == like.shape else torch.zeros(size)
        optimizer.state[parameter][key] = value
