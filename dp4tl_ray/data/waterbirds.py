"""Waterbirds (Sagawa et al. 2020), in its own layout or in that of the paper's code."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from dp4tl_ray.data.pictures import DatasetError, Pictures, of_files
from dp4tl_ray.specs.data import Waterbirds

BIRDS, PLACES = ("landbird", "waterbird"), ("land", "water")
LISTS = ("train.json", "valid.json", "test.json")
LAYOUT = (
    "expected metadata.csv with img_filename, y, split and place beside the pictures, as in "
    "waterbird_complete95_forest2water2 (https://github.com/kohpangwei/group_DRO says where to "
    'get it); or train.json, valid.json and test.json with a line {"x": PICTURE, "y": 0 or 1} each'
)


def list_waterbirds(spec: Waterbirds) -> Pictures:
    """List the pictures, with the group of each where backgrounds are known.

    Raises:
        DatasetError: The lists are missing, or not as they should be.
    """
    root = Path(spec.path)
    grouped = (root / "metadata.csv").exists()
    try:
        rows = sorted(_of_metadata(root) if grouped else _of_lists(root))
    except OSError as error:
        raise DatasetError(f"waterbirds: {error.filename}: {error.strerror}; {LAYOUT}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"waterbirds: the lists in {root} are damaged: {error!r}") from error
    splits, names, labels, places = zip(*rows, strict=True) if rows else ((), (), (), ())
    pictures = of_files(root, names, labels, splits, BIRDS)
    if not grouped:
        return pictures
    return replace(
        pictures,
        groups=pictures.labels * len(PLACES) + np.array(places, np.int64),
        group_names=tuple(f"{bird} on {place}" for bird in BIRDS for place in PLACES),
    )


def _of_metadata(root: Path) -> list[tuple[int, str, int, int]]:
    """Read split, name, label and place; the file counts splits as we do."""
    with (root / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return [
            (
                range(3).index(int(row["split"])),
                row["img_filename"],
                range(len(BIRDS)).index(int(row["y"])),
                range(len(PLACES)).index(int(row["place"])),
            )
            for row in csv.DictReader(file)
        ]


def _of_lists(root: Path) -> list[tuple[int, str, int, int]]:
    """Read split, name and label; places are not known, and all 0."""
    rows = []
    for split, name in enumerate(LISTS):
        for line in (root / name).read_text(encoding="utf-8").splitlines():
            picture = json.loads(line)
            rows.append((split, str(picture["x"]), range(len(BIRDS)).index(picture["y"]), 0))
    return rows
