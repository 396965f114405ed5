"""A step's artifact does not depend on what its lane did before."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ray.plan import Plan
from dp4tl_ray.runners.board import Board
from dp4tl_ray.runners.step import run_step
from dp4tl_ray.store import open_store
from dp4tl_ray.sweep import plan_study
from dp4tl_ray.training.worker import Worker
from tests.conftest import recipe, supervised, tiny_study

ME = supervised()
WILD = supervised(optimizer={"lr": 1e9})
OTHER = {
    "objective": "supervised",
    **recipe(network={"arch": "resnet18", "small_images": True}, budget={"epochs": 1}),
}


def weights_of_me(plan: Plan, folder: Path, order: Iterable[str]) -> bytes:
    """Run steps in an order; returns the weights of the pretraining that is always there."""
    store, board = open_store(str(folder)), Board(plan, ())
    for key in order:
        run_step(key, plan.steps, store, Worker(), board)
    (mine,) = (key for key in order if is_mine(plan, key))
    artifact = store.find(plan.steps[mine])
    assert artifact is not None
    return artifact.file("network.safetensors").read_bytes()


def is_mine(plan: Plan, key: str) -> bool:
    spec: Any = plan.steps[key].spec
    return bool(spec.stage == "pretrain" and spec.pretraining == plan.study.pretraining[0])


def first(plan: Plan, pretrainings: list[str]) -> list[str]:
    return sorted(pretrainings, key=lambda key: not is_mine(plan, key))


def last(plan: Plan, pretrainings: list[str]) -> list[str]:
    return sorted(pretrainings, key=lambda key: is_mine(plan, key))


@pytest.mark.parametrize("before", [first, last])
def test_a_step_is_bit_equal_after_nothing_and_after_nan_and_another_architecture(
    pictures: dict[str, str], tmp_path: Path, before: Callable[[Plan, list[str]], list[str]]
) -> None:
    study = tiny_study(pictures, pretraining=[ME, WILD, OTHER], pruning_ratios=[0.0])
    plan = plan_study(study)
    data = [key for key, step in plan.steps.items() if step.stage == "data"]
    pretrainings = [key for key, step in plan.steps.items() if step.stage == "pretrain"]
    assert len(pretrainings) == 3
    alone = [*data, *(key for key in pretrainings if is_mine(plan, key))]
    expected = weights_of_me(plan, tmp_path / "alone", alone)
    order = [*data, *before(plan, pretrainings)]
    assert weights_of_me(plan, tmp_path / "order", order) == expected
