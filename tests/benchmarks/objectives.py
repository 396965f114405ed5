"""What an image costs under each self-supervised objective, against a supervised step."""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from dp4tl_ray.specs.network import SmallResNet
from dp4tl_ray.specs.self_supervised import MOCO_V2_VIEW, AnySelfSupervised
from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.training.examples import Examples
from dp4tl_ray.training.fit import fit
from dp4tl_ray.training.networks import build_classifier
from dp4tl_ray.training.worker import Worker
from tests.benchmarks.figure import Figure, figure

SIDE, BATCH, STEPS, ROUNDS = 32, 128, 2, 3
COUNTED = {
    "moco_v2": 1.33,
    "moco_v2 symmetric": 2.67,
    "simclr": 2.0,
    "simsiam": 2.0,
    "vicreg": 2.0,
    "byol": 2.67,
    "moco_v3": 2.67,
}
"""Passes through the network in units of a supervised step: a forward pass is a third of one."""
HEADS: dict[str, dict[str, Any]] = {
    "moco_v2": {"queue_size": 4096},
    "moco_v2 symmetric": {"queue_size": 4096, "symmetric": True},
    "simsiam": {"hidden": 256, "dim": 256, "bottleneck": 64},
    "vicreg": {"hidden": 256, "dim": 256},
    "byol": {"hidden": 256},
    "moco_v3": {"hidden": 256},
}


def ssl_cost() -> Iterator[Figure]:
    """Compare seconds of the processor per image: with plain views, and with MoCo's."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH * STEPS, SIDE, SIDE, 3), dtype=np.uint8)
    for view, augmentation in (("plain", {}), ("moco_v2", MOCO_V2_VIEW.model_dump())):
        runs = {"supervised": _supervised(images, augmentation)}
        runs |= {name: _self_supervised(name, images, augmentation) for name in COUNTED}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                started = time.process_time()
                run()
                seconds[name].append(time.process_time() - started)
        step = median(seconds["supervised"])
        for name, counted in COUNTED.items():
            cost = [taken / step for taken in seconds[name]]
            unit = (
                f"supervised steps per step ({view} views; counted {counted}; "
                f"{min(cost):.2f} to {max(cost):.2f} in {ROUNDS} rounds)"
            )
            yield figure(f"cost_{name.replace(' ', '_')}", median(cost), counted, unit)
    torch.set_num_threads(num_threads)


def _recipe(augmentation: dict[str, Any]) -> dict[str, Any]:
    return {
        "budget": {"epochs": 1},
        "batch_size": BATCH,
        "optimizer": {"lr": 1e-3},
        "augmentation": augmentation,
    }


def _supervised(images: Any, augmentation: dict[str, Any]) -> Callable[[], None]:
    recipe = Recipe.model_validate(_recipe(augmentation))
    labels = np.arange(len(images)) % 10
    examples = Examples(images, np.arange(len(images)), labels)
    return lambda: _fit(recipe, examples, 10)


def _self_supervised(name: str, images: Any, augmentation: dict[str, Any]) -> Callable[[], None]:
    recipe = TypeAdapter[AnySelfSupervised](AnySelfSupervised).validate_python(
        {
            **_recipe(augmentation),
            "objective": name.split()[0],
            "second_augmentation": None,
            **HEADS.get(name, {}),
        }
    )
    examples = Examples(images, np.arange(len(images)))
    return lambda: _fit(recipe, examples, 0)


def _fit(recipe: Recipe | AnySelfSupervised, examples: Examples, num_classes: int) -> None:
    model = build_classifier(
        SmallResNet(width=16, stem_stride=1),
        num_classes=num_classes,
        image_size=SIDE,
        statistics=np.array([[0.5] * 3, [0.25] * 3], np.float32),
        group_size=64,
        seed=0,
    )
    fit(model, examples, recipe, 0, Worker())
