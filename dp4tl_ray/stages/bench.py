"""What every stage is handed: its inputs, a place for its output, and the worker it runs on."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file, save_file

from dp4tl_ray.data.packed import JPEGImages, RawImages, Shards
from dp4tl_ray.specs.data import JPEG, OnDisk, channels
from dp4tl_ray.specs.steps import DataStep, PretrainStep, SurrogateStep
from dp4tl_ray.store import Artifact, Workbench
from dp4tl_ray.training.networks import Classifier, build_classifier
from dp4tl_ray.training.worker import Worker

Metrics = dict[str, float | int | str | bool | None]


class StageError(Exception):
    """A step cannot be done with what it was given; the message is for a person."""


@dataclass(frozen=True)
class Job:
    """One step being run by one of its workers."""

    inputs: Mapping[str, Artifact]
    """Finished artifacts that the step reads, by role."""
    bench: Workbench
    worker: Worker

    @property
    def writes(self) -> bool:
        """Whether this worker writes the artifact: exactly one of them does."""
        return self.worker.rank == 0


def images_of(data: Artifact) -> RawImages | JPEGImages:
    """Return a dataset's images, to be read by rows."""
    spec = data.manifest.spec
    assert isinstance(spec, DataStep)
    names = sorted(name for name in data.manifest.files if name.startswith("images-"))
    shards = Shards(names, data.file, data.array("addresses"), data.repair)
    size, planes = spec.dataset.image_size, channels(spec.dataset)
    if isinstance(spec.dataset, OnDisk) and isinstance(spec.dataset.stored, JPEG):
        return JPEGImages(shards, size, planes)
    return RawImages(shards, size, planes)


def num_classes(data: Artifact) -> int:
    """Return the number of classes of a dataset."""
    return len(data.json("class_names"))


def statistics(data: Artifact) -> npt.NDArray[np.float32]:
    """Return mean and deviation of the pixels in [0, 1], (2, channels)."""
    return data.array("statistics")


def save_network(job: Job, model: Classifier) -> None:
    """Write a network's weights, buffers and pixel statistics."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    job.bench.write("network.safetensors", lambda path: save_file(tensors, path))


def load_network(artifact: Artifact, image_size: int, group_size: int = 1) -> Classifier:
    """Rebuild a network that `save_network` wrote, with its pretraining head if it has one.

    Args:
        artifact: Of a surrogate or a pretraining.
        image_size: Height and width of the images it will see.
        group_size: Examples per batch-norm group, should it be trained further.
    """
    spec = artifact.manifest.spec
    assert isinstance(spec, SurrogateStep | PretrainStep)
    tensors = load_file(artifact.file("network.safetensors"))
    channels = tensors["pixel_mean"].shape[1]
    model = build_classifier(
        spec.surrogate.network if isinstance(spec, SurrogateStep) else spec.network,
        num_classes=len(tensors["head.weight"]) if "head.weight" in tensors else 0,
        image_size=image_size,
        statistics=np.zeros((2, channels), np.float32),  # replaced by the saved ones
        group_size=group_size,
        seed=0,
    )
    model.load_state_dict(tensors)
    return model


def free_memory() -> float:
    """Return the bytes that this machine, or the container it is, could still give."""
    free = math.inf
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        free = int(available.split()[1]) * 1024
    return min(free, free_in(Path("/sys/fs/cgroup")))


def free_in(group: Path) -> float:
    """Return the bytes that a control group (version 2) could still give; infinite without one."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        # the page cache counts as used, and is given up when it is needed
        facts = (group / "memory.stat").read_text().splitlines()
        cache = next(line for line in facts if line.startswith("inactive_file "))
        return limit - used + int(cache.split()[1])
    return math.inf
