"""The log of one step: a few lines beside its artifact, for whoever has to find out."""

import contextlib
import os
import socket
from pathlib import Path

from dp4tl_ray.runners.status import now
from dp4tl_ray.training.worker import Progress, Worker


class StepLog:
    """Appends lines to step.log; a disk that is full costs the log, never the step."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "step.log"

    def write(self, text: str) -> None:
        """Append a line with the time."""
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(f"{now()} {text}\n")

    def start(self, worker: Worker) -> None:
        """Say who begins."""
        many = f", {worker.world_size} workers" if worker.world_size > 1 else ""
        self.write(f"started on {socket.gethostname()}, pid {os.getpid()}, {worker.device}{many}")

    def progress(self, progress: Progress) -> None:
        """Say how far the step is."""
        self.write(", ".join(f"{name} {_short(value)}" for name, value in progress.items()))


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
