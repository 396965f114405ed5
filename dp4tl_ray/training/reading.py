"""Rows of a batch -> images in memory, and the changes that are left to make on the device.

Images of one size are changed on the device, all at once. Compressed pictures have many sizes, and
are cropped as they are decoded: what is cut away is never resized.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.data.images import Images, Rows
from dp4tl_ray.data.packed import JPEGImages
from dp4tl_ray.specs.training import Augmentation
from dp4tl_ray.training.augment import Changes, augment, draw_changes
from dp4tl_ray.training.examples import Examples, floats, pinned
from dp4tl_ray.training.worker import Worker


@dataclass(frozen=True)
class View:
    """Images of a batch, in memory, and what a training sees of them."""

    images_NHWC: Tensor
    changes: Changes
    """One row per image."""
    size: int
    """Height and width that a training sees, pixels."""

    def show(self, spec: Augmentation | None, worker: Worker, rows: slice = slice(None)) -> Tensor:
        """Return some images on the worker's device, (n, channels, size, size).

        Args:
            spec: What the changes were drawn from; None shows the images without them.
            worker: Whose device.
            rows: Which.
        """
        pixels = floats(self.images_NHWC[rows].to(worker.device, non_blocking=True))
        if spec is not None:
            pixels = augment(pixels, spec, self.changes.rows(rows))
        if pixels.shape[2] == self.size:
            return pixels
        return F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)


def draw(
    specs: Sequence[Augmentation],
    examples: Examples,
    positions: Rows,
    rngs: Sequence[np.random.Generator],
) -> list[Changes]:
    """Draw the changes of a whole batch, once for each of its views."""
    images, aspects = examples.images, None
    if isinstance(images, JPEGImages):
        aspects = images.aspects(examples.rows[positions])
    size = len(positions)
    return [draw_changes(spec, size, rng, aspects) for spec, rng in zip(specs, rngs, strict=True)]


def read(
    images: Images, rows: Rows, views: Sequence[Changes], size: int, worker: Worker
) -> list[View]:
    """Read images once for all their views.

    Args:
        images: Of a dataset.
        rows: Which, (n,).
        views: What is to be changed in each view, one row per image.
        size: Height and width that the training sees, pixels.
        worker: On whose device they will be.
    """
    if isinstance(images, JPEGImages):
        cut = images.crops(rows, [view.crop_N4 for view in views], size)
        factor = size / images.shape[1]
        left = [replace(view, crop_N4=None).scaled(factor) for view in views]
        return [View(pinned(p, worker), v, size) for p, v in zip(cut, left, strict=True)]
    pixels = pinned(images[rows], worker)
    return [View(pixels, view, size) for view in views]
