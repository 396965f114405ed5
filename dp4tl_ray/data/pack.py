"""Pictures -> shards of the packed store: one pass, by threads, that continues where it was ended.

A shard holds the pictures of consecutive rows, each addressable by itself: `images-00000.npy` holds
pixels of one size, `images-00000.jpegs` one JPEG after the other. What is known of a shard's
pictures is written next to it when it is whole, so that nobody packs it again.
"""

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.data.decode import (
    DecodeError,
    decoded,
    encode_jpeg,
    plain_jpeg,
    shorter_side,
    square,
)
from dp4tl_ray.data.images import Pixels
from dp4tl_ray.data.pictures import DatasetError, Pictures
from dp4tl_ray.specs.data import JPEG, Raw

T = TypeVar("T")

AT_A_TIME = 64
"""Pictures that a thread reads at once: of many sizes, a few megabytes."""
SHARD_BYTES, SHARD_PICTURES = 2**26, 2**12
"""Of a raw shard, as far as it holds a picture at all, and pictures of a JPEG shard."""
NPY_HEADER_BYTES = 128
"""Before the pixels of a raw shard; numpy leaves room there for any number of images."""
ADDRESS = np.dtype(
    [
        ("shard", "<i4"),
        ("offset", "<i8"),  # a byte of a JPEG shard, a row of a raw one
        ("length", "<i4"),  # bytes
        ("height", "<i4"),
        ("width", "<i4"),
        ("checksum", "<u4"),  # crc32 of the bytes
    ]
)
"""Where a picture lies, and what it is."""


