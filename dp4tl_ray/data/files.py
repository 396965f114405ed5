"""Files that hold many pictures each: which there are, and of which split."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dp4tl_ray.data.images import Split
from dp4tl_ray.data.pictures import DatasetError
from dp4tl_ray.data.tables import splits_named

NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""Numbered files, as in train-{000..146}.tar."""


def find_files(path: str, suffix: str, holding: str) -> list[tuple[Split, str, Path]]:
    """Return split, name and path of the files at a path, by name.

    A name is that below the folder, or below the part of a glob that is no pattern.

    Args:
        path: File, folder or glob; numbered files may be written as train-{000..146}.tar.
        suffix: Of the files in a folder, such as .tar.
        holding: What files should hold, for people.

    Raises:
        DatasetError: There are none, or a numbered one is missing, or one is of no split, or of
            two.
    """
    root, found = _root(Path(path)), sorted({*_matches(path, suffix)})
    if not found:
        raise DatasetError(
            f"no {suffix} files at {path}; expected a file, a folder, a glob, or numbers such as "
            f"train-{{000..146}}{suffix}, of files that hold {holding}; splits are in their names, "
            f"such as train-00{suffix}"
        )
    names = [file.relative_to(root).as_posix() for file in found]
    spoken = [splits_named(name) for name in names]
    if Path(path).is_file() or not any(spoken):
        return [("train", name, file) for name, file in zip(names, found, strict=True)]
    splits = list[Split]()
    for name, of_name in zip(names, spoken, strict=True):
        if len(of_name) != 1:
            two = " and ".join(sorted(of_name)) or "no split, unlike others"
            raise DatasetError(f"{name} below {root} names {two}: train, val or test is needed")
        splits += of_name
    return [*zip(splits, names, found, strict=True)]


def numbered(path: str) -> Iterator[str]:
    """Write out the {000..146} of a path, as the shells and WebDataset do; several are crossed."""
    if (found := NUMBERS.search(path)) is None or os.path.exists(path):
        yield path
        return
    first, last = found.groups()
    padded = any(number.startswith("0") and number != "0" for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        yield from numbered(f"{path[: found.start()]}{number:0{width}}{path[found.end() :]}")


def _matches(path: str, suffix: str) -> Iterator[Path]:
    if Path(path).is_dir():
        # Spark writes folders that are named like files
        yield from (file for file in Path(path).rglob(f"*{suffix}") if file.is_file())
        return
    for one in numbered(path):
        found = glob.glob(one, recursive=True)
        if not found and one != path:
            raise DatasetError(f"{one} is not there, which {path} names")
        yield from map(Path, found)


def _root(path: Path) -> Path:
    """Return the folder that names start at."""
    if path.is_dir():
        return path
    plain = (p for p in path.parents if not (glob.has_magic(str(p)) or NUMBERS.search(str(p))))
    return next(plain)
