"""Run a plan in this process, in order, without Ray: for tests, debugging, and as the reference."""

import threading
import time

import torch

from dp4tl_ray.runners.board import Board
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.runners.step import choose_device, run_step
from dp4tl_ray.specs.study import Runtime
from dp4tl_ray.store import Store
from dp4tl_ray.training.worker import Worker


def run_local(board: Board, store: Store, runtime: Runtime, display: Display) -> None:
    """Run every step of a board with one worker; returns when nothing is left."""
    threads = torch.get_num_threads()
    torch.set_num_threads(runtime.threads_per_worker)
    worker = Worker(device=choose_device(runtime))
    stop = threading.Event()
    drawing = threading.Thread(target=_draw, args=(board, display, stop), daemon=True)
    drawing.start()
    try:
        while (keys := board.take("local")) is not None:
            for key in keys:
                run_step(key, board.plan.steps, store, worker, board)
            if not keys:
                time.sleep(0.2)  # another driver is at what is left
    finally:
        stop.set()
        drawing.join()
        torch.set_num_threads(threads)


def _draw(board: Board, display: Display, stop: threading.Event) -> None:
    """Show the board, and how far its running step is, until told to stop."""
    while not stop.wait(0.3):
        display.update(board.summary())
