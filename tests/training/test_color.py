"""Every change against torchvision's, image by image."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from dp4tl_ray.specs.self_supervised import MOCO_V2_VIEW
from dp4tl_ray.specs.training import Augmentation
from dp4tl_ray.training.augment import augment, draw_changes
from dp4tl_ray.training.color import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Colors,
    change_colors_,
    draw_colors,
)

N = 24
ALL = Augmentation(
    brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, grayscale=0.3, blur=0.5, solarize=0.3
)
ADJUST: list[Callable[[Tensor, float], Tensor]] = [
    tv.adjust_brightness,
    tv.adjust_contrast,
    tv.adjust_saturation,
    tv.adjust_hue,
]
NEUTRAL = Colors(
    jitter_N=np.ones(N, np.bool_),
    factor_N4=np.tile([1.0, 1.0, 1.0, 0.0], (N, 1)),
    order_N4=np.tile(np.arange(4), (N, 1)),
    gray_N=np.zeros(N, np.bool_),
    sigma_N=np.zeros(N),
    solarize_N=np.zeros(N, np.bool_),
)


def images(channels: int = 3, side: int = 20) -> Tensor:
    x = torch.rand(N, channels, side, side, generator=torch.Generator().manual_seed(0))
    x[0] = x[0, :1]  # grey
    x[1].round_()  # of the purest colours, black and white
    x[2] = 0.5
    return x


def changed(x: Tensor, colors: Colors, spec: Augmentation = ALL) -> Tensor:
    y = x.clone()
    change_colors_(y, spec, colors)
    return y


def drawn(spec: Augmentation = ALL, n: int = N, seed: int = 0) -> Colors:
    colors = draw_colors(spec, n, np.random.default_rng(seed))
    assert colors is not None
    return colors


def one_by_one(x: Tensor, colors: Colors, window: int) -> Tensor:
    """Do what was drawn by torchvision."""
    done = []
    for i, image in enumerate(x):
        if colors.jitter_N[i]:
            for k in colors.order_N4[i]:
                image = ADJUST[k](image, float(colors.factor_N4[i, k]))
        if colors.gray_N[i]:
            image = tv.rgb_to_grayscale(image, num_output_channels=len(image))
        if colors.sigma_N[i]:
            image = tv.gaussian_blur(image, [window, window], [float(colors.sigma_N[i])])
        if colors.solarize_N[i]:
            image = tv.solarize(image, 0.5)
        done.append(image)
    return torch.stack(done)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_each_part_of_the_jitter_is_torchvisions(operation: int, channels: int) -> None:
    x, factor = images(channels), NEUTRAL.factor_N4.copy()
    factor[:, operation] = np.linspace(-0.5, 0.5, N) if operation == HUE else np.linspace(0, 2, N)
    y = changed(x, replace(NEUTRAL, factor_N4=factor))
    adjust = ADJUST[operation]
    expected = torch.stack(
        [adjust(a, float(f)) for a, f in zip(x, factor[:, operation], strict=True)]
    )
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    assert y.min() >= 0 and y.max() <= 1
    assert torch.equal(x, y) == (channels == 1 and operation in (SATURATION, HUE))


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale_is_torchvisions(channels: int) -> None:
    x, gray = images(channels), np.arange(N) % 2 == 1
    y = changed(x, replace(NEUTRAL, jitter_N=~NEUTRAL.jitter_N, gray_N=gray))
    expected = tv.rgb_to_grayscale(x[gray], num_output_channels=channels)
    torch.testing.assert_close(y[gray], expected, atol=1e-5, rtol=0)
    assert torch.equal(y[~gray], x[~gray])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "largest", "window"), [(20, 2.0, 17), (8, 2.0, 15), (20, 0.6, 7)])
def test_blur_is_torchvisions(channels: int, side: int, largest: float, window: int) -> None:
    x, sigma = images(channels, side), np.linspace(0.1, largest, N)
    sigma[::3] = 0
    colors = replace(NEUTRAL, jitter_N=~NEUTRAL.jitter_N, sigma_N=sigma)
    y = changed(x, colors, Augmentation(blur=0.5, blur_sigma=(0.1, largest)))
    torch.testing.assert_close(y, one_by_one(x, colors, window), atol=1e-5, rtol=0)
    assert torch.equal(y[::3], x[::3])


def test_blur_covers_no_more_than_the_shorter_side() -> None:
    x, sigma = torch.rand(N, 3, 1, 9), np.ones(N)
    assert torch.equal(changed(x, replace(NEUTRAL, sigma_N=sigma)), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_solarize_is_torchvisions(channels: int) -> None:
    x, solarize = images(channels), np.arange(N) % 3 > 0
    y = changed(x, replace(NEUTRAL, jitter_N=~NEUTRAL.jitter_N, solarize_N=solarize))
    assert torch.equal(y[solarize], tv.solarize(x[solarize], 0.5))
    assert torch.equal(y[~solarize], x[~solarize])


@pytest.mark.parametrize("channels", [1, 3])
def test_all_together_in_any_order_is_torchvisions(channels: int) -> None:
    x = images(channels)
    orders = np.array(list(permutations(range(4))))
    colors = replace(drawn(), order_N4=orders)
    difference = (changed(x, colors) - one_by_one(x, colors, 17)).abs()
    # solarizing may put a pixel near one half on either side of it, where both are the same
    assert difference.max() < 1e-4


def test_a_view_of_moco_is_torchvisions() -> None:
    n, side = 32, 32
    x = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))
    changes = draw_changes(MOCO_V2_VIEW, n, np.random.default_rng(0))
    # torchvision crops whole pixels
    assert changes.crop_N4 is not None
    centre, half = changes.crop_N4[:, :2], changes.crop_N4[:, 2:]
    start = np.floor((centre - half + 1) / 2 * side).astype(int)
    size = np.minimum(np.round(half * side).astype(int).clip(1), side - start)
    changes = replace(
        changes, crop_N4=np.concatenate([(2 * start + size) / side - 1, size / side], axis=1)
    )
    assert changes.colors is not None
    crops = torch.stack(
        [
            tv.resized_crop(
                tv.horizontal_flip(x[i]) if changes.flip_N[i] else x[i],
                *start[i].tolist(),
                *size[i].tolist(),
                size=[side, side],
                antialias=False,
            )
            for i in range(n)
        ]
    )
    expected = one_by_one(crops, changes.colors, 17)
    y = augment(x, MOCO_V2_VIEW, changes)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=0)


def test_rows_are_the_rows_of_every_parameter() -> None:
    colors, rows = drawn(), np.array([7, 0, 7, 3])
    for field in fields(Colors):
        assert np.array_equal(
            getattr(colors.rows(rows), field.name), getattr(colors, field.name)[rows]
        )


def test_the_same_seed_draws_the_same() -> None:
    one, two, other = drawn(seed=1), drawn(seed=1), drawn(seed=2)
    for name, values in vars(one).items():
        assert np.array_equal(values, getattr(two, name))
        assert not np.array_equal(values, getattr(other, name))


@pytest.mark.parametrize("asked", [0.0, 1.0])
def test_probabilities_of_0_and_1_are_never_and_always(asked: float) -> None:
    spec = Augmentation(
        hue=0.1, jitter=asked, grayscale=asked, blur=asked, solarize=asked, blur_sigma=(0.5, 0.5)
    )
    colors = drawn(spec, 1000)
    assert (colors.jitter_N == asked).all()
    assert (colors.gray_N == asked).all()
    assert (colors.sigma_N == 0.5 * asked).all()
    assert (colors.solarize_N == asked).all()


def test_probabilities_are_those_asked_for_and_independent() -> None:
    n = 20_000
    colors = drawn(ALL, n)
    which = [colors.jitter_N, colors.gray_N, colors.sigma_N > 0, colors.solarize_N]
    asked = [ALL.jitter, ALL.grayscale, ALL.blur, ALL.solarize]
    for i, p in enumerate(asked):
        assert abs(which[i].mean() - p) < 4 * math.sqrt(p * (1 - p) / n)
        for j, q in enumerate(asked[:i]):
            both = p * q
            assert abs((which[i] & which[j]).mean() - both) < 4 * math.sqrt(both * (1 - both) / n)


def test_factors_are_uniform_between_torchvisions_bounds() -> None:
    spec = Augmentation(brightness=0.4, contrast=1.5, saturation=0.0, hue=0.1, blur=1.0)
    colors = drawn(spec, 20_000)
    bounds = [(0.6, 1.4), (0.0, 2.5), (1.0, 1.0), (-0.1, 0.1), spec.blur_sigma]
    for values, (low, high) in zip([*colors.factor_N4.T, colors.sigma_N], bounds, strict=True):
        assert low <= values.min() and values.max() <= high
        quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, np.linspace(low, high, 5), atol=0.02 * (high - low))


def test_all_24_orders_are_equally_frequent() -> None:
    n = 24_000
    counts = Counter(map(tuple, drawn(ALL, n).order_N4.tolist()))
    assert set(counts) == set(permutations(range(4)))
    assert max(abs(count - 1000) for count in counts.values()) < 5 * math.sqrt(1000)
