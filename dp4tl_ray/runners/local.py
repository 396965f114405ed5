"""Run a plan in this process, in order, without Ray: for tests, debugging, and as the reference."""

import threading
import time
from dataclasses import replace

import torch

from dp4tl_ray.runners.board import Board, More
from dp4tl_ray.runners.journal import Follower
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.runners.step import choose_device, run_step
from dp4tl_ray.specs.study import Runtime
from dp4tl_ray.store import Store
from dp4tl_ray.training.worker import Worker


def run_local(
    board: Board,
    store: Store,
    runtime: Runtime,
    display: Display,
    more: More | None = None,
    follower: Follower | None = None,
) -> None:
    """Run every step of a board in this process; returns when nothing is left.

    One process takes the shares of all `pretrain_workers` one after another, so that it computes
    what they would; it holds the whole network, whatever `sharding` says.

    Args:
        board: What is to do.
        store: Where artifacts are and go.
        runtime: Threads, device, and how a batch is shared.
        display: Shows the progress.
        more: Asked for cells to add when nothing is left.
        follower: Told what happens to the steps.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(runtime.threads_per_worker)
    alone = Worker(device=choose_device(runtime))
    together = replace(
        alone,
        shards=runtime.pretrain_workers,
        microbatch=runtime.microbatch,
        compile=runtime.compile,
        checkpoint_steps=runtime.checkpoint_steps,
    )
    stop = threading.Event()
    drawing = threading.Thread(target=_draw, args=(board, display, stop, follower), daemon=True)
    drawing.start()
    try:
        while True:
            keys = board.take("local")
            if keys is None and not _add(board, more):
                break
            for key in keys or ():
                worker = together if board.entries[key].wide else alone
                run_step(key, board.plan.steps, store, worker, board)
            if keys == []:
                time.sleep(0.2)  # another driver is at what is left
    finally:
        stop.set()
        drawing.join()
        _look(board, display, follower)  # at what happened since the last look
        torch.set_num_threads(threads)


def _add(board: Board, more: More | None) -> bool:
    """Put the cells on the board that a search still needs; returns whether there are any."""
    tasks = more(board.errors()) if more else {}
    for name, keys in tasks.items():
        board.want(name, keys)
    return bool(board.open)


def _draw(board: Board, display: Display, stop: threading.Event, follower: Follower | None) -> None:
    """Show the board, and how far its running step is, until told to stop."""
    while not stop.wait(0.3):
        _look(board, display, follower)


def _look(board: Board, display: Display, follower: Follower | None) -> None:
    display.update(board.summary())
    if follower is not None:
        follower.hear(board.news)
