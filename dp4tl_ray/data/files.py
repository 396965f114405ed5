"""Files that hold many pictures each: which there are, and of which split."""

import glob
from collections.abc import Iterator
from pathlib import Path

from dp4tl_ray.data.images import Split
from dp4tl_ray.data.pictures import DatasetError
from dp4tl_ray.data.tables import splits_named


def find_files(path: str, suffix: str, holding: str) -> list[tuple[Split, str, Path]]:
    """Return split, name and path of the files at a path, by name.

    A name is that below the folder, or below the part of a glob that is no pattern.

    Args:
        path: File, folder or glob.
        suffix: Of the files in a folder, such as .tar.
        holding: What files should hold, for people.

    Raises:
        DatasetError: There are none, or one is of no split, or of two.
    """
    root, found = _root(Path(path)), sorted(_matches(path, suffix))
    if not found:
        raise DatasetError(
            f"no {suffix} files at {path}; expected a file, a folder or a glob of files that hold "
            f"{holding}; splits are in their names, such as train-00{suffix}"
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


def _matches(path: str, suffix: str) -> Iterator[Path]:
    if Path(path).is_dir():
        yield from Path(path).rglob(f"*{suffix}")
    else:
        yield from map(Path, glob.glob(path, recursive=True))


def _root(path: Path) -> Path:
    """Return the folder that names start at."""
    if path.is_dir():
        return path
    return next(parent for parent in path.parents if not glob.has_magic(str(parent)))
