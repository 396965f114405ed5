"""Processes below one that a test started, read from /proc."""

import os
import time
from pathlib import Path


def parents() -> dict[int, int]:
    """Return pid -> parent of every process that is not dead."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(stat.parent.name)] = int(fields[1])
    return found


def descendants(pid: int) -> set[int]:
    """Return the processes below one, at any depth."""
    parent_of, below = parents(), {pid}
    while True:
        more = {p for p, parent in parent_of.items() if parent in below} - below
        if not more:
            return below - {pid}
        below |= more


def title(pid: int) -> str:
    """Return a process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def gone(pids: set[int], seconds: float = 30) -> bool:
    """Wait until none of some processes is alive."""
    deadline = time.monotonic() + seconds
    while alive := pids & parents().keys():
        if time.monotonic() > deadline:
            print("still alive:", {pid: title(pid) for pid in alive})
            return False
        time.sleep(0.2)
    return True


def kill(pid: int, number: int) -> None:
    """Send a signal to one process."""
    os.kill(pid, number)
