"""Leases: of several drivers on one store, one computes a step."""

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp4tl_ray.specs.base import canonical_json

LEASE_SECONDS = 60.0
"""A lease whose heartbeat is older than this has lost its owner."""
HEARTBEAT_SECONDS = 10.0
LEASE_FILE = "lease.json"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LeaseHeldError(Exception):
    """Somebody else is computing this step now."""


@dataclass(frozen=True)
class Holder:
    """Who computes a step, as a store shows it."""

    step: str
    """Stage and folder of the step."""
    host: str
    pid: int
    seconds: float
    """Since its last heartbeat, by the clocks of this machine and of the store."""


class Lease(ABC):
    """The right to compute a step, kept by a heartbeat."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()

    def take(self) -> None:
        """Take the lease, from a dead owner if need be, and keep it.

        Raises:
            LeaseHeldError: Somebody who is alive holds it.
        """
        self._take()
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            self._beat()

    def signature(self) -> dict[str, Any]:
        """Say who we are, for others to find out whether we are alive."""
        return {"token": self.token, "host": socket.gethostname(), "pid": os.getpid()}

    @abstractmethod
    def _take(self) -> None:
        """Become the owner, or raise LeaseHeldError."""

    @abstractmethod
    def _beat(self) -> None:
        """Show that the owner is alive; a store that does not answer now may later."""

    @abstractmethod
    def check(self) -> None:
        """Raise LeaseHeldError if the lease was lost, for example while this machine slept."""

    @abstractmethod
    def give_back(self) -> None:
        """End the heartbeat, and the lease if it is still ours."""


class FileLease(Lease):
    """A file that says who computes a step; its modification time is the heartbeat.

    On one machine a dead owner is recognised by its process at once; elsewhere by a heartbeat that
    has stopped for LEASE_SECONDS.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _take(self) -> None:
        if not self._create():
            self._evict_if_dead()
            if not self._create():
                raise LeaseHeldError(str(self.path))

    def _create(self) -> bool:
        """Put the whole file there at once, unless there is one."""
        draft = self.path.with_name(f".lease.{self.token}")
        try:
            draft.write_text(canonical_json(self.signature()), encoding="utf-8")
            _link(draft, self.path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _evict_if_dead(self) -> None:
        """Move a dead owner's lease aside; of several who try, one succeeds."""
        try:
            owner = _owner_in(self.path)
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        if age < LEASE_SECONDS and is_alive(owner):
            raise LeaseHeldError(str(self.path))
        aside = self.path.with_name(f".evicted.{self.token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if _owner_in(aside) != owner:
            # between reading and renaming somebody else evicted and took it: give it back
            with contextlib.suppress(FileExistsError):
                _link(aside, self.path)
            aside.unlink()
            raise LeaseHeldError(str(self.path))
        aside.unlink()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours():
                os.utime(self.path)

    def _is_ours(self) -> bool:
        try:
            return bool(_owner_in(self.path)["token"] == self.token)
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


def read_owner(text: str | bytes) -> dict[str, Any]:
    """Read who holds a lease; one torn by a power loss belongs to nobody who can be asked."""
    try:
        owner = json.loads(text)
        return {"token": owner["token"], "host": owner["host"], "pid": owner["pid"]}
    except (ValueError, KeyError, TypeError):
        return {"token": "", "host": "", "pid": 0}


def _owner_in(path: Path) -> dict[str, Any]:
    return read_owner(path.read_bytes())


def is_alive(owner: dict[str, Any]) -> bool:
    """Whether an owner's process may be running; always true for another machine's."""
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(owner["pid"])


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody has asked how; on Linux alone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"


def file_holders(root: Path) -> list[Holder]:
    """Return who holds the leases below the folders of all stages."""
    holders = []
    for path in sorted(root.glob(f"*/*/{LEASE_FILE}")):
        with contextlib.suppress(OSError):  # given back just now
            owner, age = _owner_in(path), time.time() - path.stat().st_mtime
            step = path.parent.relative_to(root).as_posix()
            holders.append(Holder(step, owner["host"], owner["pid"], max(0.0, age)))
    return holders


def has_links(folder: Path) -> bool:
    """Whether a folder's file system has hard links, on which two drivers rely."""
    one, two = (folder / f".probe-{uuid.uuid4().hex[:8]}" for _ in range(2))
    try:
        one.write_text("probe", encoding="utf-8")
        os.link(one, two)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    finally:
        one.unlink(missing_ok=True)
        two.unlink(missing_ok=True)
    return True


def _link(source: Path, target: Path) -> None:
    """Give a file a second name unless that is taken: link() is atomic, also on NFS.

    Where there are no hard links, create the file by name: enough for one driver.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with target.open("xb") as file:
            file.write(source.read_bytes())
