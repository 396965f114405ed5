"""Pictures that look alike: difference hashes and small grey copies, mirrored or not.

Shape suffixes: N and M pictures, n pairs of them, S side of a small copy.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.memory import row_chunks

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Sums = npt.NDArray[np.int32]

HASH_SHAPE = (8, 9)
"""Height and width of the copy whose neighbours' differences are the 64 bits of a hash."""
MOST_BITS = 16
"""Bits that the hashes of two copies of a picture may differ in, after scaling and compression."""
MOST_LEVELS = 2.0
"""Mean difference of grey values (of 255) up to which two small copies are of the same picture. Of
crops of photographs, 99 % are found at half the size and quality 50, and no other pair is; of
pictures nearly of one colour, such as crops of a sky, others are."""
BLOCK = 512
"""Pictures of either side that are compared at once: what a block needs stays in the cache."""


class Looks(NamedTuple):
    """What N pictures are compared by."""

    hash_N: Hashes
    mirrored_N: Hashes
    """Hashes of the pictures with left and right exchanged; of neighbours that are equal, the bit
    is 0 in both, so that the one does not follow from the other."""
    small_NSS: npt.NDArray[np.uint8]
    """Grey copies."""

    def take(self, rows: Rows) -> "Looks":
        """Return those of some of the pictures."""
        return Looks(self.hash_N[rows], self.mirrored_N[rows], self.small_NSS[rows])


def difference_hash(small_89: npt.NDArray[np.integer]) -> int:
    """Hash a picture by the signs of the differences between neighbours in a row.

    Krawetz 2013, dHash.

    Args:
        small_89: Grey values of the picture scaled to 8 x 9.
    """
    signs = np.diff(small_89.astype(np.int16), axis=1) > 0
    return int.from_bytes(np.packbits(signs).tobytes(), "big")


def first_alike(
    looks_N: Looks, looks_M: Looks, most_bits: int = MOST_BITS, most_levels: float = MOST_LEVELS
) -> tuple[Rows, Rows]:
    """Find, for each picture of two sets, the first of the other set that looks like it.

    Two pictures look alike if the hashes of both, or of one and the other mirrored, propose it, and
    their small copies, one mirrored then, agree: hashes of smooth pictures say little.

    Args:
        looks_N: Of the one set.
        looks_M: Of the other set.
        most_bits: By how many bits hashes may differ.
        most_levels: By how much small copies may differ on average, grey values.

    Returns:
        Rows of the other set, (N,) and (M,); -1 where none looks like it.
    """
    n, m = len(looks_N.hash_N), len(looks_M.hash_N)
    first_N, first_M = np.full(n, m), np.full(m, n)
    for i, j in _nearby(looks_N.small_NSS, looks_M.small_NSS, most_levels):
        better = (j < first_N[i]) | (i < first_M[j])
        i, j = i[better], j[better]
        alike = _alike(looks_N, looks_M, i, j, most_bits, most_levels)
        np.minimum.at(first_N, i[alike], j[alike])
        np.minimum.at(first_M, j[alike], i[alike])
    return np.where(first_N < m, first_N, -1), np.where(first_M < n, first_M, -1)


def first_alike_before(
    looks_N: Looks, most_bits: int = MOST_BITS, most_levels: float = MOST_LEVELS
) -> Rows:
    """Find, for each picture of a set, the first that looks like it and comes before it.

    Pictures without such a one do not look alike, whichever two are taken.

    Args:
        looks_N: Of the pictures.
        most_bits: As of `first_alike`.
        most_levels: As of `first_alike`.

    Returns:
        Rows, (N,); -1 where none before looks like it.
    """
    n = len(looks_N.hash_N)
    first_N = np.full(n, n)
    for i, j in _nearby(looks_N.small_NSS, None, most_levels):
        # of many that look alike, most pairs say nothing new, and cost no comparison of copies
        before, after = np.minimum(i, j), np.maximum(i, j)
        better = (before < first_N[after]) & (before < after)
        before, after = before[better], after[better]
        alike = _alike(looks_N, looks_N, before, after, most_bits, most_levels)
        np.minimum.at(first_N, after[alike], before[alike])
    return np.where(first_N < n, first_N, -1)


def _nearby(
    small_NSS: npt.NDArray[np.uint8], small_MSS: npt.NDArray[np.uint8] | None, most_levels: float
) -> Iterator[tuple[Rows, Rows]]:
    """Yield all pairs that two sums over their small copies let look alike, block by block.

    Copies that differ by `most_levels` on average differ by no more in a sum with signs, which
    mirroring does not change: the sum of all, which is sorted by, and upper less lower half.

    Args:
        small_NSS: Grey copies of the one set.
        small_MSS: Those of the other; None is the one itself, each pair once or twice.
        most_levels: By how much copies may differ on average.

    Yields:
        Rows of the one and of the other set, (n,) each, of at most BLOCK^2 pairs.
    """
    most = most_levels * small_NSS[0].size if len(small_NSS) else 0
    rows_N, sum_N, slope_N = _sums(small_NSS)
    rows_M, sum_M, slope_M = _sums(small_NSS if small_MSS is None else small_MSS)
    for at in range(0, len(rows_N), BLOCK):
        part = slice(at, at + BLOCK)
        first = np.searchsorted(sum_M, sum_N[part][0] - most)
        if small_MSS is None:
            first = max(first, at)
        stop = np.searchsorted(sum_M, sum_N[part][-1] + most, "right")
        for start in range(first, stop, BLOCK):
            other = slice(start, min(start + BLOCK, stop))
            near = np.abs(slope_N[part, None] - slope_M[other]) <= most
            i, j = np.divmod(np.flatnonzero(near), near.shape[1])  # nonzero takes twice as long
            yield rows_N[part][i], rows_M[other][j]


def _sums(small_NSS: npt.NDArray[np.uint8]) -> tuple[Rows, Sums, Sums]:
    """Return rows by their sum, that sum, and how much more of it is in the upper half, (N,)."""
    half = small_NSS.shape[1] // 2
    upper_N = small_NSS[:, :half].sum(axis=(1, 2), dtype=np.int32)
    lower_N = small_NSS[:, half:].sum(axis=(1, 2), dtype=np.int32)
    rows_N = np.argsort(upper_N + lower_N, kind="stable")
    return rows_N, (upper_N + lower_N)[rows_N], (upper_N - lower_N)[rows_N]


def _alike(
    looks_N: Looks, looks_M: Looks, i: Rows, j: Rows, most_bits: int, most_levels: float
) -> Mask:
    """Say which of the pairs of the rows i and j look alike, (n,)."""

    def near(one_n: Hashes, other_n: Hashes) -> Mask:
        few_n: Mask = np.bitwise_count(one_n ^ other_n) <= most_bits
        return few_n

    straight = near(looks_N.hash_N[i], looks_M.hash_N[j])
    mirrored = near(looks_N.mirrored_N[i], looks_M.hash_N[j])
    mirrored |= near(looks_N.hash_N[i], looks_M.mirrored_N[j])
    alike = np.zeros(len(i), np.bool_)
    for proposed, step in ((straight, 1), (mirrored, -1)):
        at = np.flatnonzero(proposed & ~alike)
        # grey values of both, the one again as wide as differences are, those, and their sizes
        for some in row_chunks(len(at), 8 * looks_N.small_NSS[0].size if len(at) else 1):
            one = looks_N.small_NSS[i[at[some]], :, ::step].astype(np.int16)
            other = looks_M.small_NSS[j[at[some]]]
            alike[at[some]] = np.abs(one - other).mean(axis=(1, 2)) <= most_levels
    return alike
