"""The driver's end of the mirror: starts it, talks to it, and never waits for it without end."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

from dp4tl_ray.tracking.messages import Answer, Message, Ready, Setup

START_SECONDS = 60.0
"""How long the mirror may take to start and to try the key; much is imported."""
SILENT_SECONDS = 60.0
"""How long it may say nothing while it finishes; more than it waits for a server."""
OF_AN_AGENT = ("SWEEP_ID", "SWEEP_PARAM_PATH", "RUN_ID", "RESUME", "NAME", "RUN_GROUP", "JOB_TYPE")
"""Settings of the environment that would overrule what each run is told."""


class Client:
    """A mirror that runs.

    Args:
        setup: The first message.
        log: Receives whatever the mirror prints.
        listen: Called with all answers but the first, in a thread.
    """

    def __init__(self, setup: Setup, log: IO[bytes], listen: Callable[[Answer], None]) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in _overruling()}
        # what artifacts hold must be there when offline runs are sent
        environment.setdefault("WANDB_DATA_DIR", str(setup.folder / "wandb"))
        self.listen, self.heard = listen, time.monotonic()
        self.ready: Ready | None = None
        self.is_ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dp4tl_ray.tracking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the driver, which ends the mirror in order
        )
        self.hearing = threading.Thread(target=self._hear, daemon=True)
        self.hearing.start()
        self.send(setup)

    def wait(self) -> Ready:
        """Wait until it is ready.

        Raises:
            OSError: It is not, and will not be.
        """
        self.is_ready.wait(START_SECONDS)
        if self.ready is None:
            self.kill()
            raise OSError("its process did not start")
        return self.ready

    def send(self, message: Message) -> None:
        """Tell it something; blocks while it is busy."""
        assert self.process.stdin is not None
        pickle.dump(message, self.process.stdin)
        self.process.stdin.flush()

    def end(self) -> bool:
        """Say that nothing follows, and wait while it works; returns whether it ended by itself."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.heard = time.monotonic()
        while self.process.poll() is None:
            if time.monotonic() - self.heard > SILENT_SECONDS:
                self.kill()
                return False
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.1)
        self.hearing.join()
        return self.process.returncode == 0

    def kill(self) -> None:
        """End it, and the client's own helper with it."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.hearing.join()

    def _hear(self) -> None:
        for answer in self._answers():
            self.heard = time.monotonic()
            if isinstance(answer, Ready):
                self.ready = answer
                self.is_ready.set()
            else:
                self.listen(answer)
        self.is_ready.set()  # it is gone; nobody is to wait for it

    def _answers(self) -> Iterator[Answer]:
        assert self.process.stdout is not None
        with self.process.stdout as pipe, contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                yield pickle.load(pipe)


def _overruling() -> set[str]:
    return {f"WANDB_{name}" for name in OF_AN_AGENT}
