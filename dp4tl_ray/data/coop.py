"""CoOp's splits (Zhou et al. 2022, github.com/KaiyangZhou/CoOp), which the paper's targets use."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp4tl_ray.data.images import SPLITS
from dp4tl_ray.data.pictures import DatasetError, Pictures, of_files
from dp4tl_ray.specs.data import CoOp, known_as

IMAGES = {
    "OxfordPets": "images",
    "StanfordCars": ".",
    "OxfordFlowers": "jpg",
    "Food101": "images",
    "SUN397": "SUN397",
    "DescribableTextures": "images",
    "EuroSAT": "2750",
    "UCF101": "UCF-101-midframes",
}
"""Name of a split file, split_zhou_NAME.json -> folder of the pictures, beside the file."""
PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


def list_coop(spec: CoOp) -> Pictures:
    """List the pictures of a split file, in the order of its splits and of their names.

    Raises:
        DatasetError: There is no such file, it is not of CoOp's form, or the pictures are missing.
    """
    rows, names = [], dict[int, str]()
    for split, entries in enumerate(_read(Path(spec.path))):
        for name, label, class_name in entries:
            rows.append((split, name, label))
            if names.setdefault(label, class_name) != class_name:
                raise DatasetError(
                    f"coop: {spec.path} calls class {label} {names[label]!r}, and {class_name!r}"
                )
    if sorted(names) != [*range(len(names))]:
        raise DatasetError(
            f"coop: the labels of {spec.path} are not 0 to {len(names) - 1}, one per class"
        )
    splits, files, labels = zip(*sorted(rows), strict=True) if rows else ((), (), ())
    class_names = tuple(names[label] for label in range(len(names)))
    # a file of another name is another dataset, for which other metrics may be customary
    pictures = of_files(_images(spec), files, labels, splits, class_names)
    return replace(pictures, version=known_as(spec))


def _read(path: Path) -> list[list[tuple[str, int, str]]]:
    """Read name, label and class name of the pictures of each split."""
    form = '{"train": [[PICTURE, LABEL, CLASS NAME], ...], "val": [...], "test": [...]}'
    try:
        file: Any = json.loads(path.read_text(encoding="utf-8"))
        entries = [[(str(n), int(label), str(c)) for n, label, c in file[s]] for s in SPLITS]
    except OSError as error:
        raise DatasetError(
            f"coop: {path}: {error.strerror}; expected CoOp's file split_zhou_NAME.json, and the "
            f"pictures beside it: {PAGE} has both"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"coop: {path} is not of CoOp's form, {form}: {error!r}") from error
    return entries


def _images(spec: CoOp) -> Path:
    """Find the folder that the names in the file start at."""
    path = Path(spec.path)
    name = path.stem.removeprefix("split_zhou_")
    if spec.images is None and name not in IMAGES:
        known = ", ".join(f"split_zhou_{known}.json" for known in IMAGES)
        raise DatasetError(f"coop: {path} is none of {known}: `images` says where its pictures are")
    folder = Path(spec.images) if spec.images is not None else path.parent / IMAGES[name]
    if not folder.is_dir():
        raise DatasetError(
            f"coop: {folder} is not a folder; expected the pictures of {path.name} there, unless "
            f"`images` names another; {PAGE} says where to get them"
        )
    return folder
