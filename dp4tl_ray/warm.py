"""Bring the pictures that a study will read into this machine's memory, or from remote storage."""

import os

import numpy as np
import numpy.typing as npt

from dp4tl_ray.plan import Plan
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.stages.bench import images_of
from dp4tl_ray.store import Artifact, Store

CHUNK = 2**20


def warm_study(plan: Plan, store: Store) -> list[tuple[str, int, int]]:
    """Read the pictures of a study once, so that trainings find them in the page cache.

    Of a source that are the rows that any of the subsets keeps, or all where no subset is known or
    a cell takes the whole source; of a target all.

    Returns:
        Name of a dataset, pictures read, and bytes read, for each that is packed.
    """
    warmed = []
    for key, step in plan.steps.items():
        if isinstance(step.spec, DataStep) and (data := store.find(step)) is not None:
            rows = _needed(plan, store, key, len(data.array("addresses")))
            warmed.append(
                (f"{step.spec.role} {label(step.spec.dataset)}", len(rows), _read(data, rows))
            )
    return warmed


def _needed(plan: Plan, store: Store, data: str, total: int) -> npt.NDArray[np.int64]:
    """Return the rows of a dataset that the plan's trainings read."""
    needed = np.zeros(total, np.bool_)
    for key in plan.users[data]:
        step = plan.steps[key]
        if step.stage == "prune":
            artifact = store.find(step)
            if artifact is None:
                return np.arange(total)
            needed[artifact.array("kept_indices")] = True
        elif step.stage == "finetune" or (step.stage == "pretrain" and "prune" not in step.inputs):
            return np.arange(total)
    return np.flatnonzero(needed) if needed.any() else np.arange(total)


def _read(data: Artifact, rows: npt.NDArray[np.int64]) -> int:
    """Read rows in the order in which they lie in their shards; returns how many bytes that are."""
    shards = images_of(data).shards
    addresses = shards.addresses_N[rows]
    total = 0
    for number in np.unique(addresses["shard"]):
        here = addresses[addresses["shard"] == number]
        with shards.locate(shards.names[number]).open("rb") as file:
            for start, stop in _runs(shards.starts(here), here["length"]):
                for at in range(start, stop, CHUNK):
                    total += len(os.pread(file.fileno(), min(CHUNK, stop - at), at))
    return total


def _runs(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.integer]) -> list[tuple[int, int]]:
    """Join pictures that lie next to each other; (first byte, end) of each run."""
    ends = starts + lengths
    first = np.flatnonzero(np.append(True, starts[1:] != ends[:-1]))
    last = np.append(first[1:] - 1, len(starts) - 1)
    return [(int(starts[a]), int(ends[b])) for a, b in zip(first, last, strict=True)]
