import io
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from dp4tl_ray.algorithms import near_duplicates as module
from dp4tl_ray.algorithms.memory import row_chunks
from dp4tl_ray.algorithms.near_duplicates import (
    Looks,
    difference_hash,
    first_alike,
    first_alike_before,
)
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


def looked_at(pictures: list[Pixels], splits: list[int] | None = None) -> Inspection:
    n = len(pictures)
    ids, zeros = [str(i) for i in range(n)], np.zeros(n, np.int64)
    split = np.array(splits or zeros, np.int8)
    listed = Pictures(ids, zeros, split, ("a",), pictures.__getitem__)
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


def drawn(n: int, seed: int) -> Looks:
    """Draw copies of eight pictures, some mirrored, too noisy, lighter, or with other hashes."""
    rng = np.random.default_rng(seed)
    originals = np.random.default_rng(0).integers(60, 160, (8, 4, 4))
    small = originals[rng.integers(8, size=n)]
    small[::2] = small[::2, :, ::-1]
    small[::3] += rng.integers(-8, 9, small[::3].shape)
    limits = np.array([(0, 0), (5, 5), (5, -5)])  # of the upper and the lower half
    small.reshape(n, 2, 2, 4)[...] += limits[rng.integers(3, size=n)][:, :, None, None]
    hash_N, mirrored_N = (rng.integers(0, 2**6, n).astype(np.uint64) for _ in range(2))
    return Looks(hash_N, mirrored_N, small.astype(np.uint8))


def alike(one: Looks, i: int, other: Looks, j: int) -> bool:
    """The definition, with 2 bits and 5 levels."""

    def near(a: np.uint64, b: np.uint64) -> bool:
        return bin(int(a) ^ int(b)).count("1") <= 2

    a, b = one.small_NSS[i].astype(int), other.small_NSS[j].astype(int)
    straight = near(one.hash_N[i], other.hash_N[j]) and np.abs(a - b).mean() <= 5
    proposed = near(one.mirrored_N[i], other.hash_N[j]) or near(one.hash_N[i], other.mirrored_N[j])
    return bool(straight or (proposed and np.abs(a[:, ::-1] - b).mean() <= 5))


@pytest.mark.parametrize(("block", "budget"), [(512, 2**26), (7, 700)])
def test_what_looks_alike_is_that_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, block: int, budget: int
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    blocks = partial(row_chunks, budget=budget)
    monkeypatch.setattr(module, "row_chunks", blocks)
    one, other = drawn(80, 0), drawn(50, 1)
    pairs = [(i, j) for i in range(80) for j in range(50) if alike(one, i, other, j)]
    first_N = [min((j for a, j in pairs if a == i), default=-1) for i in range(80)]
    first_M = [min((i for i, b in pairs if b == j), default=-1) for j in range(50)]
    before = [next((j for j in range(i) if alike(one, j, one, i)), -1) for i in range(80)]
    assert len(pairs) > 50
    found_N, found_M = first_alike(one, other, 2, 5.0)
    assert (found_N.tolist(), found_M.tolist()) == (first_N, first_M)
    assert first_alike_before(one, 2, 5.0).tolist() == before
    none = other.take(np.array([], np.int64))
    assert [found.tolist() for found in first_alike(one, none)] == [[-1] * 80, []]
    assert first_alike_before(none).tolist() == []


def test_copies_are_found_and_other_pictures_are_not() -> None:
    ours = crops()
    first = looked_at(ours).looks
    for scale, quality in ((1.0, 90), (0.67, 80), (1.5, 75), (0.5, 50)):
        for step in (1, -1):
            second = looked_at([copied(picture[:, ::step], scale, quality) for picture in ours])
            found_N, found_M = first_alike(first, second.looks)
            assert found_N.tolist() == found_M.tolist()
            assert {*(found_N - np.arange(N))[found_N >= 0]} == {0}
            assert (found_N >= 0).mean() >= 0.9
    assert (first_alike_before(first) < 0).all()


@pytest.mark.parametrize("noise", [0, 1])
def test_pictures_of_one_colour_are_not_compared_each_with_each(
    monkeypatch: pytest.MonkeyPatch, noise: int
) -> None:
    n, compared = 3000, list[int]()
    original = module._alike

    def counted(*args: Any) -> Any:
        compared.append(len(args[2]))
        return original(*args)

    monkeypatch.setattr(module, "_alike", counted)
    monkeypatch.setattr(module, "BLOCK", 32)
    zeros = np.zeros(n, np.uint64)
    white = 254 + np.random.default_rng(0).integers(-noise, noise + 1, (n, 16, 16))
    found = first_alike_before(Looks(zeros, zeros, white.astype(np.uint8)))
    assert found.tolist() == [-1] + [0] * (n - 1)
    assert n - 1 <= sum(compared) < 0.05 * n**2 / 2
    assert max(compared) <= 32**2


def test_pictures_with_the_same_pixels_are_the_same_however_they_are_stored() -> None:
    ours = crops()[:4]
    found = looked_at([ours[0], ours[1], ours[0].copy(), ours[2], ours[1], ours[1][:-1]])
    assert found.same() == [[0, 2], [1, 4]]
    assert found.readable.all() and found.sizes_N2[5].tolist() == [
        ours[1].shape[0] - 1, ours[1].shape[1],
    ]  # fmt: skip


def test_what_looks_alike_is_told_once_and_what_is_of_test_first() -> None:
    one, other = crops()[:2]
    copy, mirrored = copied(one, 0.8, 90), copied(one[:, ::-1], 1.0, 90)
    found = looked_at([one, copy, one, other, mirrored, copy], splits=[0, 0, 1, 0, 2, 2])
    assert found.same() == [[5, 1], [2, 0]]
    assert found.alike() == [[4, 5, 2]]
