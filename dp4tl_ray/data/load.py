"""Dataset specs -> labeled images."""

from dataclasses import replace
from typing import assert_never

import numpy as np

from dp4tl_ray.data.embedded import (
    glyphs_and_textures,
    handwritten_digits,
    held_out_letters,
    held_out_textures,
)
from dp4tl_ray.data.glyphs import CHARACTERS
from dp4tl_ray.data.image_folder import (
    Keep,
    count_pictures,
    in_memory,
    read_image_folder,
    split_at_random,
)
from dp4tl_ray.data.images import SPLITS, LabeledImages, Role
from dp4tl_ray.data.textures import SOURCE_TEXTURES
from dp4tl_ray.specs.data import (
    Dataset,
    GlyphsAndTextures,
    HandwrittenDigits,
    HeldOutLetters,
    HeldOutTextures,
    ImageFolder,
    Source,
)

Embedded = GlyphsAndTextures | HeldOutLetters | HandwrittenDigits | HeldOutTextures


def load_images(spec: Dataset, role: Role, keep: Keep = in_memory) -> LabeledImages:
    """Read or render a dataset; a target comes with train, val and test splits.

    Args:
        spec: Dataset.
        role: What it is for.
        keep: Decides where the images are kept, and how many are read at a time.

    Raises:
        DatasetError: Files are missing or damaged.
    """
    if isinstance(spec, ImageFolder):
        data = read_image_folder(spec, role, keep)
        return data if role == "source" else _with_all_splits(data)
    data = _embedded(spec)
    return replace(data, images=keep(data.images.shape, lambda part: data.images[part]))


def _embedded(spec: Embedded) -> LabeledImages:
    match spec:
        case GlyphsAndTextures():
            return glyphs_and_textures(spec.image_size, spec.images_per_class, spec.seed)
        case HeldOutLetters():
            return held_out_letters(spec.image_size, seed=0)
        case HandwrittenDigits():
            return handwritten_digits(spec.image_size)
        case HeldOutTextures():
            return held_out_textures(spec.image_size, seed=0)
        case _:
            assert_never(spec)


def count_source(spec: Source) -> int:
    """Count the examples of a source without reading or rendering them.

    Raises:
        DatasetError: Files are missing.
    """
    match spec:
        case GlyphsAndTextures(images_per_class=each):
            return (len(CHARACTERS) + len(SOURCE_TEXTURES)) * each
        case ImageFolder():
            return count_pictures(spec, "source")
        case _:
            assert_never(spec)


def _with_all_splits(images: LabeledImages) -> LabeledImages:
    """Give a folder without test or validation pictures such splits, by a seeded draw per class."""
    present = {SPLITS[index] for index in np.unique(images.splits)}
    if "test" not in present:
        return replace(images, splits=split_at_random(images.labels, [0.6, 0.2, 0.2]))
    if "val" not in present:
        train = images.rows("train")
        splits = images.splits.copy()
        splits[train] = split_at_random(images.labels[train], [0.8, 0.2, 0.0])
        return replace(images, splits=splits)
    return images
