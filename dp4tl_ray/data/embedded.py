"""The embedded world: a source and three targets that need no download.

The source has glyphs and textures. Letters and digits need its one half, textures the other, so
that what is worth keeping depends on the target. Shape suffixes: N images, H height, W width.
"""

import string
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from dp4tl_ray.data.glyphs import CHARACTERS, HELD_OUT_FONTS, SOURCE_FONTS, render_glyphs
from dp4tl_ray.data.images import SPLITS, LabeledImages, Split
from dp4tl_ray.data.textures import (
    HELD_OUT_TEXTURES,
    SOURCE_TEXTURES,
    render_textures,
)

Floats = npt.NDArray[np.floating]
Pixels = npt.NDArray[np.uint8]

IMAGE_SIZES = (16, 32)

# One number per dataset keeps their random streams apart under one seed.
_SOURCE_GLYPHS, _SOURCE_TEXTURES, _SOURCE_ORDER, _LETTERS, _TEXTURES = range(5)

# Images per class of a rendered target. Few-shot draws come from the first two pools.
_POOLS: dict[Split, int] = {"train": 100, "val": 60, "test": 60}

# Ends of scikit-learn's digits' blocks. Neighbours share a writer, so a random split would leak.
_DIGIT_ENDS: dict[Split, int] = {"train": 480, "val": 780, "test": 1797}


def glyphs_and_textures(image_size: int, images_per_class: int, seed: int) -> LabeledImages:
    """Render the source: characters in many fonts and periodic textures, all rows for training."""
    _check_size(image_size)
    glyphs = [
        _finish(render_glyphs(character, SOURCE_FONTS, images_per_class, image_size, rng), rng)
        for character in CHARACTERS
        for rng in [np.random.default_rng([seed, _SOURCE_GLYPHS, ord(character)])]
    ]
    textures = [
        _finish(render_textures(texture, images_per_class, image_size, rng), rng)
        for index, texture in enumerate(SOURCE_TEXTURES)
        for rng in [np.random.default_rng([seed, _SOURCE_TEXTURES, index])]
    ]
    names = [f"glyph {character}" for character in CHARACTERS]
    names += [texture.name for texture in SOURCE_TEXTURES]
    # The order of classes must not say which half of the source a class is from: ties between
    # classes are broken by index.
    order = np.random.default_rng([seed, _SOURCE_ORDER]).permutation(len(names))
    blocks = glyphs + textures
    return _assemble(
        [blocks[position] for position in order],
        [names[position] for position in order],
        {"train": images_per_class},
    )


def held_out_letters(image_size: int, seed: int) -> LabeledImages:
    """Render a target: the capitals in three fonts that the source never uses."""
    _check_size(image_size)
    blocks = [
        _finish(render_glyphs(letter, HELD_OUT_FONTS, sum(_POOLS.values()), image_size, rng), rng)
        for letter in string.ascii_uppercase
        for rng in [np.random.default_rng([seed, _LETTERS, ord(letter)])]
    ]
    return _assemble(blocks, [f"letter {letter}" for letter in string.ascii_uppercase], _POOLS)


def held_out_textures(image_size: int, seed: int) -> LabeledImages:
    """Render a target: textures at frequencies and orientations between those of the source."""
    _check_size(image_size)
    blocks = [
        _finish(render_textures(texture, sum(_POOLS.values()), image_size, rng), rng)
        for index, texture in enumerate(HELD_OUT_TEXTURES)
        for rng in [np.random.default_rng([seed, _TEXTURES, index])]
    ]
    return _assemble(blocks, [texture.name for texture in HELD_OUT_TEXTURES], _POOLS)


def handwritten_digits(image_size: int) -> LabeledImages:
    """Return a target: scikit-learn's 1,797 handwritten digits, enlarged, in blocks of writers."""
    from sklearn.datasets import load_digits  # takes seconds to import: not for a mere plan

    _check_size(image_size)
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    size = (image_size, image_size)
    images = np.stack(
        [
            np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            for image in pixels
        ]
    )
    ends = np.array([_DIGIT_ENDS[split] for split in SPLITS])
    return LabeledImages(
        images=images[..., None],
        labels=digits.target.astype(np.int64),
        splits=np.searchsorted(ends, np.arange(len(images)), side="right").astype(np.int8),
        ids=tuple(f"digit {label}/{row}" for row, label in enumerate(digits.target)),
        class_names=tuple(f"digit {label}" for label in range(10)),
    )


def _check_size(image_size: int) -> None:
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image_size is {image_size}; the embedded world has {IMAGE_SIZES}")


def _finish(pattern_NHW: Floats, rng: np.random.Generator) -> Pixels:
    """Blur, fade and add noise, in the same way for glyphs and textures, and quantise."""
    num_images = len(pattern_NHW)

    def uniform(low: float, high: float) -> Floats:
        return rng.uniform(low, high, (num_images, 1, 1)).astype(np.float32)

    image_NHW = _blur(pattern_NHW, uniform(0, 0.33))
    dark, bright = uniform(0, 0.2), uniform(0.6, 1.0)
    image_NHW = dark + (bright - dark) * image_NHW
    noise_NHW = rng.standard_normal(image_NHW.shape, dtype=np.float32)
    image_NHW = image_NHW + uniform(0, 0.08) * noise_NHW
    quantised: Pixels = (np.clip(image_NHW, 0, 1) * 255).round().astype(np.uint8)
    return quantised[..., None]


def _blur(image_NHW: Floats, weight: Floats) -> Floats:
    """Blur with repeated three-tap filters; the radius is a fixed part of the image."""
    size = image_NHW.shape[1]
    for _ in range((size // 16) ** 2):  # variances add up, so twice the radius takes 4 passes
        for axis in (1, 2):
            padded = np.pad(image_NHW, [(1, 1) if a == axis else (0, 0) for a in range(3)], "edge")
            before = np.take(padded, range(size), axis)
            after = np.take(padded, range(2, size + 2), axis)
            image_NHW = (1 - 2 * weight) * image_NHW + weight * (before + after)
    return image_NHW


def _assemble(
    blocks: Sequence[Pixels], names: Sequence[str], pools: dict[Split, int]
) -> LabeledImages:
    """Join one block of images per class; each block is cut into the pools in order."""
    per_class = sum(pools.values())
    cut = np.repeat([SPLITS.index(split) for split in pools], list(pools.values()))
    return LabeledImages(
        images=np.concatenate(blocks),
        labels=np.repeat(np.arange(len(names), dtype=np.int64), per_class),
        splits=np.tile(cut, len(names)).astype(np.int8),
        ids=tuple(f"{name}/{index}" for name in names for index in range(per_class)),
        class_names=tuple(names),
    )
