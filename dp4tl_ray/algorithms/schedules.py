"""Schedules: learning rate and momentum over the budget, and averages that forget their start."""

import math
from typing import Literal


def lr_factor(
    name: Literal["cyclic", "one_cycle", "cosine"], warmup: float, progress: float
) -> float:
    """Return the factor in [0, 1] of the peak learning rate.

    cyclic rises and falls linearly (Zhang et al. 2023's recipe, from ffcv-imagenet); cosine warms
    up linearly and falls as a cosine; one_cycle follows a cosine in both directions (Smith 2018).

    Args:
        name: Shape.
        warmup: Share of the budget spent rising.
        progress: Share of the budget already spent, in [0, 1].
    """
    if progress < warmup:
        rising = progress / warmup
        return 0.5 - 0.5 * math.cos(math.pi * rising) if name == "one_cycle" else rising
    falling = (progress - warmup) / (1 - warmup) if warmup < 1 else 1.0
    return 1 - falling if name == "cyclic" else 0.5 + 0.5 * math.cos(math.pi * falling)


def resolution_at(
    progress: float, smallest: int, largest: int, start: float, end: float, multiple: int
) -> int:
    """Return the height and width of training images, pixels: progressive resizing.

    It grows linearly between two points of the budget, rounded to a multiple, as in ffcv-imagenet.

    Args:
        progress: Share of the budget already spent, in [0, 1].
        smallest: Size up to `start`.
        largest: Size from `end` on.
        start: Share of the budget.
        end: Share of the budget; not before `start`.
        multiple: Of what sizes are between the two.
    """
    if progress <= start or progress >= end:
        return smallest if progress <= start else largest
    grown = smallest + (largest - smallest) * (progress - start) / (end - start)
    return min(max(round(grown / multiple) * multiple, smallest), largest)


def momentum_at(start: float, progress: float) -> float:
    """Return the momentum of an encoder's moving average, rising to 1 along half a cosine.

    Grill et al. 2020 (BYOL), arXiv:2006.07733, section 3.2.

    Args:
        start: Momentum at the beginning.
        progress: Share of the budget already spent, in [0, 1].
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


def debiased_rate(momentum: float, weight: float) -> tuple[float, float]:
    """Return how far a moving average goes towards a new value, so that its start has no part.

    With average += rate * (value - average) it is the exponential moving average of the values,
    divided by the sum of their weights, as in Kingma and Ba 2015 (Adam), arXiv:1412.6980; the first
    value is taken over whole.

    Args:
        momentum: Share of the old average, of which the weights are made; below 1 at the first
            value.
        weight: Sum of the weights of the values so far; 0 before the first.

    Returns:
        The rate, and the sum of the weights with the new value.
    """
    weight = momentum * weight + (1 - momentum)
    return (1 - momentum) / weight, weight
