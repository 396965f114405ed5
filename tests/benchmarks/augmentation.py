"""The views of MoCo v2, batch by batch, against torchvision's transforms, image by image."""

import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from dp4tl_ray.specs.self_supervised import MOCO_V2_VIEW
from dp4tl_ray.training.augment import augment, draw_changes
from tests.benchmarks.figure import Figure, figure

BATCHES = {32: 256, 224: 32}
"""Pixels of a side -> images; MoCo's batches of 256 were on eight devices."""
BLURS = {32: 3, 224: 23}
"""Pixels of a side -> window of torchvision's blur, a tenth of the side as SimCLR's; ours: 17."""
ROUNDS = 11


def augmentation() -> Iterator[Figure]:
    """Compare images per second on one core, parameters drawn and images put together."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for side, n in BATCHES.items():
        pixels_NCHW = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))
        ours, theirs = _seconds(_batched(pixels_NCHW), _one_by_one(pixels_NCHW))
        unit = f"images/s, {side} x {side} x 3, one core, median of {ROUNDS}"
        yield figure(f"moco_v2_view_{side}", n / median(ours), n / median(theirs), unit)
        for name, seconds in (("ours", ours), ("torchvision", theirs)):
            fastest, slowest = n / min(seconds), n / max(seconds)
            yield figure(f"moco_v2_view_{side}_spread_{name}", fastest, slowest, unit)
    torch.set_num_threads(num_threads)


def _batched(pixels_NCHW: Tensor) -> Callable[[], Tensor]:
    rng = np.random.default_rng(0)

    def run() -> Tensor:
        return augment(pixels_NCHW, MOCO_V2_VIEW, draw_changes(MOCO_V2_VIEW, len(pixels_NCHW), rng))

    return run


def _one_by_one(pixels_NCHW: Tensor) -> Callable[[], Tensor]:
    side, view = pixels_NCHW.shape[-1], MOCO_V2_VIEW
    jitter = v2.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    change = v2.Compose(
        [
            v2.RandomResizedCrop(side, scale=(view.crop, 1), antialias=False),
            v2.RandomApply([jitter], view.jitter),
            v2.RandomGrayscale(view.grayscale),
            v2.RandomApply([v2.GaussianBlur(BLURS[side], view.blur_sigma)], view.blur),
            v2.RandomHorizontalFlip(),
        ]
    )
    return lambda: torch.stack([change(image_CHW) for image_CHW in pixels_NCHW])


def _seconds(*runs: Callable[[], Tensor]) -> tuple[list[float], ...]:
    """Return the seconds of each on the processor, measured in turn; other processes count not."""
    seconds: tuple[list[float], ...] = tuple([] for _ in runs)
    for run in runs:
        run()
    for _ in range(ROUNDS):
        for run, taken in zip(runs, seconds, strict=True):
            started = time.process_time()
            run()
            taken.append(time.process_time() - started)
    return seconds
