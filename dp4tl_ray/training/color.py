"""Random changes of the colours of a batch of images, in place.

Each operation is torchvision's, but with a parameter per image, on the images that need it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.specs.training import Augmentation

Rows = slice | npt.NDArray[np.int64]
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Colors:
    """Parameters of a batch, one row per image."""

    jitter_N: npt.NDArray[np.bool_]
    """Whether the four changes below are made."""
    factor_N4: npt.NDArray[np.float64]
    """Factors of brightness, contrast and saturation; turn of the hue in circles."""
    order_N4: npt.NDArray[np.int64]
    """Which of the four comes first, second, third, last."""
    gray_N: npt.NDArray[np.bool_]
    """Whether to drop the colours."""
    sigma_N: npt.NDArray[np.float64]
    """Deviation of the blur in pixels; 0 does not blur."""
    solarize_N: npt.NDArray[np.bool_]
    """Whether to invert the pixels from one half on."""

    def rows(self, part: Rows) -> "Colors":
        """Return the parameters of some of the images."""
        return Colors(**{name: values[part] for name, values in vars(self).items()})


def draw_colors(spec: Augmentation, n: int, rng: np.random.Generator) -> Colors | None:
    """Draw the parameters for n images, or nothing if no change of colours is asked for."""
    strength = np.array([spec.brightness, spec.contrast, spec.saturation, spec.hue])
    if not (strength.any() or spec.grayscale or spec.blur or spec.solarize):
        return None
    middle = np.array([1.0, 1.0, 1.0, 0.0])
    lowest = np.array([0.0, 0.0, 0.0, -0.5])
    low, high = np.maximum(middle - strength, lowest), middle + strength
    blur = rng.random(n) < spec.blur
    return Colors(
        jitter_N=rng.random(n) < spec.jitter,
        factor_N4=rng.uniform(low, high, size=(n, 4)),
        order_N4=rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1),
        gray_N=rng.random(n) < spec.grayscale,
        sigma_N=np.where(blur, rng.uniform(spec.blur_sigma[0], spec.blur_sigma[1], size=n), 0.0),
        solarize_N=rng.random(n) < spec.solarize,
    )


def change_colors_(pixels_NCHW: Tensor, spec: Augmentation, colors: Colors) -> None:
    """Jitter, drop colours, blur and solarize in this order, in place; grey images have no colour.

    Args:
        pixels_NCHW: Images of 1 or 3 channels, float32 in [0, 1], contiguous.
        spec: What the parameters were drawn from.
        colors: One row per image.
    """
    _jitter_(pixels_NCHW, colors)
    if pixels_NCHW.shape[1] == 3:
        _change_(pixels_NCHW, colors, colors.gray_N, _drop_colors_)
    blur_ = partial(_blur_, largest_sigma=spec.blur_sigma[1])
    _change_(pixels_NCHW, colors, colors.sigma_N > 0, blur_)
    _change_(pixels_NCHW, colors, colors.solarize_N, _solarize_)


def _change_(
    pixels_NCHW: Tensor,
    colors: Colors,
    which_N: npt.NDArray[np.bool_],
    change_: Callable[[Tensor, Colors], None],
) -> None:
    """Change some of the images."""
    rows = np.flatnonzero(which_N)
    if len(rows):
        index = torch.from_numpy(rows).to(pixels_NCHW.device)
        some_MCHW = pixels_NCHW.index_select(0, index)
        change_(some_MCHW, colors.rows(rows))
        pixels_NCHW.index_copy_(0, index, some_MCHW)


def _jitter_(pixels_NCHW: Tensor, colors: Colors) -> None:
    """Change brightness, contrast, saturation and hue, sorted by which of them is the hue's turn.

    The other three are one formula. To sort and sort back is faster than to take and put in place.
    """
    if not colors.jitter_N.any():
        return
    turn_N = np.where(colors.jitter_N, (colors.order_N4 == HUE).argmax(axis=1), 4)
    order = np.argsort(turn_N, kind="stable")
    there, back = (torch.from_numpy(i).to(pixels_NCHW.device) for i in (order, order.argsort()))
    sorted_NCHW, sorted_colors = pixels_NCHW.index_select(0, there), colors.rows(order)
    for start, stop in pairwise(np.searchsorted(turn_N[order], range(5)).tolist()):
        if start < stop:
            _jitter_alike_(sorted_NCHW[start:stop], sorted_colors.rows(slice(start, stop)))
    torch.index_select(sorted_NCHW, 0, back, out=pixels_NCHW)


def _jitter_alike_(pixels_MCHW: Tensor, colors: Colors) -> None:
    """Change images whose hues have the same turn."""
    colored = pixels_MCHW.shape[1] == 3
    image_M = np.arange(len(pixels_MCHW))
    for operation_M in colors.order_N4.T:
        factor_M = colors.factor_N4[image_M, operation_M]
        if operation_M[0] != HUE:
            _blend_(pixels_MCHW, operation_M, factor_M)
        elif colored:
            _turn_hue_(pixels_MCHW, factor_M)


def _blend_(
    pixels_MCHW: Tensor, operation_M: npt.NDArray[np.int64], factor_M: npt.NDArray[np.float64]
) -> None:
    """Change brightness, contrast or saturation, each image its own.

    A factor moves an image away from or towards black, its mean luma, or its luma.
    """
    if pixels_MCHW.shape[1] == 1:
        factor_M = np.where(operation_M == SATURATION, 1.0, factor_M)
    if (factor_M == 1).all():
        return
    of_mean = np.where(operation_M == CONTRAST, 1 - factor_M, 0.0)
    of_luma = np.where(operation_M == SATURATION, 1 - factor_M, 0.0)
    shares_3M = torch.from_numpy(np.stack([factor_M, of_mean, of_luma])).float()
    factor, of_mean, of_luma = shares_3M.to(pixels_MCHW.device)[:, :, None, None, None]
    luma = _luma(pixels_MCHW)
    mean = luma.mean((1, 2, 3), keepdim=True)
    luma.mul_(of_luma).add_(mean.mul_(of_mean))
    torch.addcmul(luma, pixels_MCHW, factor, out=pixels_MCHW).clamp_(0, 1)


def _luma(pixels_MCHW: Tensor) -> Tensor:
    """Return the weighted sum of the channels, (M, 1, H, W)."""
    if pixels_MCHW.shape[1] == 1:
        return pixels_MCHW.clone()
    red, green, blue = pixels_MCHW.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def _turn_hue_(pixels_M3HW: Tensor, turn_M: npt.NDArray[np.float64]) -> None:
    """Turn the hue; the largest and the smallest value of a pixel stay, at other channels.

    On a circle of length 1 with red at 0, green at 1/3 and blue at 2/3, a channel has the largest
    value up to 1/6 away from its place, the smallest from 1/3 on, and falls linearly in between.
    So the distances of a hue from the three places give the channels; backwards, the distance from
    red is (chroma + green + blue - red - smallest) / 6 chroma in every sector, without cases.
    """
    if not turn_M.any():
        return
    red, green, blue = pixels_M3HW.unbind(1)
    high = torch.maximum(red, green)
    torch.maximum(high, blue, out=high)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    chroma = high - low
    six_chroma = chroma * 6
    hue = (green + blue).sub_(red).sub_(low).add_(chroma)
    # a grey pixel has no hue, and chroma 0 multiplies whatever it gets
    hue.div_(six_chroma.clamp_min(1e-12)).copysign_(green - blue)
    turn = torch.from_numpy(turn_M + 1).float().to(hue.device)
    hue.add_(turn[:, None, None]).frac_()
    low.sub_(chroma)
    high.add_(chroma)
    # red is at both ends of [0, 1]: what is measured is the distance from the opposite place
    for channel, place, start, sign in (
        (red, 1 / 2, low, 1),
        (green, 1 / 3, high, -1),
        (blue, 2 / 3, high, -1),
    ):
        distance = (hue - place).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(start, six_chroma, distance, value=sign, out=channel)
    pixels_M3HW.clamp_(0, 1)


def _drop_colors_(pixels_M3HW: Tensor, _: Colors) -> None:
    pixels_M3HW.copy_(_luma(pixels_M3HW))


def _blur_(pixels_MCHW: Tensor, colors: Colors, largest_sigma: float) -> None:
    """Blur along one axis, then along the other, images mirrored at their edges.

    The window reaches four of the largest deviations to each side if the image does.
    """
    m, channels, height, width = pixels_MCHW.shape
    reach = min(math.ceil(4 * largest_sigma), height - 1, width - 1)
    weight_MK = np.exp(-0.5 * (np.arange(-reach, reach + 1) / colors.sigma_N[:, None]) ** 2)
    weight_MK /= weight_MK.sum(axis=1, keepdims=True)
    # every channel of every image is a channel of one image, for a convolution of separate channels
    weight = torch.from_numpy(weight_MK.repeat(channels, axis=0)).float().to(pixels_MCHW.device)
    padded = F.pad(pixels_MCHW, [reach] * 4, mode="reflect").flatten(0, 1)[None]
    blurred = F.conv2d(padded, weight[:, None, :, None], groups=m * channels)
    blurred = F.conv2d(blurred, weight[:, None, None, :], groups=m * channels)
    pixels_MCHW.copy_(blurred.view_as(pixels_MCHW))


def _solarize_(pixels_MCHW: Tensor, _: Colors) -> None:
    torch.where(pixels_MCHW >= 0.5, 1 - pixels_MCHW, pixels_MCHW, out=pixels_MCHW)
