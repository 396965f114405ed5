"""Datasets: what can be pruned (a source) and what can be transferred to (a target)."""

import os
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Count, Natural, Spec, Whole

ImageSize = Annotated[Literal[16, 32], Whole]


class GlyphsAndTextures(Spec):
    """The embedded source: glyphs in many fonts, and textures; needs no download."""

    dataset: Literal["glyphs_and_textures"] = "glyphs_and_textures"
    image_size: ImageSize = 16
    """Height and width in pixels."""
    images_per_class: Count = 40
    """Images rendered for each of the classes."""
    seed: Natural = 0
    """Seed of the rendering and of the order of the classes."""


class _Target(Spec):
    shots: Count | None = None
    """Train images (and as many validation images) per class, drawn anew by every seed of the
    study; null uses all there are."""


class HeldOutLetters(_Target):
    """Capital letters in fonts that the embedded source never uses."""

    dataset: Literal["held_out_letters"] = "held_out_letters"
    image_size: ImageSize = 16
    """Height and width in pixels; must be the source's."""
    shots: Count | None = 5
    """Train images (and as many validation images) per class, drawn anew by every seed of the
    study; null uses all there are."""


class HandwrittenDigits(_Target):
    """scikit-learn's handwritten digits, split in contiguous blocks of writers."""

    dataset: Literal["handwritten_digits"] = "handwritten_digits"
    image_size: ImageSize = 16
    """Height and width in pixels; must be the source's."""
    shots: Count | None = 2
    """Train images (and as many validation images) per class, drawn anew by every seed of the
    study; null uses all there are."""


class HeldOutTextures(_Target):
    """Textures of frequencies and orientations that the embedded source never shows."""

    dataset: Literal["held_out_textures"] = "held_out_textures"
    image_size: ImageSize = 16
    """Height and width in pixels; must be the source's."""
    shots: Count | None = 5
    """Train images (and as many validation images) per class, drawn anew by every seed of the
    study; null uses all there are."""


class ImageFolder(_Target):
    """Pictures in one folder per class, as torchvision's ImageFolder reads them.

    `path` holds either the class folders, or folders `train`, `test` (and `val`) that hold them.
    A target without its own splits is divided by a seeded draw per class: 60 % train, 20 % val,
    20 % test. A source gives its train split, or all its pictures where it has no splits.
    """

    dataset: Literal["image_folder"] = "image_folder"
    path: Annotated[str, Field(min_length=1)]
    """Folder of the pictures; a relative path starts at the study's `data_root`."""
    image_size: Annotated[int, Field(ge=8, le=512), Whole] = 32
    """Height and width in pixels that every picture is brought to (shorter side, centre crop)."""
    channels: Annotated[Literal[1, 3], Whole] = 3
    """1 reads grey values, 3 reads RGB; source and targets must agree."""


Source = Annotated[
    GlyphsAndTextures | ImageFolder, Field(discriminator="dataset"), BareName("dataset")
]
Target = Annotated[
    HeldOutLetters | HandwrittenDigits | HeldOutTextures | ImageFolder,
    Field(discriminator="dataset"),
    BareName("dataset"),
]
D = TypeVar("D", bound=Spec)
Dataset = GlyphsAndTextures | HeldOutLetters | HandwrittenDigits | HeldOutTextures | ImageFolder


def located(dataset: D, root: str) -> D:
    """Return a dataset whose path starts at a root, if it has one that is relative."""
    if isinstance(dataset, ImageFolder):
        return dataset.model_copy(update={"path": os.path.join(root, dataset.path)})
    return dataset


def channels(dataset: Dataset) -> int:
    """Return the number of channels of a dataset's images."""
    return dataset.channels if isinstance(dataset, ImageFolder) else 1
