"""Anyone's own pictures: one folder per class, as torchvision's ImageFolder reads them."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dp4tl_ray.data.images import SPLITS, LabeledImages, Role
from dp4tl_ray.specs.data import ImageFolder

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder, without importing it: a mere plan needs no torch."""
LAYOUT = (
    "expected FOLDER/CLASS/PICTURE.jpg, or FOLDER/train/CLASS/PICTURE.jpg and "
    "FOLDER/test/CLASS/PICTURE.jpg (and, if you have one, FOLDER/val/…)"
)


class DatasetError(Exception):
    """A dataset on disk is not as it should be; the message says where and what is expected."""


def fingerprint(spec: ImageFolder, role: Role) -> str:
    """Identify the pictures by relative name, size and time of change, without opening them.

    Raises:
        DatasetError: The folder is missing or holds no pictures.
    """
    root = Path(spec.path)
    lines = []
    for split in _split_folders(root, role):
        for path, _ in _pictures(split)[1]:
            status = path.stat()
            name = path.relative_to(root).as_posix()
            lines.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


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


def _pictures(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """List classes and (picture, class) in an order that no file system decides."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    pictures = [
        (path, index)
        for index, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in EXTENSIONS
    ]
    if not pictures:
        raise DatasetError(f"image_folder: no pictures below {folder.absolute()}; {LAYOUT}")
    empty = set(range(len(classes))) - {index for _, index in pictures}
    if empty:
        raise DatasetError(
            f"image_folder: class {classes[min(empty)]!r} below {folder.absolute()} has no pictures"
        )
    return classes, pictures


def read_image_folder(spec: ImageFolder, role: Role) -> LabeledImages:
    """Read every picture, bring it to one size, and note its split.

    A source gives only what it trains on: its folder `train`, or everything.

    Raises:
        DatasetError: A folder is missing, classes differ between splits, or a picture does not
            decode; the message names it.
    """
    root = Path(spec.path)
    folders = _split_folders(root, role)
    class_names: list[str] | None = None
    paths: list[Path] = []
    labels: list[int] = []
    splits: list[int] = []
    for folder in folders:
        names, pictures = _pictures(folder)
        if class_names is not None and names != class_names:
            odd = sorted(set(names) ^ set(class_names))[0]
            raise DatasetError(
                f"image_folder: class {odd!r} is not in every split of {root.absolute()}"
            )
        class_names = names
        split = 0 if folder == root else [str(name) for name in SPLITS].index(folder.name)
        paths += [path for path, _ in pictures]
        labels += [label for _, label in pictures]
        splits += [split] * len(pictures)
    assert class_names is not None
    images = np.stack([_read(path, spec.image_size, spec.channels) for path in paths])
    return LabeledImages(
        images=images,
        labels=np.array(labels, np.int64),
        splits=np.array(splits, np.int8),
        ids=tuple(path.relative_to(root).as_posix() for path in paths),
        class_names=tuple(class_names),
    )


def _read(path: Path, size: int, channels: int) -> npt.NDArray[np.uint8]:
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
