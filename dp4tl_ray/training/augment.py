"""Random changes of a batch of images, as batched tensor operations.

The parameters of a whole batch are drawn at once from (seed, step); a worker applies its own rows.
So an example meets the same change whoever trains on it.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.specs.training import Augmentation
from dp4tl_ray.training.color import Colors, Rows, change_colors_, draw_colors

TRIES, LARGEST_RATIO = 10, 4 / 3
"""Of a crop; the smallest ratio of width to height is the inverse."""
BYTES_AT_A_TIME = 2**23
"""Of images on a CPU; what is computed in between then stays in its cache."""


@dataclass(frozen=True)
class Changes:
    """Parameters of a batch, one row per image."""

    shift_N2: npt.NDArray[np.int64]
    """Shift down and right, in pixels."""
    flip_N: npt.NDArray[np.bool_]
    """Whether to mirror."""
    crop_N4: npt.NDArray[np.float64] | None
    """Centre (y, x) and half size (y, x) of the crop in coordinates from -1 to 1; None if nothing
    is cropped."""
    colors: Colors | None
    """What happens to the colours; None if nothing does."""

    def scaled(self, factor: float) -> "Changes":
        """Return the parameters for images of `factor` times the size."""
        colors = self.colors and replace(self.colors, sigma_N=self.colors.sigma_N * factor)
        shift = (self.shift_N2 * factor).round().astype(np.int64)
        return replace(self, shift_N2=shift, colors=colors)

    def rows(self, part: Rows) -> "Changes":
        """Return the parameters of some of the images."""
        colors = self.colors and self.colors.rows(part)
        crop = None if self.crop_N4 is None else self.crop_N4[part]
        return Changes(self.shift_N2[part], self.flip_N[part], crop, colors)


def draw_changes(
    spec: Augmentation,
    n: int,
    rng: np.random.Generator,
    aspect_N: npt.NDArray[np.float64] | None = None,
) -> Changes:
    """Draw the parameters for n images, whose width / height is `aspect_N`, or 1."""
    shift = rng.integers(-spec.shift, spec.shift + 1, size=(n, 2))
    flip = rng.random(n) < (0.5 if spec.flip else 0.0)
    aspects = np.ones(n) if aspect_N is None else aspect_N
    crop = _draw_crops(spec.crop, aspects, rng) if spec.crop < 1 else None
    return Changes(shift, flip, crop, draw_colors(spec, n, rng))


def _draw_crops(
    smallest: float, aspect_N: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw crops as torchvision's RandomResizedCrop does, but for its whole pixels.

    Area and ratio (3/4 to 4/3, on a log scale) are drawn until they fit, ten times at most; then it
    is the largest crop in the middle whose ratio is allowed.
    """
    n, each = len(aspect_N), np.arange(len(aspect_N))
    area = rng.uniform(smallest, 1.0, size=(n, TRIES))
    ratio = np.exp(rng.uniform(-1, 1, size=(n, TRIES)) * np.log(LARGEST_RATIO))
    # width / height of a crop as shares of the image's
    relative = ratio / aspect_N[:, None]
    halves = np.sqrt(np.stack([area / relative, area * relative], axis=2))
    fits = (halves <= 1).all(axis=2)
    half = halves[each, fits.argmax(axis=1)]
    centre = rng.uniform(-1, 1, size=(n, 2)) * (1 - half)
    whole = np.stack([LARGEST_RATIO * aspect_N, LARGEST_RATIO / aspect_N], axis=1).clip(max=1)
    none = ~fits.any(axis=1)
    half[none], centre[none] = whole[none], 0.0
    return np.concatenate([centre, half], axis=1)


