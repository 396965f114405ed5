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
from dp4tl_ray.data.image_folder import read_image_folder, split_at_random
from dp4tl_ray.data.images import SPLITS, LabeledImages, Role
from dp4tl_ray.specs.data import (
    Dataset,
    GlyphsAndTextures,
    HandwrittenDigits,
    HeldOutLetters,
    HeldOutTextures,
    ImageFolder,
)


def load_images(spec: Dataset, role: Role) -> LabeledImages:
    """Read or render a dataset; a target comes with train, val and test splits.

    Raises:
        DatasetError: Files are missing or damaged.
    """
    match spec:
        case GlyphsAndTextures():
            return glyphs_and_textures(spec.image_size, spec.images_per_class, spec.seed)
        case HeldOutLetters():
            return held_out_letters(spec.image_size, seed=0)
        case HandwrittenDigits():
            return handwritten_digits(spec.image_size)
        case HeldOutTextures():
            return held_out_textures(spec.image_size, seed=0)
        case ImageFolder():
            images = read_image_folder(spec, role)
            return images if role == "source" else _with_all_splits(images)
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
