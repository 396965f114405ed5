"""Every picture of a dataset looked at once: does it decode, how large is it, is it there twice."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.near_duplicates import HASH_SHAPE, difference_hash
from dp4tl_ray.data.decode import DecodeError, decoded, resized
from dp4tl_ray.data.pack import AT_A_TIME, in_order
from dp4tl_ray.data.pictures import Pictures

SMALL = 16
"""Height and width of the grey copies that near-duplicates are compared by."""


class _Look(NamedTuple):
    """What one picture is like; a reason instead of everything else where it does not decode."""

    reason: str
    size: tuple[int, int] = (0, 0)
    content: bytes = b""
    hash: int = 0
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
    hash_N: npt.NDArray[np.uint64]
    small_NSS: npt.NDArray[np.uint8]
    """Grey copies."""

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Whether each decodes, (N,)."""
        return self.sizes_N2[:, 0] > 0

    def same(self) -> list[list[int]]:
        """Return the rows that have the same pixels, group by group."""
        groups: dict[bytes, list[int]] = {}
        for row, content in enumerate(self.contents):
            if content:
                groups.setdefault(content, []).append(row)
        return [rows for rows in groups.values() if len(rows) > 1]


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
    sizes, hashes = np.zeros((n, 2), np.int64), np.zeros(n, np.uint64)
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
                sizes[row], hashes[row], small[row] = found.size, found.hash, found.small
        report(part.stop)
    return Inspection(pictures, unreadable, sizes, contents, hashes, small)


def _look(pictures: Pictures, row: int, channels: int) -> _Look:
    try:
        picture = decoded(pictures.read(row), channels)
    except (DecodeError, OSError) as error:
        return _Look(str(error))
    height, width, _ = picture.shape
    checksum = hashlib.blake2b(f"{picture.shape}".encode(), digest_size=16)
    checksum.update(np.ascontiguousarray(picture).data)
    grey = picture.mean(axis=2, keepdims=True).round().astype(np.uint8)
    bits = difference_hash(resized(grey, *HASH_SHAPE)[..., 0])
    small = resized(grey, SMALL, SMALL)[..., 0]
    return _Look("", (height, width), checksum.digest(), bits, small)
