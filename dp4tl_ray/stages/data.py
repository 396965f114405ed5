"""Data: pack a dataset into the store once; every other stage reads any of its rows from there."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.data.load import fingerprint, open_pictures
from dp4tl_ray.data.pack import Index, Packing, joined, pack_shard
from dp4tl_ray.data.pictures import DatasetError, Pictures
from dp4tl_ray.specs.data import Dataset, OnDisk, Raw, channels
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.stages.bench import Job, Metrics, StageError
from dp4tl_ray.training.fit import Halted

REPORT_SECONDS = 5.0


def run_data(spec: DataStep, job: Job) -> Metrics:
    """Write the pictures, labels, splits, ids, class names, groups and pixel statistics."""
    try:
        pictures = open_pictures(spec.dataset, spec.role)
        check_unchanged(spec, pictures)
        index = _pack(pictures, packing_of(spec.dataset), job)
        check_unchanged(spec)
    except DatasetError as error:
        raise StageError(str(error)) from error
    bench, kept = job.bench, index.rows
    bench.array("addresses", index.addresses)
    bench.array("labels", pictures.labels[kept])
    bench.array("splits", pictures.splits[kept])
    everything = np.arange(len(pictures)) if pictures.listed_rows is None else pictures.listed_rows
    bench.array("listed_rows", everything[kept])
    bench.array("statistics", _statistics(index))
    bench.json("ids", [pictures.ids[row] for row in kept])
    bench.json("class_names", pictures.class_names)
    metrics: Metrics = {"num_examples": len(kept), "num_classes": len(pictures.class_names)}
    if pictures.groups is not None:
        bench.array("groups", pictures.groups[kept])
        bench.json("group_names", pictures.group_names)
    if index.skipped:
        bench.json("skipped", [(pictures.ids[row], reason) for row, reason in index.skipped])
        metrics["num_skipped"] = len(index.skipped)
    if found := [*_skipped(pictures, index), *_untrained(pictures.take(kept))]:
        metrics["alarm"] = "; ".join(found)
    return metrics


def _skipped(pictures: Pictures, index: Index) -> Iterator[str]:
    """Say that pictures were left out."""
    for row, reason in index.skipped[:1]:
        yield (
            f"left out {len(index.skipped)} of {len(pictures)} pictures that cannot be read, such "
            f"as {pictures.place(row)}, which {reason}; skipped.json lists them"
        )


def _untrained(pictures: Pictures) -> Iterator[str]:
    """Say that classes are tested that no picture is trained on."""
    train, test = ({*pictures.labels[pictures.rows(split)].tolist()} for split in ("train", "test"))
    if missing := sorted(test - train):
        name = pictures.class_names[missing[0]]
        yield f"has {len(missing)} classes with test and no train pictures, such as {name}"


def check_unchanged(spec: DataStep, listed: Pictures | None = None) -> None:
    """Make sure that files are what they were when the study was planned.

    Whoever packs lists them anew: on another machine, or after an interruption.

    Args:
        spec: What was planned.
        listed: The pictures, if they have been listed just now.

    Raises:
        DatasetError: They are not.
    """
    if not (isinstance(spec.dataset, OnDisk) and spec.fingerprint):
        return
    if fingerprint(spec.dataset, spec.role, listed) != spec.fingerprint:
        raise DatasetError(
            f"{spec.dataset.path} is not what it was when the study was planned: run it again (and "
            "if machines have copies of it, those must be equal, with their times)"
        )


def packing_of(dataset: Dataset) -> Packing:
    """Return how a dataset is packed."""
    size, planes = dataset.image_size, channels(dataset)
    if isinstance(dataset, OnDisk):
        return Packing(size, planes, dataset.stored, skips=dataset.corrupt == "skip")
    return Packing(size, planes, Raw(), skips=False)


def notes_of(checkpoint: Path) -> Path:
    """Return where it is noted which shards are whole."""
    return checkpoint / "pack"


def _pack(pictures: Pictures, packing: Packing, job: Job) -> Index:
    """Write all shards that are not there yet, by as many threads as the worker has."""
    total, reported = len(pictures), time.monotonic()

    def report(row: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            if not job.worker.report({"step": row, "steps": total}):
                raise Halted(f"halted after {row} of {total} images")

    indices, bench, threads = list[Index](), job.bench, torch.get_num_threads()
    notes = notes_of(bench.checkpoint)
    for number in range(len(packing.shards(total))):
        index = pack_shard(pictures, packing, number, bench.folder, notes, threads, report)
        indices.append(index)
        bench.add_parts(packing.shard_name(number))
    index = joined(indices)
    if not len(index.rows):
        raise StageError(f"none of the {total} pictures can be read: {index.skipped[0][1]}")
    return index


def _statistics(index: Index) -> npt.NDArray[np.float32]:
    """Return mean and deviation of the pixels in [0, 1], (2, channels)."""
    addresses = index.addresses
    pixels = int((addresses["height"].astype(np.int64) * addresses["width"]).sum())
    mean = index.sums_2C[0] / pixels / 255
    std = np.sqrt(np.maximum(index.sums_2C[1] / pixels / 255**2 - mean**2, 1e-6))
    return np.stack([mean, std]).astype(np.float32)
