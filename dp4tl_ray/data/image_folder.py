"""Anyone's own pictures: one folder per class, as torchvision's ImageFolder reads them."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dp4tl_ray.data.images import SPLITS, LabeledImages, Role
from dp4tl_ray.specs.data import ImageFolder

Pixels = npt.NDArray[np.uint8]
Read = Callable[[slice], Pixels]
"""Reads some of N images, (n, height, width, channels)."""
Keep = Callable[[tuple[int, ...], Read], Pixels]
"""Is given the shape of N images and what reads them, and returns all, from where it keeps them."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder, without importing it: a mere plan needs no torch."""
LAYOUT = (
    "expected FOLDER/CLASS/PICTURE.jpg, or FOLDER/train/CLASS/PICTURE.jpg and "
    "FOLDER/test/CLASS/PICTURE.jpg (and, if you have one, FOLDER/val/…)"
)


class DatasetError(Exception):
    """A dataset on disk is not as it should be; the message says where and what is expected."""


def in_memory(shape: tuple[int, ...], read: Read) -> Pixels:
    """Keep all images in memory."""
    return read(slice(0, shape[0]))


def is_absent(spec: ImageFolder) -> bool:
    """Say whether the folder is not on this machine."""
    return not os.path.isdir(spec.path)


def fingerprint(spec: ImageFolder, role: Role) -> str:
    """Identify the pictures by relative name, size and time of change, without opening them.

    Raises:
        DatasetError: The folder is missing or holds no pictures.
    """
    root = Path(spec.path)
    lines = []
    for name in _list(root, role).names:
        status = os.stat(root / name)
        lines.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def count_pictures(spec: ImageFolder, role: Role) -> int:
    """Count the pictures that a role reads, without opening them."""
    return len(_list(Path(spec.path), role).names)


def _split_folders(root: Path, role: Role) -> list[Path]:
    """Return the folders of the splits to read, or the root itself where it has none.

    A folder named like a split is never taken for a class.
    """
    if not root.is_dir():
        raise DatasetError(f"image_folder: {root.absolute()} is not a folder; {LAYOUT}")
    splits = [root / split for split in SPLITS if (root / split).is_dir()]
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


@dataclass(frozen=True)
class _Listing:
    """What a role reads, in an order that no file system decides; nothing is opened."""

    class_names: tuple[str, ...]
    names: list[str]
    """Of each picture below the root. Text, not paths: ImageNet has more than a million."""
    labels: list[int]
    splits: list[int]


def _list(root: Path, role: Role) -> _Listing:
    """List the pictures of all splits, which must have the same classes."""
    listing: _Listing | None = None
    for folder in _split_folders(root, role):
        class_names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
        if listing is None:
            listing = _Listing(class_names, [], [], [])
        elif class_names != listing.class_names:
            odd = min({*class_names} ^ {*listing.class_names})
            raise DatasetError(
                f"image_folder: class {odd!r} is not in every split of {root.absolute()}"
            )
        pictures = [_pictures(folder / name) for name in class_names]
        if not any(pictures):
            raise DatasetError(f"image_folder: no pictures below {folder.absolute()}; {LAYOUT}")
        split = 0 if folder == root else [str(name) for name in SPLITS].index(folder.name)
        for label, (name, files) in enumerate(zip(class_names, pictures, strict=True)):
            if not files:
                raise DatasetError(
                    f"image_folder: class {name!r} below {folder.absolute()} has no pictures"
                )
            place = (folder / name).relative_to(root).as_posix()
            listing.names.extend(f"{place}/{file}" for file in files)
            listing.labels.extend([label] * len(files))
            listing.splits.extend([split] * len(files))
    assert listing is not None
    return listing


def _pictures(folder: Path) -> list[str]:
    """List the pictures of a class by their name below its folder."""
    found = []
    for place, _, files in os.walk(folder):
        pictures = [file for file in files if file.lower().endswith(EXTENSIONS)]
        below = "" if place == str(folder) else Path(place).relative_to(folder).as_posix() + "/"
        found += [below + file for file in pictures]
    return sorted(found, key=lambda name: name.split("/"))


def read_image_folder(spec: ImageFolder, role: Role, keep: Keep = in_memory) -> LabeledImages:
    """Read every picture, bring it to one size, and note its split.

    A source gives only what it trains on: its folder `train`, or everything.

    Args:
        spec: Where, and which size.
        role: What the pictures are for.
        keep: Decides where the images are kept, and how many are read at a time.

    Raises:
        DatasetError: A folder is missing, classes differ between splits, or a picture does not
            decode; the message names it.
    """
    root, size, channels = Path(spec.path), spec.image_size, spec.channels
    listing = _list(root, role)

    def read(part: slice) -> Pixels:
        return np.stack([_read(root / name, size, channels) for name in listing.names[part]])

    return LabeledImages(
        images=keep((len(listing.names), size, size, channels), read),
        labels=np.array(listing.labels, np.int64),
        splits=np.array(listing.splits, np.int8),
        ids=tuple(listing.names),
        class_names=listing.class_names,
    )


def _read(path: Path, size: int, channels: int) -> Pixels:
    """Decode a picture; its shorter side becomes `size`, the centre square is kept."""
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # decoders raise what they like; the picture must be named
        raise DatasetError(f"image_folder: {path} does not decode: {error}") from error
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    left, top = (width - size) // 2, (height - size) // 2
    array = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.uint8)
    return array[:, :, None] if channels == 1 else array


def split_at_random(labels_N: npt.NDArray[np.int64], shares: list[float]) -> npt.NDArray[np.int8]:
    """Assign each class's examples to splits by fixed shares, in a seeded order.

    Args:
        labels_N: Class of each example.
        shares: Share of train, val and test; every class gives at least one example to each that
            is not 0, as far as it has so many.
    """
    splits_N = np.zeros(len(labels_N), np.int8)
    for label in np.unique(labels_N):
        members = np.random.default_rng([0, int(label)]).permutation(
            np.flatnonzero(labels_N == label)
        )
        sizes = [max(1, round(share * len(members))) if share else 0 for share in shares[1:]]
        for split, part in zip((1, 2), np.split(members, np.cumsum(sizes))[:2], strict=True):
            splits_N[part] = split
    return splits_N
