"""Lanes: one Train run whose workers take step after step from the board, on Ray."""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dp4tl_ray.plan import is_wide
from dp4tl_ray.runners.board import Board, Summary
from dp4tl_ray.specs.study import Runtime
from dp4tl_ray.store import Store

POLL_SECONDS = 0.2
COLLECTIVE_TIMEOUT_SECONDS = 7 * 24 * 3600
"""A worker of a lane may wait this long for another one, who works on a step of its own; that a
worker died is noticed by Train, not by a timeout."""
IDLE_RESTARTS = 20
"""Restarts that Train grants a lane beyond those that the steps may cause."""


def start_board(board: Board) -> Any:
    """Put the board into an actor on the head, which every lane and trial can reach."""
    import ray

    actor = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(BoardActor)
    return actor.options(name=f"board-{uuid.uuid4().hex[:8]}").remote(board)


class BoardActor:
    """The board behind Ray calls."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def steps(self) -> Mapping[str, Any]:
        """Return the plan's steps."""
        return self._board.plan.steps

    def take(self, lane: str, workers: int) -> list[str] | None:
        """Give a lane its next work."""
        return self._board.take(lane, workers)

    def note(self, what: str, *args: Any) -> None:
        """Call finish, fail, blame, postpone or progress."""
        getattr(self._board, what)(*args)

    def status(self, keys: list[str]) -> tuple[bool, str, dict[str, Any]]:
        """Tell how some steps are doing."""
        return self._board.status(keys)

    def summary(self) -> Summary:
        """Return what a display shows."""
        return self._board.summary()

    def release(self, lane: str) -> None:
        """Give what a dead lane held to the others."""
        self._board.release(lane)

    def close(self, why: str) -> None:
        """Give up what is not finished."""
        self._board.close(why)

    def asked(self) -> bool:
        """Whether a lane has started to work."""
        return self._board.asked

    def board(self) -> Board:
        """Return the board as it is now."""
        return self._board


class _RemoteDesk:
    """A lane's view of the board actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def finish(self, key: str, ran: bool = True) -> None:
        import ray

        ray.get(self.actor.note.remote("finish", key, ran))

    def fail(self, key: str, error: str) -> None:
        import ray

        ray.get(self.actor.note.remote("fail", key, error))

    def blame(self, key: str, error: str) -> None:
        import ray

        ray.get(self.actor.note.remote("blame", key, error))

    def postpone(self, key: str) -> None:
        import ray

        ray.get(self.actor.note.remote("postpone", key))

    def progress(self, key: str, progress: dict[str, float | int | str]) -> None:
        self.actor.note.remote("progress", key, progress)  # nobody waits for it


class Lane:
    """One Train run in a thread of the driver."""

    def __init__(
        self,
        name: str,
        desk: Any,
        store: Store,
        runtime: Runtime,
        resources: dict[str, float],
        folder: Path,
        max_restarts: int,
    ) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        gpu = "GPU" in resources
        trainer = TorchTrainer(
            lane_loop,
            train_loop_config={
                "lane": name,
                "desk": desk,
                "store": store.root,
                "folder": os.getcwd(),
                "threads": runtime.threads_per_worker,
                "gpu": gpu,
            },
            torch_config=TorchConfig(
                backend="nccl" if gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_SECONDS
            ),
            scaling_config=ScalingConfig(
                num_workers=runtime.pretrain_workers, use_gpu=gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=max_restarts),
            ),
        )
        self.name, self.error = name, ""
        self.thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self.thread.start()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # the thread's end is what the driver watches
            self.error = f"{self.name} ended: {type(error).__name__}: {error}"


def lane_loop(config: dict[str, Any]) -> None:
    """Take step after step from the board; runs in every worker of a lane."""
    import ray
    import torch
    import torch.distributed as dist

    from dp4tl_ray.runners.step import Outcome, run_step
    from dp4tl_ray.training.worker import Worker

    torch.set_num_threads(config["threads"])
    with contextlib.suppress(OSError):  # where paths of a study that are relative begin
        os.chdir(config["folder"])
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if config["gpu"] else torch.device("cpu")
    actor, store = config["desk"], Store(config["store"])
    desk = _RemoteDesk(actor)
    steps = ray.get(actor.steps.remote())

    def share(value: Any) -> Any:
        box = [value]
        if size > 1:
            dist.broadcast_object_list(box, src=0, device=device)
        return box[0]

    def share_outcome(outcome: Outcome) -> Outcome:
        shared: Outcome = share(outcome)
        return shared

    while (keys := share(_next(actor, config["lane"], size) if rank == 0 else None)) is not None:
        if is_wide(steps[keys[0]]):
            worker = Worker(rank, size, device)
            run_step(keys[0], steps, store, worker, desk, share_outcome)
        elif rank < len(keys):
            run_step(keys[rank], steps, store, Worker(device=device), desk)
        if size > 1:
            dist.barrier()  # the lane's next work is asked for when all of this is reported


def _next(actor: Any, lane: str, workers: int) -> list[str] | None:
    """Wait for work; None when there will be none."""
    import ray

    pause = 0.01
    while True:
        keys: list[str] | None = ray.get(actor.take.remote(lane, workers))
        if keys or keys is None:
            return keys
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS)
