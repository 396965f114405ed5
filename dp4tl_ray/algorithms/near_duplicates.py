"""Pictures that look alike: difference hashes, and the pairs that they and small copies agree on.

Shape suffixes: N and M pictures, S side of a small copy.
"""

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.memory import row_chunks

Hashes = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]

HASH_SHAPE = (8, 9)
"""Height and width of the copy whose neighbours' differences are the 64 bits of a hash."""
MOST_BITS = 10
"""Bits that the hashes of two copies of a picture may differ in, after scaling and compression."""
MOST_LEVELS = 2.0
"""Mean difference of grey values (of 255) up to which two small copies are of the same picture. Of
crops of photographs at half the size and quality 50, all are within it, 98 % with the bits."""


def difference_hash(small_89: npt.NDArray[np.integer]) -> int:
    """Hash a picture by the signs of the differences between neighbours in a row.

    Krawetz 2013, dHash.

    Args:
        small_89: Grey values of the picture scaled to 8 x 9.
    """
    signs = np.diff(small_89.astype(np.int16), axis=1) > 0
    return int.from_bytes(np.packbits(signs).tobytes(), "big")


def near_duplicates(
    hash_N: Hashes,
    small_NSS: npt.NDArray[np.uint8],
    hash_M: Hashes,
    small_MSS: npt.NDArray[np.uint8],
    most_bits: int = MOST_BITS,
    most_levels: float = MOST_LEVELS,
) -> Pairs:
    """Find the pairs of one picture of each set that look alike, (pairs, 2), ascending.

    Hashes propose pairs; small grey copies, which hashes of smooth pictures say little of, decide.

    Args:
        hash_N: Of the one set.
        small_NSS: Its grey copies.
        hash_M: Of the other set.
        small_MSS: Its grey copies.
        most_bits: By how many bits hashes may differ.
        most_levels: By how much copies may differ on average, grey values.
    """
    found = [np.empty((0, 2), np.int64)]
    # the exclusive or, its count of bits, and whether they are few
    for part in row_chunks(len(hash_N), 10 * len(hash_M)):
        near = np.argwhere(np.bitwise_count(hash_N[part, None] ^ hash_M) <= most_bits)
        near[:, 0] += part.start
        for some in row_chunks(len(near), 4 * small_NSS[0].size if len(near) else 1):
            i, j = near[some].T
            apart = np.abs(small_NSS[i].astype(np.int16) - small_MSS[j]).mean(axis=(1, 2))
            found.append(near[some][apart <= most_levels])
    return np.concatenate(found)
