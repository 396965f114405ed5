"""Pictures of a dataset on disk, listed and not decoded yet; what every loader gives."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dp4tl_ray.data.images import SPLITS, Pixels, Split

UNWRITABLE = re.compile("[\n\ud800-\udfff]")
"""What no list of ids holds: line breaks, and bytes that are no UTF-8, as Python reads them."""


class DatasetError(Exception):
    """A dataset on disk is not as it should be; the message says where and what is expected."""


@dataclass(frozen=True)
class Pictures:
    """N labeled pictures, in an order that no file system decides."""

    ids: Sequence[str]
    """Stable name of each picture, none twice."""
    labels: npt.NDArray[np.int64]
    """Class index of each, (N,)."""
    splits: npt.NDArray[np.int8]
    """Index into SPLITS of each, (N,)."""
    class_names: tuple[str, ...]
    read: Callable[[int], bytes | Pixels]
    """Gives the i-th picture: what its file holds, or pixels (height, width, channels)."""
    files: Sequence[str] = ()
    """What the pictures lie in: one file each, in their order, or some that hold many."""
    groups: npt.NDArray[np.int64] | None = field(default=None)
    """Group of each, (N,), where the worst one is to be reported."""
    group_names: tuple[str, ...] = ()
    version: str = ""
    """What else identifies the content, such as a revision, or who has listed it."""

    listed_rows: npt.NDArray[np.int64] | None = None
    """Row of each among all that its role lists, (N,), where some were left out."""
    one_file_each: bool = False
    """Whether every picture is a file, `files` being these, in the order of the pictures."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Return the indices of the pictures of one split, ascending."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def place(self, row: int) -> str:
        """Name a picture in a message: its file, if it has one of its own."""
        return self.files[row] if self.one_file_each else self.ids[row]

    def take(self, rows: npt.NDArray[np.int64]) -> "Pictures":
        """Return some of the pictures, with all class names."""
        before = np.arange(len(self)) if self.listed_rows is None else self.listed_rows
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            labels=self.labels[rows],
            splits=self.splits[rows],
            read=lambda i: self.read(int(rows[i])),
            files=[self.files[row] for row in rows] if self.one_file_each else self.files,
            groups=None if self.groups is None else self.groups[rows],
            listed_rows=before[rows],
        )


def of_files(
    root: Path,
    names: Sequence[str],
    labels: Sequence[int],
    splits: Sequence[int],
    class_names: tuple[str, ...],
) -> Pictures:
    """Describe pictures that are a file each, by their names below a folder, which are their ids.

    Names are text, not paths: ImageNet has more than a million.
    """

    def read(i: int) -> bytes:
        return (root / names[i]).read_bytes()

    return Pictures(
        ids=names,
        labels=np.array(labels, np.int64),
        splits=np.array(splits, np.int8),
        class_names=class_names,
        read=read,
        files=[f"{root}/{name}" for name in names],
        one_file_each=True,
    )


def fingerprint(pictures: Pictures, missing_ok: bool = False) -> str:
    """Identify pictures by name, class and split, and by version, size and time of their files.

    Nothing is opened, and the folder that all lie in does not count.

    Raises:
        DatasetError: A file that a list or a link names is not there, unless it may be missing.
    """
    content = hashlib.sha256(repr((pictures.version, pictures.class_names)).encode())
    rows = zip(pictures.ids, pictures.labels.tolist(), pictures.splits.tolist(), strict=True)
    content.update("\n".join(f"{id}\0{label}\0{split}" for id, label, split in rows).encode())
    # what was left out moves the rows that exports name
    for array in (pictures.groups, pictures.listed_rows):
        content.update(b"" if array is None else array.tobytes())
    for file in pictures.files:
        try:
            status = os.stat(file)
        except OSError as error:
            if missing_ok:
                content.update(b"missing\n")
                continue
            raise DatasetError(
                f"{file} belongs to the dataset: {error.strerror}; `exclude` and `corrupt: skip` "
                "do without it"
            ) from error
        content.update(f"{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return content.hexdigest()


def read_ids(path: Path) -> list[str]:
    """Read ids, one per line; names of files may hold any other space.

    Raises:
        OSError, UnicodeDecodeError: It cannot be read.
    """
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [id for line in lines if (id := line.removesuffix("\r"))]


def without(pictures: Pictures, excluded: Path) -> Pictures:
    """Leave out the pictures whose ids a file lists, one per line.

    Raises:
        DatasetError: There is no such file, or an id in it is none of the dataset's.
    """
    try:
        unwanted = {*read_ids(excluded)}
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"exclude {excluded}: cannot be read: {error}") from error
    if unknown := sorted(unwanted.difference(pictures.ids)):
        raise DatasetError(
            f"exclude {excluded}: {len(unknown)} of its {len(unwanted)} ids are none of the "
            f"dataset's, such as {unknown[0]!r}; a dataset's ids look like {pictures.ids[0]!r}"
        )
    kept = [row for row, id in enumerate(pictures.ids) if id not in unwanted]
    return pictures.take(np.array(kept, np.int64))


def split_at_random(labels_N: npt.NDArray[np.int64], shares: list[float]) -> npt.NDArray[np.int8]:
    """Assign each class's examples to splits by fixed shares, in a seeded order.

    Args:
        labels_N: Class of each example.
        shares: Share of train, val and test. Every class gives at least one example to each that is
            not 0, as far as it has so many: to train first, then to test, then to val.
    """
    splits_N = np.zeros(len(labels_N), np.int8)
    for label in np.unique(labels_N):
        members = np.random.default_rng([0, int(label)]).permutation(
            np.flatnonzero(labels_N == label)
        )
        val, test = (max(1, round(share * len(members))) if share else 0 for share in shares[1:])
        test = min(test, len(members) - 1)
        val = min(val, len(members) - 1 - test)
        splits_N[members[:val]] = 1
        splits_N[members[val : val + test]] = 2
    return splits_N


def with_all_splits(pictures: Pictures) -> Pictures:
    """Give a dataset without test or validation pictures such splits, by a seeded draw per class.

    Without a test split: 60 % train, 20 % val, 20 % test of everything. Without a validation split:
    a fifth of the train pictures.
    """
    present = {SPLITS[index] for index in np.unique(pictures.splits)}
    if "test" not in present:
        return replace(pictures, splits=split_at_random(pictures.labels, [0.6, 0.2, 0.2]))
    if "val" not in present:
        train = pictures.rows("train")
        splits = pictures.splits.copy()
        splits[train] = split_at_random(pictures.labels[train], [0.8, 0.2, 0.0])
        return replace(pictures, splits=splits)
    return pictures
