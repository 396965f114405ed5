"""What of a study has been tracked where: one line per run, beside the study's results."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dp4tl_ray.store import Store, StoreError


class Ledger:
    """Lines that are appended one by one, so that a killed study forgets none.

    Args:
        store: Of the study, which shows the lines to other drivers.
        study: Its name.
    """

    def __init__(self, store: Store, study: str) -> None:
        self.store = store
        self.path: Path = store.study_folder(study) / "tracked.jsonl"
        self.runs: dict[tuple[str, str], str] = {}
        """Destination and run -> how it ended."""
        self.sweeps: dict[str, str] = {}
        """Destination -> sweep."""
        self.workspaces: dict[str, str] = {}
        """Destination -> address of the saved view."""
        published, here = list[str](), list[str]()
        with contextlib.suppress(OSError, StoreError):
            published = store.read_text(self.path).splitlines()
        with contextlib.suppress(OSError):
            here = self.path.read_text(encoding="utf-8").splitlines()
        # of another machine: our own lines are to be published with them
        if elsewhere := [line for line in published if line not in here]:
            self._append(elsewhere)
        for line in dict.fromkeys([*published, *here]):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn line
                self._learn(json.loads(line))

    def _learn(self, line: dict[str, Any]) -> None:
        if "sweep" in line:
            self.sweeps[line["destination"]] = line["sweep"]
        elif "workspace" in line:
            self.workspaces[line["destination"]] = line["workspace"]
        else:
            self.runs[line["destination"], line["run"]] = line["outcome"]

    def note(self, **line: str) -> None:
        """Add a line: a destination with a sweep, a saved view, or a run and its outcome."""
        self._learn(line)
        self._append([json.dumps(line)])

    def _append(self, lines: Iterable[str]) -> None:
        with contextlib.suppress(OSError):  # a full disk costs a run that is written twice
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def publish(self) -> None:
        """Show the lines to other drivers."""
        with contextlib.suppress(OSError, StoreError):
            if self.path.exists():
                self.store.publish(self.path)

    def at(self, destination: str) -> dict[str, str]:
        """Return the runs that were tracked at a destination, and how they ended."""
        noted = tuple(self.runs.items())  # the thread that listens goes on noting
        return {run: outcome for (place, run), outcome in noted if place == destination}