def augment(pixels_NCHW: Tensor, spec: Augmentation, changes: Changes) -> Tensor:
    """Shift, mirror and crop images, then change their colours; the images given stay as they are.

    Args:
        pixels_NCHW: Images of 1 or 3 channels, float32 in [0, 1].
        spec: What the changes were drawn from.
        changes: One row per image.
    """
    if changes.crop_N4 is None and (spec.shift or spec.flip):
        pixels_NCHW = _move(pixels_NCHW, changes)
    if changes.crop_N4 is None and changes.colors is None:
        return pixels_NCHW
    n, *size = pixels_NCHW.shape
    at_a_time = max(1, BYTES_AT_A_TIME // (4 * int(np.prod(size)))) if pixels_NCHW.is_cpu else n
    changed = torch.empty(pixels_NCHW.shape, device=pixels_NCHW.device)
    for start in range(0, n, at_a_time):
        rows = slice(start, start + at_a_time)
        part, some = pixels_NCHW[rows], changes.rows(rows)
        changed[rows] = part if some.crop_N4 is None else _crop(part, some, some.crop_N4)
        if some.colors is not None:
            change_colors_(changed[rows], spec, some.colors)
    return changed


def _move(pixels_NCHW: Tensor, changes: Changes) -> Tensor:
    """Shift and mirror as an indexing."""
    if not changes.shift_N2.any():
        return _mirror_(pixels_NCHW.clone(), changes.flip_N)
    n, _, height, width = pixels_NCHW.shape
    y = np.arange(height) - changes.shift_N2[:, :1]
    x = np.arange(width) - changes.shift_N2[:, 1:]
    x = np.where(changes.flip_N[:, None], width - 1 - x, x)
    y_NH = torch.from_numpy(y.clip(0, height - 1)).to(pixels_NCHW.device)
    x_NW = torch.from_numpy(x.clip(0, width - 1)).to(pixels_NCHW.device)
    image_N11 = torch.arange(n, device=pixels_NCHW.device)[:, None, None]
    moved_NHWC = pixels_NCHW.permute(0, 2, 3, 1)[image_N11, y_NH[:, :, None], x_NW[:, None, :]]
    return moved_NHWC.permute(0, 3, 1, 2)


def _crop(pixels_NCHW: Tensor, changes: Changes, crop_N4: npt.NDArray[np.float64]) -> Tensor:
    """Shift, mirror and crop as one bilinear sampling.

    The crop is F.interpolate of the cropped image, without antialias: crops become as large as the
    image was, and so are never made smaller.
    """
    n, _, height, width = pixels_NCHW.shape
    y = _positions(height, crop_N4[:, 0::2], changes.shift_N2[:, 0])
    x = _positions(width, crop_N4[:, 1::2], changes.shift_N2[:, 1])
    # reading from right to left is slow: what is to be mirrored is read mirrored at the centre
    x = np.where(changes.flip_N[:, None], -x[:, ::-1], x)
    y_NH, x_NW = (torch.from_numpy(p).float().to(pixels_NCHW.device) for p in (y, x))
    grid_NHW2 = torch.empty(n, height, width, 2, device=pixels_NCHW.device)
    grid_NHW2[..., 0] = x_NW[:, None, :]
    grid_NHW2[..., 1] = y_NH[:, :, None]
    # a plane is read faster than interleaved channels, also with the copy
    planes_NCHW = pixels_NCHW.contiguous()
    cropped = F.grid_sample(planes_NCHW, grid_NHW2, padding_mode="border", align_corners=False)
    return _mirror_(cropped, changes.flip_N)


def _mirror_(pixels_NCHW: Tensor, flip_N: npt.NDArray[np.bool_]) -> Tensor:
    """Mirror some images, in place."""
    flip = torch.from_numpy(np.flatnonzero(flip_N)).to(pixels_NCHW.device)
    return pixels_NCHW.index_copy_(0, flip, pixels_NCHW.index_select(0, flip).flip(3))


def _positions(
    size: int, crop_N2: npt.NDArray[np.float64], shift_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return from where each pixel comes along one axis, (N, size), in coordinates from -1 to 1."""
    centre_N1, half_N1 = crop_N2[:, :1], crop_N2[:, 1:]
    pixel = (2 * np.arange(size) + 1) / size - 1
    # the outermost pixels would lie less than half a pixel from the edge of the crop, and so mix
    # with pixels outside of it
    most_N1 = np.maximum(half_N1 - 1 / size, 0)
    offset_NS = (pixel * half_N1).clip(-most_N1, most_N1)
    position_NS: npt.NDArray[np.float64] = centre_N1 + offset_NS - 2 * shift_N[:, None] / size
    return position_NS
