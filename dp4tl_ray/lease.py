"""Leases: of several drivers on one store, one computes a step."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from dp4tl_ray.specs.base import canonical_json

LEASE_SECONDS = 60.0
"""A lease whose heartbeat is older than this has lost its owner."""
HEARTBEAT_SECONDS = 10.0


class LeaseHeldError(Exception):
    """Somebody else is computing this step now."""


class Lease:
    """A file that says who computes a step; its modification time is the heartbeat.

    On one machine a dead owner is recognised by its process at once; elsewhere by a heartbeat that
    has stopped for LEASE_SECONDS.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()

    def take(self) -> None:
        """Take the lease, from a dead owner if need be."""
        owner = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid()}
        if not self._create(owner):
            self._evict_if_dead()
            if not self._create(owner):
                raise LeaseHeldError(str(self.path))
        threading.Thread(target=self._beat, daemon=True).start()

    def _create(self, owner: dict[str, Any]) -> bool:
        """Put the whole file there at once, unless there is one: link() is atomic, also on NFS."""
        draft = self.path.with_name(f".lease.{self.token}")
        try:
            draft.write_text(canonical_json(owner), encoding="utf-8")
            os.link(draft, self.path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _evict_if_dead(self) -> None:
        """Move a dead owner's lease aside; of several who try, one succeeds."""
        try:
            owner = _owner(self.path)
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        if age < LEASE_SECONDS and _is_alive(owner):
            raise LeaseHeldError(str(self.path))
        aside = self.path.with_name(f".evicted.{self.token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if _owner(aside) != owner:
            # between reading and renaming somebody else evicted and took it: give it back
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
            aside.unlink()
            raise LeaseHeldError(str(self.path))
        aside.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                if self._is_ours():
                    os.utime(self.path)

    def _is_ours(self) -> bool:
        try:
            return bool(_owner(self.path)["token"] == self.token)
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Raise LeaseHeldError if the lease was lost, for example while this machine slept."""
        if not self._is_ours():
            raise LeaseHeldError(f"{self.path} was taken over")

    def give_back(self) -> None:
        """End the heartbeat and remove the file, if it is still ours."""
        self._stop.set()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink(missing_ok=True)


def _owner(path: Path) -> dict[str, Any]:
    """Read who holds a lease; a file torn by a power loss belongs to nobody who can be asked."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return {"token": owner["token"], "host": owner["host"], "pid": owner["pid"]}
    except (ValueError, KeyError, TypeError):
        return {"token": "", "host": "", "pid": 0}


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether an owner's process may be running; always true for another machine's."""
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
