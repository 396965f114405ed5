"""Random changes of a batch of images, as batched tensor operations.

The parameters of a whole batch are drawn at once from (seed, step); a worker applies its own rows.
So an example meets the same change whoever trains on it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.specs.training import Augmentation


@dataclass(frozen=True)
class Changes:
    """Parameters of a batch, one row per image."""

    shift_N2: npt.NDArray[np.int64]
    """Shift down and right, in pixels."""
    flip_N: npt.NDArray[np.bool_]
    """Whether to mirror."""
    crop_N4: npt.NDArray[np.float64]
    """Centre (y, x) and half size (y, x) of the crop in coordinates from -1 to 1."""

    def rows(self, part: slice) -> "Changes":
        """Return the parameters of some of the images."""
        return Changes(self.shift_N2[part], self.flip_N[part], self.crop_N4[part])


def draw_changes(spec: Augmentation, n: int, rng: np.random.Generator) -> Changes:
    """Draw the parameters for n images."""
    shift = rng.integers(-spec.shift, spec.shift + 1, size=(n, 2))
    flip = rng.random(n) < (0.5 if spec.flip else 0.0)
    area = rng.uniform(spec.crop, 1.0, size=n)
    # ratio 3/4 to 4/3 on a log scale, as in torchvision; narrower where the area leaves no room
    ratio = np.exp(rng.uniform(-1, 1, size=n) * np.minimum(np.log(4 / 3), -np.log(area)))
    half = np.sqrt(np.stack([area / ratio, area * ratio], axis=1))
    centre = rng.uniform(-1, 1, size=(n, 2)) * (1 - half)
    return Changes(shift, flip, np.concatenate([centre, half], axis=1))


def augment(pixels_NCHW: Tensor, spec: Augmentation, changes: Changes) -> Tensor:
    """Apply shift and mirroring as an indexing, then the crop as a bilinear sampling."""
    n, _, height, width = pixels_NCHW.shape
    if spec.shift or spec.flip:
        y = np.arange(height) - changes.shift_N2[:, :1]
        x = np.arange(width) - changes.shift_N2[:, 1:]
        x = np.where(changes.flip_N[:, None], width - 1 - x, x)
        y_NH = torch.from_numpy(y.clip(0, height - 1)).to(pixels_NCHW.device)
        x_NW = torch.from_numpy(x.clip(0, width - 1)).to(pixels_NCHW.device)
        image_N11 = torch.arange(n, device=pixels_NCHW.device)[:, None, None]
        moved_NHWC = pixels_NCHW.permute(0, 2, 3, 1)[image_N11, y_NH[:, :, None], x_NW[:, None, :]]
        pixels_NCHW = moved_NHWC.permute(0, 3, 1, 2)
    if spec.crop < 1:
        cy, cx, hy, hx = torch.from_numpy(changes.crop_N4).float().to(pixels_NCHW.device).unbind(1)
        zero = torch.zeros_like(cy)
        theta_N23 = torch.stack([hx, zero, cx, zero, hy, cy], dim=1).view(n, 2, 3)
        grid = F.affine_grid(theta_N23, list(pixels_NCHW.shape), align_corners=False)
        pixels_NCHW = F.grid_sample(pixels_NCHW, grid, padding_mode="border", align_corners=False)
    return pixels_NCHW