@dataclass(frozen=True)
class Packing:
    """How pictures are packed."""

    image_size: int
    channels: int
    stored: Raw | JPEG
    skips: bool
    """Whether a picture that does not decode is left out, not an error."""

    def shards(self, num_pictures: int) -> list[range]:
        """Return the rows of each shard."""
        each = SHARD_PICTURES
        if isinstance(self.stored, Raw):
            each = max(1, SHARD_BYTES // (self.image_size**2 * self.channels))
        return [range(at, min(at + each, num_pictures)) for at in range(0, num_pictures, each)]

    def shard_name(self, number: int) -> str:
        """Return the name of a shard's file."""
        return f"images-{number:05d}." + ("npy" if isinstance(self.stored, Raw) else "jpegs")


class Index(NamedTuple):
    """What is known of the pictures of a shard, or of all of them."""

    rows: npt.NDArray[np.int64]
    """Of the listing, (N,): all but the skipped ones."""
    addresses: npt.NDArray[np.void]
    """ADDRESS of each, (N,)."""
    sums_2C: npt.NDArray[np.int64]
    """Sum and sum of squares of each channel; integers, so that their order does not matter."""
    skipped: list[tuple[int, str]]
    """Rows that do not decode, and why."""


class _Packed(NamedTuple):
    """One picture, packed."""

    row: int
    content: bytes
    height: int
    width: int
    checksum: int
    sums_2C: npt.NDArray[np.int64]


def pack_shard(
    pictures: Pictures,
    packing: Packing,
    number: int,
    folder: Path,
    notes: Path,
    threads: int,
    report: Callable[[int], None] = lambda row: None,
) -> Index:
    """Write one shard, unless it is there; return what is known of its pictures.

    Args:
        pictures: All of the dataset.
        packing: How.
        number: Which shard.
        folder: Where shards are.
        notes: Folder of what is known of whole shards.
        threads: How many decode at a time.
        report: Called with the row that was reached; may raise to end the work.

    Raises:
        DatasetError: A picture does not decode, and is not to be skipped; the message names it.
    """
    if (known := _noted(notes, number, folder / packing.shard_name(number))) is not None:
        return known
    rows = packing.shards(len(pictures))[number]
    kept, skipped = list[int](), list[tuple[int, str]]()
    addresses = np.zeros(len(rows), ADDRESS)
    sums, raw = np.zeros((2, packing.channels), np.int64), isinstance(packing.stored, Raw)

    def contents() -> Iterator[bytes]:
        """Give the pictures in their order, as threads finish them."""
        parts = [rows[at : at + AT_A_TIME] for at in range(0, len(rows), AT_A_TIME)]
        work, offset = partial(_try, pictures, packing), 0
        for part, tried in zip(parts, in_order(work, parts, threads), strict=True):
            for one in tried:
                if not isinstance(one, _Packed):
                    skipped.append(one)
                    continue
                length = len(one.content)
                where = (number, offset, length, one.height, one.width, one.checksum)
                addresses[len(kept)] = where
                offset += 1 if raw else length
                sums[:] += one.sums_2C
                kept.append(one.row)
                yield one.content
            report(part.stop)

    write = partial(_write_raw if raw else _write_jpegs, contents(), packing)
    write_atomically(folder / packing.shard_name(number), write)
    index = Index(np.array(kept, np.int64), addresses[: len(kept)], sums, skipped)
    _note(notes, number, index, folder / packing.shard_name(number))
    return index


def in_order(work: Callable[[range], T], parts: list[range], threads: int) -> Iterator[T]:
    """Give what threads make of each part, in order.

    They are at most two parts each ahead, so that memory is bounded, and Ctrl-C waits for no more.
    """
    pool, left = ThreadPoolExecutor(threads), iter(parts)
    try:
        pending = deque(pool.submit(work, part) for part in islice(left, 2 * threads))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(work, part) for part in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _try(pictures: Pictures, packing: Packing, rows: range) -> list[_Packed | tuple[int, str]]:
    """Pack some pictures; one that does not decode gives its row and the reason."""
    found: list[_Packed | tuple[int, str]] = []
    for row in rows:
        try:
            found.append(_pack(row, pictures.read(row), packing))
        except (DecodeError, OSError) as error:
            if not packing.skips:
                raise DatasetError(
                    f"{pictures.place(row)} {error}; `corrupt: skip` leaves such pictures out"
                ) from error
            found.append((row, str(error)))
    return found


def _pack(row: int, content: bytes | Pixels, packing: Packing) -> _Packed:
    channels = packing.channels
    plain = plain_jpeg(content, channels) if isinstance(content, bytes) else None
    picture = decoded(content, channels) if plain is None else plain
    if isinstance(packing.stored, Raw):
        picture = square(picture, packing.image_size)
        content = picture.tobytes()
    else:
        small = min(picture.shape[:2]) <= packing.stored.short_side
        picture = picture if small else shorter_side(picture, packing.stored.short_side)
        if plain is None or not small or isinstance(content, np.ndarray):
            content = encode_jpeg(picture, packing.stored.quality)
    height, width, _ = picture.shape
    return _Packed(row, content, height, width, zlib.crc32(content), _sums(picture))


def _sums(picture: Pixels) -> npt.NDArray[np.int64]:
    """Return sum and sum of squares of each channel, (2, channels)."""
    # whole rows of pixels at a time: three channels alone would be too short a loop
    rows = picture.reshape(picture.shape[0], -1)
    squares = np.square(rows, dtype=np.uint16)
    columns = np.stack([values.sum(axis=0, dtype=np.int64) for values in (rows, squares)])
    sums: npt.NDArray[np.int64] = columns.reshape(2, -1, picture.shape[2]).sum(axis=1)
    return sums


def _write_raw(contents: Iterator[bytes], packing: Packing, path: Path) -> None:
    """Write an .npy; how many images there are is known only in the end."""
    shape = (packing.image_size, packing.image_size, packing.channels)
    with path.open("wb") as file:
        _npy_header(file, (0, *shape))
        total = 0
        for total, content in enumerate(contents, start=1):  # noqa: B007
            file.write(content)
        file.seek(0)
        _npy_header(file, (total, *shape))
        _to_disk(file)


def _npy_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    assert file.tell() == NPY_HEADER_BYTES


def _write_jpegs(contents: Iterator[bytes], packing: Packing, path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(contents)
        _to_disk(file)


def _to_disk(file: IO[bytes]) -> None:
    """Wait until the disk has a shard, before it is noted to be whole."""
    file.flush()
    os.fsync(file.fileno())


# -- what is known of whole shards -----------------------------------------------------------------


def _note(notes: Path, number: int, index: Index, shard: Path) -> None:
    notes.mkdir(parents=True, exist_ok=True)
    rows, reasons = [row for row, _ in index.skipped], [reason for _, reason in index.skipped]

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(
                file,
                size=np.int64(shard.stat().st_size),
                rows=index.rows,
                addresses=index.addresses,
                sums_2C=index.sums_2C,
                skipped=np.array(rows, np.int64),
                reasons=np.array(reasons, np.str_),
            )

    write_atomically(notes / f"{number:05d}.npz", write)


def _noted(notes: Path, number: int, shard: Path) -> Index | None:
    """Read what is known of a shard; None where it is not whole."""
    path = notes / f"{number:05d}.npz"
    try:
        # opened here: numpy would leave a torn file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as note:
            if note["size"] != shard.stat().st_size:
                return None
            skipped = zip(note["skipped"].tolist(), map(str, note["reasons"]), strict=True)
            return Index(note["rows"], note["addresses"], note["sums_2C"], [*skipped])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # there is none, or a crash has torn it


def joined(indices: list[Index]) -> Index:
    """Put what is known of all shards together."""
    return Index(
        np.concatenate([one.rows for one in indices]),
        np.concatenate([one.addresses for one in indices]),
        np.sum([one.sums_2C for one in indices], axis=0),
        list(chain.from_iterable(one.skipped for one in indices)),
    )
