"""A sheet of sample pictures: what the source and the targets look like to a network."""

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.data.images import LabeledImages
from dp4tl_ray.data.load import load_images
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.data import located
from dp4tl_ray.specs.study import Study

CLASSES, PER_CLASS = 24, 6
"""Classes per dataset, spread over all of them, and pictures of each."""


def write_samples(study: Study, folder: Path) -> Path:
    """Draw one panel per dataset of a study, one column per class; returns the PNG's path."""
    from matplotlib.figure import Figure

    root, source = study.data_root, study.source
    sets = [(f"source: {label(source)}", load_images(located(source, root), "source"))]
    sets += [
        (f"target: {label(t)}", load_images(located(t, root), "target")) for t in study.targets
    ]
    figure = Figure(figsize=(12, 0.6 + 3.4 * len(sets)), layout="constrained")
    for axes, (title, data) in zip(np.ravel(figure.subplots(len(sets), 1)), sets, strict=True):
        sheet, names = _sheet(data)
        axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        size = sheet.shape[1] // len(names)
        axes.set_xticks([size * (i + 0.5) - 0.5 for i in range(len(names))], names, rotation=60,
                        ha="right", fontsize=7)  # fmt: skip
        axes.set_yticks([])
        axes.set_title(f"{title}: {len(data.labels):,} images, {len(data.class_names)} classes",
                       fontsize=10)  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "samples.png"
    write_atomically(path, partial(figure.savefig, format="png", dpi=150))
    return path


def _sheet(data: LabeledImages) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Put PER_CLASS train pictures of some classes into columns."""
    classes = np.unique(np.linspace(0, len(data.class_names) - 1, CLASSES).round().astype(int))
    train = data.rows("train")
    columns = []
    for k in classes:
        rows = train[data.labels[train] == k][:PER_CLASS]
        column = np.full((PER_CLASS, *data.images.shape[1:]), 255, np.uint8)
        column[: len(rows)] = data.images[rows]
        columns.append(np.concatenate(list(column)))
    return np.concatenate(columns, axis=1), [data.class_names[k] for k in classes]
