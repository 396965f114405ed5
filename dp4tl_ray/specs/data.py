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


class Raw(Spec):
    """Decoded pixels, image_size x image_size: nothing to decode, at one byte per value."""

    encoding: Literal["raw"] = "raw"


class JPEG(Spec):
    """Whole pictures as JPEG: a tenth of the room, and random crops see more than the middle."""

    encoding: Literal["jpeg"] = "jpeg"
    short_side: Annotated[int, Field(ge=8, le=2048), Whole] = 256
    """Pixels that a longer shorter side is brought to; a JPEG that is small enough stays as it
    is."""
    quality: Annotated[int, Field(ge=50, le=100), Whole] = 90
    """Of what is encoded anew."""


Stored = Annotated[Raw | JPEG, Field(discriminator="encoding"), BareName("encoding")]


class OnDisk(_Target):
    """What all datasets have in common that lie in files, and are packed into the store once."""

    path: Annotated[str, Field(min_length=1)]
    """Where it lies; a relative path starts at the study's `data_root`."""
    image_size: Annotated[int, Field(ge=8, le=512), Whole] = 32
    """Height and width in pixels that every picture is brought to (shorter side, centre crop)."""
    channels: Annotated[Literal[1, 3], Whole] = 3
    """1 reads grey values, 3 reads RGB; source and targets must agree."""
    stored: Stored = Raw()
    """How the store keeps the pictures: raw or jpeg."""
    corrupt: Literal["stop", "skip"] = "stop"
    """What to do about a picture that does not decode; what is skipped is listed, and an alarm."""
    exclude: Annotated[str, Field(min_length=1)] | None = None
    """File of ids, one per line, that are left out, such as the near-duplicates that `dp4tl data
    check` lists; a relative path starts at the study's `data_root`."""


class ImageFolder(OnDisk):
    """Pictures in one folder per class, as torchvision's ImageFolder reads them.

    `path` holds either the class folders, or folders `train`, `test` (and `val`) that hold them.
    A target without its own splits is divided by a seeded draw per class: 60 % train, 20 % val,
    20 % test. A source gives its train split, or all its pictures where it has no splits.
    """

    dataset: Literal["image_folder"] = "image_folder"


AnyOnDisk = ImageFolder
Source = Annotated[
    GlyphsAndTextures | AnyOnDisk, Field(discriminator="dataset"), BareName("dataset")
]
Target = Annotated[
    HeldOutLetters | HandwrittenDigits | HeldOutTextures | AnyOnDisk,
    Field(discriminator="dataset"),
    BareName("dataset"),
]
D = TypeVar("D", bound=Spec)
Dataset = GlyphsAndTextures | HeldOutLetters | HandwrittenDigits | HeldOutTextures | AnyOnDisk


def located(dataset: D, root: str) -> D:
    """Return a dataset whose paths start at a root, as far as they are relative."""
    if isinstance(dataset, OnDisk):
        paths = {"path": dataset.path, "exclude": dataset.exclude}
        below = {name: path and os.path.join(root, path) for name, path in paths.items()}
        return dataset.model_copy(update=below)
    return dataset


def channels(dataset: Dataset) -> int:
    """Return the number of channels of a dataset's images."""
    return dataset.channels if isinstance(dataset, OnDisk) else 1
