"""Ray for as long as a block runs, and what it prints kept out of the way."""

import contextlib
import io
import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is an interruption, not a result
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Environment of Ray, unless the user has set it otherwise."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to RAY_ADDRESS, or start Ray here for as long as the block runs."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        # nobody takes this machine away with a warning, and the watcher is one more slow start
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if address == "local" and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # a token of this run's own: nobody else on this machine may talk to it, and no file is
        # left; once it is imported, Ray has made up its mind
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in place
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[None]:
    """Divert what Ray prints and logs in this process to a file."""
    file = _Log(path)
    with (
        contextlib.closing(file),
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        handlers = _replace_handlers(file)
        try:
            yield
        finally:
            for handler, stream in handlers:
                handler.setStream(stream)


class _Log(io.StringIO):
    """Appends to a file; a disk that is full costs the log, never the study."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        path.touch()

    def write(self, text: str) -> int:
        """Append a text."""
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(text)
        return len(text)


def _replace_handlers(file: TextIO) -> list[tuple["logging.StreamHandler[TextIO]", TextIO]]:
    """Point Ray's log handlers at a file; returns what to put back."""
    changed = []
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in (
                sys.__stdout__,
                sys.__stderr__,
            ):
                changed.append((handler, handler.stream))
                handler.setStream(file)
    return changed
