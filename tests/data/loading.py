"""All of a dataset, decoded: what the tests compare with."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from dp4tl_ray.data.check import inspect
from dp4tl_ray.data.decode import decoded, square
from dp4tl_ray.data.images import LabeledImages, Role
from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.data.pack import pack_shard
from dp4tl_ray.data.pictures import DatasetError
from dp4tl_ray.specs.data import AnyOnDisk, Dataset, channels
from dp4tl_ray.stages.data import packing_of


def load_images(spec: Dataset, role: Role) -> LabeledImages:
    """Decode every picture of a dataset, one after the other."""
    assert role in get_args(Role)
    pictures = open_pictures(spec, role)
    contents = (decoded(pictures.read(i), channels(spec)) for i in range(len(pictures)))
    return LabeledImages(
        np.stack([square(content, spec.image_size) for content in contents]),
        pictures.labels,
        pictures.splits,
        tuple(pictures.ids),
        pictures.class_names,
    )


def check_empty(spec: AnyOnDisk, rows: list[int], folder: Path, first: str) -> None:
    """Check that a check lists empty pictures, and that packing names or skips them."""
    pictures = open_pictures(spec, "source")
    found = inspect(pictures, channels=3, threads=1, report=lambda row: None).unreadable
    assert [*found] == rows and all("is empty: column 'image'" in one for one in found.values())
    folder.mkdir()
    stops = packing_of(spec)
    with pytest.raises(DatasetError, match=f"{first} is empty: .* `corrupt: skip` leaves"):
        pack_shard(pictures, stops, 0, folder, folder / "notes", threads=1)
    skips = replace(stops, skips=True)
    index = pack_shard(pictures, skips, 0, folder, folder / "notes", threads=1)
    assert [row for row, _ in index.skipped] == rows
