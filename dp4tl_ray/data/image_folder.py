"""Anyone's own pictures: one folder per class, as torchvision's ImageFolder reads them."""

import os
from pathlib import Path

from dp4tl_ray.data.images import SPLITS, Role
from dp4tl_ray.data.pictures import DatasetError, Pictures, of_files
from dp4tl_ray.data.tables import WORDS
from dp4tl_ray.specs.data import ImageFolder

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder, without importing it: a mere plan needs no torch."""
LAYOUT = (
    "expected FOLDER/CLASS/PICTURE.jpg, or FOLDER/train/CLASS/PICTURE.jpg and "
    "FOLDER/test/CLASS/PICTURE.jpg (and, if you have one, FOLDER/val/…)"
)


def _split_folders(root: Path, role: Role) -> list[Path]:
    """Return the folders of the splits to read, or the root itself where it has none.

    A folder named like a split is never taken for a class.
    """
    if not root.is_dir():
        raise DatasetError(f"image_folder: {root.absolute()} is not a folder; {LAYOUT}")
    splits = [root / split for split in SPLITS if (root / split).is_dir()]
    others = sorted(f.name for f in root.iterdir() if f.is_dir() and f not in splits)
    odd = [name for name in others if name.lower() in (*WORDS, "training", "testing")]
    if odd and (splits or odd == others):  # a class may be called Train, too
        raise DatasetError(
            f"image_folder: is {odd[0]} in {root.absolute()} a split? Then name it train, val or "
            f"test; {LAYOUT}"
        )
    if not splits:
        return [root]
    needed = ("train",) if role == "source" else ("train", "test")
    for name in needed:
        if root / name not in splits:
            present = ", ".join(split.name for split in splits)
            raise DatasetError(
                f"image_folder: {root.absolute()} has {present}, but no {name}; a {role} needs "
                f"{' and '.join(needed)}, or no such folders at all"
            )
    return splits[:1] if role == "source" else splits


def list_image_folder(spec: ImageFolder, role: Role) -> Pictures:
    """List the pictures of all splits that a role reads, which must have the same classes.

    A source gives only what it trains on: its folder `train`, or everything.

    Raises:
        DatasetError: A folder is missing or empty, or classes differ between splits.
    """
    root, class_names = Path(spec.path), None
    names: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    for folder in _split_folders(root, role):
        here = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
        class_names = class_names or here
        if here != class_names:
            odd = min({*here} ^ {*class_names})
            raise DatasetError(
                f"image_folder: class {odd!r} is not in every split of {root.absolute()}"
            )
        pictures = [pictures_below(folder / name) for name in here]
        if not any(pictures):
            raise DatasetError(f"image_folder: no pictures below {folder.absolute()}; {LAYOUT}")
        split = 0 if folder == root else [str(name) for name in SPLITS].index(folder.name)
        for label, (name, files) in enumerate(zip(here, pictures, strict=True)):
            if not files:
                raise DatasetError(
                    f"image_folder: class {name!r} below {folder.absolute()} has no pictures"
                )
            place = (folder / name).relative_to(root).as_posix()
            names.extend(f"{place}/{file}" for file in files)
            labels.extend([label] * len(files))
            splits.extend([split] * len(files))
    return of_files(root, names, labels, splits, class_names or ())


def pictures_below(folder: Path) -> list[str]:
    """List the pictures of a class by their name below its folder.

    In torchvision's order, folder by folder, and through links to folders, as it goes: what others
    know by its number is then the same picture here.
    """
    found = []
    for place, _, files in sorted(os.walk(folder, followlinks=True)):
        pictures = sorted(file for file in files if file.lower().endswith(EXTENSIONS))
        below = "" if place == str(folder) else Path(place).relative_to(folder).as_posix() + "/"
        found += [below + file for file in pictures]
    return found
