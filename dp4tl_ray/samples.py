"""A sheet of sample pictures: what the source and the targets look like to a network."""

import contextlib
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.data.decode import DecodeError, decoded, square
from dp4tl_ray.data.images import Role
from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.data.pictures import Pictures
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.data import Dataset, channels, located
from dp4tl_ray.specs.study import Study

CLASSES, PER_CLASS = 24, 6
"""Classes per dataset, spread over all of them, and pictures of each."""


def write_samples(study: Study, folder: Path) -> Path:
    """Draw one panel per dataset of a study, one column per class; returns the PNG's path."""
    from matplotlib.figure import Figure

    sets: list[tuple[Role, Dataset]] = [("source", study.source)]
    sets += [("target", target) for target in study.targets]
    figure = Figure(figsize=(12, 0.6 + 3.4 * len(sets)), layout="constrained")
    for axes, (role, dataset) in zip(np.ravel(figure.subplots(len(sets), 1)), sets, strict=True):
        pictures = open_pictures(located(dataset, study.data_root), role)
        sheet, names = _sheet(pictures, dataset.image_size, channels(dataset))
        axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        size = sheet.shape[1] // len(names)
        axes.set_xticks([size * (i + 0.5) - 0.5 for i in range(len(names))], names, rotation=60,
                        ha="right", fontsize=7, parse_math=False)  # fmt: skip
        axes.set_yticks([])
        counts = f"{len(pictures):,} images, {len(pictures.class_names)} classes"
        axes.set_title(f"{role}: {label(dataset)}: {counts}", fontsize=10, parse_math=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.png"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # boxes in names will do
        write_atomically(path, partial(figure.savefig, format="png", dpi=150))
    return path


def _sheet(pictures: Pictures, size: int, channels: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Put PER_CLASS train pictures of some classes into columns; only they are decoded."""
    num_classes = len(pictures.class_names)
    classes = np.unique(np.linspace(0, num_classes - 1, CLASSES).round().astype(int))
    train = pictures.rows("train")
    columns = []
    for k in classes:
        column = np.full((PER_CLASS, size, size, channels), 255, np.uint8)
        for n, row in enumerate(train[pictures.labels[train] == k][:PER_CLASS]):
            with contextlib.suppress(DecodeError, OSError):  # a white square; `check` names it
                column[n] = square(decoded(pictures.read(int(row)), channels), size)
        columns.append(np.concatenate(list(column)))
    return np.concatenate(columns, axis=1), [pictures.class_names[k] for k in classes]
