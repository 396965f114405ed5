"""The board: which steps wait, are ready, run, are done or have failed. Knows no Ray.

Its state is only a cache of the store: whoever loses it makes a new one from plan and store.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from dp4tl_ray.plan import Plan, PlannedStep, is_wide
from dp4tl_ray.store import Store

State = Literal["waiting", "ready", "running", "done", "failed"]
Progress = dict[str, float | int | str]
RETRY_SECONDS = 1.0
"""Pause before asking again for a step whose lease another driver holds."""


@dataclass
class Entry:
    """One step on the board."""

    step: PlannedStep
    priority: float
    wide: bool
    state: State = "waiting"
    error: str = ""
    """Why it failed, beginning with the name of the step that did."""
    attempts: int = 0
    suspect: bool = False
    """Whether it ran when a lane died: it is then given out alone, to tell it from the others."""
    not_before: float = 0.0
    progress: Progress = field(default_factory=dict)
    taken_at: float = 0.0
    seconds: float = 0.0
    """From being handed out to being reported done."""


def share_done(progress: Progress) -> float:
    """Return how much of a running step is done, from what it has reported; 0 where it has not."""
    if "step" not in progress:
        return 0.0
    return float(progress["step"]) / max(1.0, float(progress["steps"]))


@dataclass(frozen=True)
class Summary:
    """What a display shows of a board."""

    total: int
    done: int
    failed: int
    running: tuple[tuple[str, Progress], ...]
    """Name and progress of the running steps."""
    cost_done: float
    """Nominal cost of what is done, running steps in part."""
    cost_total: float


class Board:
    """Hands out steps, longest path first, as soon as their inputs are done."""

    def __init__(self, plan: Plan, done: Iterable[str], max_attempts: int = 2) -> None:
        self.plan = plan
        self.entries = {
            key: Entry(step, plan.priority[key], is_wide(step)) for key, step in plan.steps.items()
        }
        self.costs = {key: plan.cost(key) for key in plan.steps}
        self.max_attempts = max_attempts
        self.taken: dict[str, list[str]] = {}
        self.closed = False
        self.asked = False
        """Whether a lane has started to work."""
        for key in done:
            self.entries[key].state = "done"
        self.ran = 0
        for key in self.entries:
            self._refresh(key)

    def _refresh(self, key: str) -> None:
        """Move a waiting step on when its inputs are done, or have failed."""
        entry = self.entries[key]
        if entry.state != "waiting":
            return
        inputs = [self.entries[used] for used in entry.step.inputs.values()]
        for used in inputs:
            if used.state == "failed":
                self.fail(key, used.error)
                return
        if all(used.state == "done" for used in inputs):
            entry.state = "ready"

    def take(self, lane: str, workers: int = 1) -> list[str] | None:
        """Give a lane its next work: one wide step, or up to `workers` narrow ones.

        A lane that asks while it still holds steps has lost them to a crash: they are given out
        again, until they have been tried `max_attempts` times.

        Returns:
            Digests; empty when there is nothing to do yet; None when there never will be.
        """
        self.release(lane)
        ready = [
            key
            for key, entry in self.entries.items()
            if entry.state == "ready" and entry.not_before <= time.monotonic()
        ]
        ready.sort(key=lambda key: -self.entries[key].priority)
        if not ready:
            return None if self.finished or self.closed else []
        chosen = ready[:1]
        if not (self.entries[ready[0]].wide or self.entries[ready[0]].suspect):
            narrow = (k for k in ready if not (self.entries[k].wide or self.entries[k].suspect))
            chosen = list(islice(narrow, workers))
        for key in chosen:
            self.entries[key].state = "running"
            self.entries[key].attempts += 1
            self.entries[key].taken_at = time.monotonic()
        self.taken[lane] = list(chosen)
        self.asked = True
        return chosen

    def release(self, lane: str) -> None:
        """Put back, or give up, what a lane held when it died; nothing when it held nothing."""
        for key in self.taken.pop(lane, []):
            entry = self.entries[key]
            if entry.state != "running":
                continue
            if entry.attempts >= self.max_attempts:
                why = entry.error or f"its worker died {entry.attempts} times"
                self.fail(key, f"{entry.step.stage} {entry.step.name}: {why}")
            else:
                entry.state, entry.suspect = "ready", True

    def finish(self, key: str, ran: bool = True) -> None:
        """Note that a step's artifact is in the store; `ran` is false when it was found there."""
        entry = self.entries[key]
        entry.state, entry.error, entry.progress = "done", "", {}
        entry.seconds = time.monotonic() - entry.taken_at
        self.ran += ran
        for user in self.plan.users[key]:
            self._refresh(user)

    def fail(self, key: str, error: str) -> None:
        """Give a step up, and with it every step that needs it."""
        entry = self.entries[key]
        entry.state, entry.error, entry.progress = "failed", error, {}
        for user in self.plan.users[key]:
            if self.entries[user].state in ("waiting", "ready"):
                self.fail(user, error)

    def blame(self, key: str, error: str) -> None:
        """Remember why a lane is about to crash over a step."""
        self.entries[key].error = error

    def postpone(self, key: str) -> None:
        """Put a step back because another driver is computing it."""
        entry = self.entries[key]
        entry.state, entry.not_before = "ready", time.monotonic() + RETRY_SECONDS
        entry.attempts -= 1

    def progress(self, key: str, progress: Progress) -> None:
        """Note how far a running step is."""
        self.entries[key].progress = progress

    def close(self, why: str) -> None:
        """Give up everything that is not finished; lanes end when they next ask."""
        self.closed = True
        for key, entry in self.entries.items():
            if entry.state not in ("done", "failed"):
                self.fail(key, f"{entry.step.stage} {entry.step.name}: {why}")

    @property
    def num_open(self) -> int:
        """Steps that are neither done nor failed."""
        return sum(entry.state not in ("done", "failed") for entry in self.entries.values())

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.num_open == 0

    def status(self, keys: Iterable[str]) -> tuple[bool, str, Progress]:
        """Tell of some steps whether all have ended, the first error, and the latest progress."""
        entries = [self.entries[key] for key in keys]
        ended = all(entry.state in ("done", "failed") for entry in entries)
        error = next((entry.error for entry in entries if entry.state == "failed"), "")
        running = (entry.progress for entry in entries if entry.progress)
        return ended, error, next(running, {})

    def errors(self) -> dict[str, str]:
        """Return digest -> reason of the failed steps."""
        return {key: e.error for key, e in self.entries.items() if e.state == "failed"}

    def summary(self) -> Summary:
        """Return what a display shows."""
        entries = self.entries.values()
        running = [e for e in entries if e.state == "running"]
        spent = {"done": 1.0, "failed": 1.0}
        return Summary(
            total=len(self.entries),
            done=sum(e.state == "done" for e in entries),
            failed=sum(e.state == "failed" for e in entries),
            running=tuple((f"{e.step.stage} {e.step.name}", e.progress) for e in running),
            cost_done=sum(
                self.costs[key] * spent.get(entry.state, share_done(entry.progress))
                for key, entry in self.entries.items()
            ),
            cost_total=sum(self.costs.values()),
        )


def done_steps(plan: Plan, store: Store) -> set[str]:
    """Return the steps whose artifacts are in the store, whole."""
    return {key for key, step in plan.steps.items() if store.find(step) is not None}
