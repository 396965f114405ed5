"""Learning-rate factors: fraction of the budget spent -> factor of the peak rate."""

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
