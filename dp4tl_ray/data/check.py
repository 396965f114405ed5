"""Every picture of a dataset looked at once: does it decode, how large is it, is it there twice.

Shape suffixes: N pictures, n of them, S side of a small copy.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.near_duplicates import (
    HASH_SHAPE,
    Looks,
    difference_hash,
    first_alike_before,
)
from dp4tl_ray.data.decode import DecodeError, decoded, resized
from dp4tl_ray.data.pack import AT_A_TIME, in_order
from dp4tl_ray.data.pictures import Pictures

SMALL = 16
"""Height and width of the grey copies that near-duplicates are compared by."""
FAINT = 8.0
"""Standard deviation of a grey copy below which a picture is nearly of one colour. Of pairs that
look alike among 12,000 crops of two photographs, a quarter overlaps by less than half; nearly all
of these are fainter than that, pieces of sky."""


class _Look(NamedTuple):
    """What one picture is like; a reason instead of everything else where it does not decode."""

    reason: str
    size: tuple[int, int] = (0, 0)
    content: bytes = b""
    hashes: tuple[int, int] = (0, 0)
    """As it is, and mirrored."""
    small: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Inspection:
    """What N pictures are like."""

    pictures: Pictures
    unreadable: dict[int, str]
    """Row -> why it does not decode."""
    sizes_N2: npt.NDArray[np.int64]
    """Height and width, pixels; 0 where unreadable."""
    contents: list[bytes]
    """Checksum of the pixels of each; empty where unreadable."""
    looks: Looks
    """What they are compared by; zeros where unreadable."""

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Whether each decodes, (N,)."""
        return self.sizes_N2[:, 0] > 0

    def same(self) -> list[list[int]]:
        """Return the rows that have the same pixels, group by group, those of test first."""
        return [rows for rows in self._by_content() if len(rows) > 1]

    def alike(self) -> list[list[int]]:
        """Return the rows that look like the first of a group, those of test first.

        Of pictures with the same pixels one is looked at. A picture is in one group, next to the
        first that it looks like, and may be the first of another.
        """
        rows_n = np.array([rows[0] for rows in self._by_content()], np.int64)
        first_n = first_alike_before(self.looks.take(rows_n))
        groups: dict[int, list[int]] = {}
        for after in np.flatnonzero(first_n >= 0):
            first = int(rows_n[first_n[after]])
            groups.setdefault(first, [first]).append(int(rows_n[after]))
        return list(groups.values())

    def is_faint(self, row: int) -> bool:
        """Return whether a picture is nearly of one colour: looks then say little."""
        return bool(self.looks.small_NSS[row].std() < FAINT)

    def _by_content(self) -> list[list[int]]:
        """Return the rows that decode by their pixels; of test before val before train.

        What comes first of copies is to stay: a test split is what others have evaluated on.
        """
        groups: dict[bytes, list[int]] = {}
        for row in np.argsort(-self.pictures.splits, kind="stable").tolist():
            if self.contents[row]:
                groups.setdefault(self.contents[row], []).append(row)
        return list(groups.values())


def inspect(
    pictures: Pictures, channels: int, threads: int, report: Callable[[int], None]
) -> Inspection:
    """Decode every picture.

    Args:
        pictures: Of a dataset.
        channels: 1 for grey values, 3 for RGB.
        threads: How many decode at a time.
        report: Called with the number of pictures that are done.
    """
    n = len(pictures)
    unreadable, contents = dict[int, str](), list[bytes]()
    sizes, hashes = np.zeros((n, 2), np.int64), np.zeros((2, n), np.uint64)
    small = np.zeros((n, SMALL, SMALL), np.uint8)
    parts = [range(at, min(at + AT_A_TIME, n)) for at in range(0, n, AT_A_TIME)]

    def look(part: range) -> list[_Look]:
        return [_look(pictures, row, channels) for row in part]

    for part, looked in zip(parts, in_order(look, parts, threads), strict=True):
        for row, found in zip(part, looked, strict=True):
            contents.append(found.content)
            if found.small is None:
                unreadable[row] = found.reason
            else:
                sizes[row], hashes[:, row], small[row] = found.size, found.hashes, found.small
        report(part.stop)
    return Inspection(pictures, unreadable, sizes, contents, Looks(hashes[0], hashes[1], small))


def _look(pictures: Pictures, row: int, channels: int) -> _Look:
    try:
        picture = decoded(pictures.read(row), channels)
    except (DecodeError, OSError) as error:
        return _Look(str(error))
    height, width, _ = picture.shape
    checksum = hashlib.blake2b(f"{picture.shape}".encode(), digest_size=16)
    checksum.update(np.ascontiguousarray(picture).data)
    grey = picture.mean(axis=2, keepdims=True).round().astype(np.uint8)
    coarse = resized(grey, *HASH_SHAPE)[..., 0]
    hashes = difference_hash(coarse), difference_hash(coarse[:, ::-1])
    small = resized(grey, SMALL, SMALL)[..., 0]
    return _Look("", (height, width), checksum.digest(), hashes, small)
