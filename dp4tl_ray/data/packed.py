"""The packed store, read: any rows in any order, and no byte of any other.

Shards are memory-mapped, so that all processes of a machine share what is in its page cache, and a
shard is opened when the first of its pictures is read. Every picture is compared with its checksum
the first time that a process reads it.
"""

import mmap
import resource
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.data.decode import decode_jpeg, resized, square
from dp4tl_ray.data.images import Pixels, Rows
from dp4tl_ray.data.pack import NPY_HEADER_BYTES
from dp4tl_ray.data.pictures import DatasetError


def _allow_files(number: int) -> None:
    """Let this process open many more files, if it may: raw pictures of a million are 3,000."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and number > soft // 4:
        wanted = soft + number
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Shards:
    """Files in which the pictures of a dataset lie, opened as they are needed.

    Args:
        names: Of the shards.
        locate: Gives the path of a shard on this machine.
        addresses_N: ADDRESS of each picture.
        repair: What to do about a damaged one.
    """

    def __init__(
        self,
        names: Sequence[str],
        locate: Callable[[str], Path],
        addresses_N: npt.NDArray[np.void],
        repair: str = "",
    ) -> None:
        self.names, self.locate, self.addresses_N = names, locate, addresses_N
        self.repair = repair
        self.unread = np.ones(len(addresses_N), np.bool_)
        _allow_files(len(names))
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.addresses_N)

    def starts(self, addresses_n: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        """Return the first byte of pictures in their shards, (n,)."""
        raw = self.names[0].endswith(".npy")
        offsets: npt.NDArray[np.int64] = addresses_n["offset"]
        return NPY_HEADER_BYTES + offsets * addresses_n["length"] if raw else offsets

    def map(self, number: int) -> mmap.mmap:
        """Return a shard, memory-mapped."""
        if number not in self._maps:
            with self.locate(self.names[number]).open("rb") as file:
                opened = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):  # not on Windows
                # reading ahead would bring the pruned neighbours of what is kept
                opened.madvise(mmap.MADV_RANDOM)
            self._maps[number] = opened
        return self._maps[number]

    def check(self, row: int, content: bytes | memoryview) -> None:
        """Compare what was read with its checksum, the first time.

        Raises:
            DatasetError: It is not what was packed.
        """
        if self.unread[row]:
            if zlib.crc32(content) != self.addresses_N["checksum"][row]:
                path = self.locate(self.names[self.addresses_N["shard"][row]])
                raise DatasetError(
                    f"{path}: picture {row} does not match its checksum; {self.repair}"
                )
            self.unread[row] = False


class RawImages:
    """Decoded images of one size."""

    def __init__(self, shards: Shards, image_size: int, channels: int) -> None:
        self.shards, self._image = shards, (image_size, image_size, channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, height, width, channels)."""
        return (len(self.shards), *self._image)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, rows: Rows) -> Pixels:
        """Read images, (n, height, width, channels)."""
        images = np.empty((len(rows), *self._image), np.uint8)
        addresses = self.shards.addresses_N[rows]
        for number in np.unique(addresses["shard"]):
            here = np.flatnonzero(addresses["shard"] == number)
            images[here] = self._shard(int(number))[addresses["offset"][here]]
        for n in np.flatnonzero(self.shards.unread[rows]):
            self.shards.check(rows[n], images[n].data)
        return images

    def _shard(self, number: int) -> Pixels:
        opened = self.shards.map(number)
        images = np.frombuffer(opened, np.uint8, offset=NPY_HEADER_BYTES)
        return images.reshape(-1, *self._image)


class JPEGImages:
    """Compressed pictures of any shape, decoded by threads as they are read.

    Args:
        shards: Where they lie.
        image_size: Height and width that they are read in, pixels.
        channels: 1 for grey values, 3 for RGB.
    """

    def __init__(self, shards: Shards, image_size: int, channels: int) -> None:
        self.shards, self.image_size, self.channels = shards, image_size, channels

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, height, width, channels), as the middle of each is read."""
        return (len(self.shards), self.image_size, self.image_size, self.channels)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, rows: Rows) -> Pixels:
        """Read the middle square of pictures, (n, image_size, image_size, channels)."""
        [images] = self.crops(rows, [None], self.image_size)
        return images

    def aspects(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Return width / height of pictures, (n,)."""
        addresses = self.shards.addresses_N[rows]
        aspects: npt.NDArray[np.float64] = addresses["width"] / addresses["height"]
        return aspects

    def crops(
        self, rows: Rows, crops: Sequence[npt.NDArray[np.float64] | None], size: int
    ) -> list[Pixels]:
        """Read some crops of each picture, smoothed where they become smaller.

        Args:
            rows: Which pictures, (n,).
            crops: Centre (y, x) and half size (y, x) of each in coordinates from -1 to 1, (n, 4);
                None is the middle square.
            size: Height and width that every crop is resized to, pixels.

        Returns:
            (n, size, size, channels) for each of the crops.
        """
        images = [np.empty((len(rows), size, size, self.channels), np.uint8) for _ in crops]

        def read(n: int) -> None:
            picture = self._decode(rows[n])
            for crop_N4, into in zip(crops, images, strict=True):
                part = square(picture, size) if crop_N4 is None else cut(picture, crop_N4[n])
                into[n] = resized(part, size, size)

        threads = torch.get_num_threads()
        if threads == 1:
            for n in range(len(rows)):
                read(n)
        else:
            list(_pool(threads).map(read, range(len(rows))))
        return images

    def _decode(self, row: int) -> Pixels:
        shard, start, length, *_ = self.shards.addresses_N[row].item()
        content = memoryview(self.shards.map(shard))[start : start + length]
        self.shards.check(row, content)
        return decode_jpeg(content, self.channels)


def cut(picture: Pixels, crop_4: npt.NDArray[np.float64]) -> Pixels:
    """Cut whole pixels out of a picture.

    Args:
        picture: (height, width, channels).
        crop_4: Centre (y, x) and half size (y, x) in coordinates from -1 to 1.
    """
    centre, half = crop_4.reshape(2, 2).tolist()
    y, x = map(_pixels, centre, half, picture.shape[:2])
    return picture[y, x]


def _pixels(centre: float, half: float, side: int) -> slice:
    """Return the pixels of one axis that a crop covers, at least one."""
    length = max(1, round(half * side))
    start = round((centre + 1) * side / 2 - length / 2)
    start = min(max(start, 0), side - length)
    return slice(start, start + length)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")
