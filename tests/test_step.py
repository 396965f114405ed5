"""What a lane does with a step that somebody else took over."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ray.plan import Plan
from dp4tl_ray.runners import step as step_module
from dp4tl_ray.runners.board import Board
from dp4tl_ray.runners.step import run_step
from dp4tl_ray.store import Store, Workbench, open_store
from dp4tl_ray.sweep import plan_study
from dp4tl_ray.training.worker import Progress, Worker
from tests.conftest import tiny_study


class Robbed(Board):
    """A board under which another driver takes the lease when a step reports its first epoch."""

    store: Store

    def progress(self, key: str, progress: Progress) -> bool:
        take_over(self.store, self.plan, key)
        return super().progress(key, progress)


def take_over(store: Store, plan: Plan, key: str) -> None:
    path = store.folder(plan.steps[key]) / "lease.json"
    path.write_text(json.dumps({"token": "another", "host": "far", "pid": 1}))


def pretraining(plan: Plan, board: Board, store: Store) -> str:
    """Run what comes before the first pretraining; returns that."""
    for key, step in plan.steps.items():
        if step.stage == "pretrain":
            return key
        run_step(key, plan.steps, store, Worker(), board)
    raise AssertionError


@pytest.fixture
def plan(pictures: dict[str, str]) -> Plan:
    return plan_study(tiny_study(pictures, pruning_ratios=[0.0]))


def test_who_lost_the_lease_stops_at_the_next_epoch_and_leaves_the_step_to_the_other(
    plan: Plan, tmp_path: Path
) -> None:
    store, board = open_store(str(tmp_path)), Robbed(plan, ())
    board.store = store
    key = pretraining(plan, board, store)
    run_step(key, plan.steps, store, Worker(), board)
    assert board.entries[key].state == "ready" and not board.errors()
    assert store.find(plan.steps[key]) is None and not store.failure(plan.steps[key])
    assert "taken over" in (store.folder(plan.steps[key]) / "step.log").read_text()


def test_what_breaks_after_the_lease_was_lost_is_not_a_failure(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, board = open_store(str(tmp_path)), Board(plan, ())
    key = pretraining(plan, board, store)

    def broken(*_: Any) -> None:
        take_over(store, plan, key)
        raise FileNotFoundError("a checkpoint that the other one removed")

    monkeypatch.setattr(step_module, "compute", broken)
    run_step(key, plan.steps, store, Worker(), board)
    assert board.entries[key].state == "ready" and not board.errors()
    assert not store.failure(plan.steps[key])


def test_two_who_fill_one_array_do_not_meet(tmp_path: Path) -> None:
    old, new = Workbench(tmp_path), Workbench(tmp_path)
    with new.growing("x", (4,), np.float32) as rightful:
        rightful[:2] = 1
        with pytest.raises(RuntimeError), old.growing("x", (4,), np.float32):
            raise RuntimeError("it has lost its lease")
        rightful[2:] = 2
    assert np.load(tmp_path / "x.npy").tolist() == [1, 1, 2, 2]


def test_an_array_that_does_not_fit_on_the_disk_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Workbench(tmp_path).growing("x", (4,), np.float32).__enter__()
    assert not list(tmp_path.iterdir())
