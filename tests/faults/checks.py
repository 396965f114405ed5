"""What must hold when a study has come through: its results, and nothing else, are there."""

import json
import os
import time
from pathlib import Path
from typing import Any

from dp4tl_ray.results import read_results
from dp4tl_ray.store import MANIFEST
from tests.faults.world import NAME, World, titles

OURS = ("TrainController", "TrainWorker", "DeskActor", "ImplicitFunc", "PlacementGroupCleaner",
        "SynchronizationActor", "PreemptionWatcher", "DatasetManager")  # fmt: skip
"""Actors of a run, by the names of their processes. Idle workers may wait for the next run."""
VARIES = {"device", "num_workers", "surrogate_seconds", "score_seconds", "pretrain_seconds",
          "transfer_seconds", "device_seconds"}  # fmt: skip
LEFT_SECONDS = 90.0
"""Ray takes a while to end what belonged to a driver that was shot."""


class Finished:
    """The manifests of a store, watched: none may change or vanish once it is there."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.seen: dict[Path, tuple[int, int, bytes]] = {}
        self.problems: list[str] = []

    def look(self) -> None:
        """Note what is new, and compare what is not."""
        for path in self.store.glob(f"*/*/{MANIFEST}"):
            self.seen.setdefault(path, _state(path) or (0, 0, b""))
        for path, before in list(self.seen.items()):
            if (now := _state(path)) != before:
                self.seen[path] = now or before
                step = path.parent.relative_to(self.store)
                self.problems.append(f"{step} was finished, and is {'gone' if not now else 'new'}")

    def __contains__(self, step: str) -> bool:
        return self.store / step / MANIFEST in self.seen


def _state(path: Path) -> tuple[int, int, bytes] | None:
    try:
        facts = path.stat()
        return facts.st_ino, facts.st_mtime_ns, path.read_bytes()
    except FileNotFoundError:
        return None


def differences(store: Path, reference: Path) -> list[str]:
    """Compare all results and all artifacts, byte by byte, with those of an undisturbed run."""
    found = [
        f"{step}/{name} differs"
        for step, files in artifacts(reference).items()
        for name, content in files.items()
        if artifacts(store).get(step, {}).get(name) != content
    ]
    if results(store) != results(reference):
        found.append("results.jsonl differs")
    return found


def artifacts(store: Path) -> dict[str, dict[str, bytes]]:
    """Return the files of every finished step."""
    steps = {}
    for path in store.glob(f"*/*/{MANIFEST}"):
        names = json.loads(path.read_text())["files"]
        files = {name: (path.parent / name).read_bytes() for name in names}
        steps[path.parent.relative_to(store).as_posix()] = files
    return steps


def results(store: Path) -> list[dict[str, Any]]:
    """Return the lines of results.jsonl without what may depend on where and when they came."""
    path = store / "studies" / NAME / "results.jsonl"
    return [line.model_dump(exclude=VARIES) for line in read_results(path)]


def left_behind(world: World, store: Path) -> list[str]:
    """Wait until no process, group, CPU or lease of ours is held; returns what still is."""
    deadline = time.monotonic() + LEFT_SECONDS
    while (left := _left(world, store)) and time.monotonic() < deadline:
        world.reap()
        time.sleep(0.5)
    return left


def _left(world: World, store: Path) -> list[str]:
    state = world.cluster.global_state
    left = [
        f"process {pid}: {name.strip()}"
        for pid, name in titles().items()
        if any(actor in name for actor in OURS) or f"run {os.fspath(store)}" in name
    ]
    left += [
        f"placement group {name} is {group['state']}"
        for name, group in state.placement_group_table().items()
        if group["state"] != "REMOVED"
    ]
    free, there = (
        r.get("CPU", 0) for r in (state.available_resources(), state.cluster_resources())
    )
    if free != there or there != 2:
        left.append(f"{free:g} of {there:g} CPUs are free, there should be 2")
    left += [f"lease of {path.parent.name}" for path in store.glob("*/*/lease.json")]
    return left
