import io
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from dp4tl_ray.algorithms import near_duplicates as module
from dp4tl_ray.algorithms.memory import row_chunks
from dp4tl_ray.algorithms.near_duplicates import difference_hash, near_duplicates
from dp4tl_ray.data.check import Inspection, inspect
from dp4tl_ray.data.images import Pixels
from dp4tl_ray.data.pictures import Pictures

N = 60


def crops() -> list[Pixels]:
    rng, found = np.random.default_rng(0), []
    for n in range(N):
        photograph = load_sample_images().images[n % 2]
        height, width = rng.integers(80, 240, 2)
        top, left = (rng.integers(0, a - b) for a, b in zip(photograph.shape, (height, width)))  # noqa: B905
        found.append(np.ascontiguousarray(photograph[top : top + height, left : left + width]))
    return found


def looked_at(pictures: list[Pixels]) -> Inspection:
    n = len(pictures)
    ids, zeros = [str(i) for i in range(n)], np.zeros(n, np.int64)
    listed = Pictures(ids, zeros, zeros.astype(np.int8), ("a",), pictures.__getitem__)
    return inspect(listed, channels=3, threads=1, report=lambda row: None)


def copied(picture: Pixels, scale: float, quality: int) -> Pixels:
    shape = [max(16, round(side * scale)) for side in picture.shape[1::-1]]
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((shape[0], shape[1])).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def test_a_hash_is_made_of_the_signs_of_differences() -> None:
    small = np.random.default_rng(0).integers(0, 256, (8, 9))
    bits = [int(small[y, x + 1] > small[y, x]) for y in range(8) for x in range(8)]
    assert difference_hash(small) == int("".join(map(str, bits)), 2)


def test_pairs_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hash_N, hash_M = (rng.integers(0, 2**12, n).astype(np.uint64) for n in (40, 30))
    small_N = rng.integers(100, 110, (40, 4, 4)).astype(np.uint8)
    small_M = rng.integers(100, 110, (30, 4, 4)).astype(np.uint8)
    expected = [
        (i, j)
        for i in range(40)
        for j in range(30)
        if bin(int(hash_N[i]) ^ int(hash_M[j])).count("1") <= 5
        and np.abs(small_N[i].astype(int) - small_M[j]).mean() <= 3
    ]
    assert len(expected) > 10
    for chunk in (2**26, 700):
        with monkeypatch.context() as patch:
            patch.setattr(module, "row_chunks", partial(row_chunks, budget=chunk))
            found = near_duplicates(hash_N, small_N, hash_M, small_M, 5, 3.0)
        assert list(map(tuple, found.tolist())) == expected
    none: npt.NDArray[np.uint64] = hash_M[:0]
    assert near_duplicates(hash_N, small_N, none, small_M[:0]).shape == (0, 2)


def test_copies_are_found_and_other_pictures_are_not() -> None:
    ours = crops()
    first = looked_at(ours)
    for scale, quality in ((1.0, 90), (0.67, 80), (1.5, 75), (0.5, 50)):
        second = looked_at([copied(picture, scale, quality) for picture in ours])
        pairs = near_duplicates(
            first.hash_N, first.small_NSS, second.hash_N, second.small_NSS
        ).tolist()
        assert all(i == j for i, j in pairs)
        assert len(pairs) >= 0.9 * N


def test_pictures_with_the_same_pixels_are_the_same_however_they_are_stored() -> None:
    ours = crops()[:4]
    found = looked_at([ours[0], ours[1], ours[0].copy(), ours[2], ours[1], ours[1][:-1]])
    assert found.same() == [[0, 2], [1, 4]]
    assert found.readable.all() and found.sizes_N2[5].tolist() == [
        ours[1].shape[0] - 1, ours[1].shape[1],
    ]  # fmt: skip
