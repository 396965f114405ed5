"""What a study is doing, for whoever can see its store: status.json, and what the store shows."""

import json
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dp4tl_ray.atomic import write_text
from dp4tl_ray.plan import Plan
from dp4tl_ray.runners.board import Summary, share_done
from dp4tl_ray.specs.steps import STAGES
from dp4tl_ray.store import Store, StoreError

EVERY_SECONDS = 2.0
SILENT_SECONDS = 60.0
"""A running study that has not written for so long has lost its driver."""
State = Literal["running", "done", "failed", "interrupted"]


def duration(seconds: float) -> str:
    """Write a duration for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def now() -> str:
    """Return the time, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class StatusFile:
    """Writes status.json, whole or not at all, at most every two seconds.

    Args:
        path: Of the file.
        publish: Called with it after every write; an object store uploads it.
    """

    def __init__(self, path: Path, publish: Callable[[Path], None]) -> None:
        self.path, self.publish = path, publish
        self.facts: dict[str, Any] = {
            "started": now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self.written = 0.0

    def update(self, summary: Summary, seconds_left: float | None, lanes: int) -> None:
        """Tell how a study is doing."""
        if time.monotonic() - self.written < EVERY_SECONDS:
            return
        self.facts |= {
            "total": summary.total,
            "done": summary.done,
            "failed": summary.failed,
            "lanes": lanes,
            "seconds_left": None if seconds_left is None else round(seconds_left),
            "running": [
                {
                    "step": f"{step.stage} {step.name}",
                    "lane": step.lane,
                    "seconds": round(step.seconds),
                    "share_done": round(share_done(step.progress), 3),
                }
                for step in summary.running
            ],
        }
        self._write("running")

    def close(self, state: State, done: int, failed: int) -> None:
        """Tell how a study ended."""
        self.facts |= {"done": done, "failed": failed, "running": [], "seconds_left": None}
        self._write(state)

    def _write(self, state: State) -> None:
        self.written = time.monotonic()
        text = json.dumps({"state": state, "updated": now(), **self.facts}, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, text)
            self.publish(self.path)
        except (OSError, StoreError):
            return  # a full disk fails the steps, which say so; the status can wait


def read_status(store: Store, study: str) -> dict[str, Any] | None:
    """Return what a driver last wrote, with `silent`: whether it should have written since."""
    try:
        text = store.read_text(store.study_folder(study) / "status.json")
        facts: dict[str, Any] = json.loads(text)
        age = (datetime.now(UTC) - datetime.fromisoformat(facts["updated"])).total_seconds()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts | {"silent": facts.get("state") == "running" and age > SILENT_SECONDS}


def status_of(plan: Plan, store: Store) -> dict[str, Any]:
    """Return how a study is doing: steps per stage, failures, leases, and what its driver says."""
    done = store.finished(plan.steps.values())
    names = {store.name(step) for step in plan.steps.values()}
    missing = [step for key, step in plan.steps.items() if key not in done]
    return {
        "study": plan.study.name,
        "search": plan.study.search,
        "store": store.uri,
        "stages": {
            stage: {
                "done": sum(plan.steps[key].stage == stage for key in done),
                "of": plan.unique()[stage],
            }
            for stage in STAGES
            if plan.unique()[stage]
        },
        "failed": sorted(set(store.failures(missing).values())),
        "leases": [vars(holder) for holder in store.leases() if holder.step in names],
        "driver": read_status(store, plan.study.name),
    }


def status_text(status: dict[str, Any]) -> str:
    """Write a status for people."""
    driver = status["driver"]
    lines = [f"{status['study']} in {status['store']}: {_driver_text(driver)}", ""]
    of = "of" if status["search"] == "grid" else "of at most"
    lines += [f"{stage:<12}{n['done']:>6} {of} {n['of']}" for stage, n in status["stages"].items()]
    if driver and driver.get("running"):
        lines += ["", "running:"]
        for step in driver["running"]:
            share = f"{step['share_done']:.0%}" if step["share_done"] else ""
            lines.append(
                f"  {step['step']} on {step['lane']}, {step['seconds']} s {share}".rstrip()
            )
    if status["leases"]:
        lines += ["", "leases:"]
        lines += [
            f"  {h['step']} held by pid {h['pid']} on {h['host']}, "
            f"last heard of {h['seconds']:.0f} s ago"
            for h in status["leases"]
        ]
    if status["failed"]:
        lines += ["", "failed:", *(f"  {error}" for error in status["failed"])]
    return "\n".join(lines)


def _driver_text(driver: dict[str, Any] | None) -> str:
    if driver is None:
        return "not run yet"
    where = f"pid {driver['pid']} on {driver['host']}"
    if driver["silent"]:
        return f"its driver ({where}) was last heard of at {driver['updated']}; run it again"
    if driver["state"] != "running":
        return f"{driver['state']} at {driver['updated']}"
    left = driver.get("seconds_left")
    text = "" if left is None else f", about {duration(left)} left"
    return f"running on {driver.get('lanes', 0)} lane(s){text} ({where})"
