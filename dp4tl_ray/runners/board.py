"""The board: which steps wait, are ready, run, are done or have failed. Knows no Ray.

Its state is only a cache of the store: whoever loses it makes a new one from plan and store.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from dp4tl_ray.plan import Plan, PlannedStep, is_wide, title
from dp4tl_ray.runners.journal import Journal, News, Progress

State = Literal["waiting", "ready", "running", "done", "failed"]
Tasks = dict[str, list[str]]
"""Name of a cell -> the last steps that it needs."""
More = Callable[[Mapping[str, str]], Tasks]
"""Errors so far -> cells that a search needs, those that are done or asked for included."""
RETRY_SECONDS = 1.0
"""Pause before asking again for a step whose lease another driver holds."""


@dataclass
class Entry:
    """One step on the board."""

    step: PlannedStep
    priority: float
    wide: bool
    state: State = "waiting"
    wanted: int = 0
    """Cells that wait for it; what nobody waits for is not given out."""
    lane: str = ""
    """Who runs it, or ran it last."""
    error: str = ""
    """Why it failed, beginning with the name of the step that did."""
    attempts: int = 0
    """Times that it was given out and did not end because its node went away."""
    preemptions: int = 0
    """Times that its node went away while it ran."""
    suspect: bool = False
    """Whether it ran when a lane died: it is then given out alone, to tell it from the others."""
    not_before: float = 0.0
    progress: Progress = field(default_factory=dict)
    taken_at: float = 0.0
    seconds: float = 0.0
    """From being handed out to being reported done."""


@dataclass
class Crew:
    """A lane as the board sees it."""

    workers: int
    single: bool
    """Whether it takes only steps that no workers share."""
    nodes: frozenset[str]
    """Where its workers are."""
    given: tuple[str, ...] = ()
    """What it was last given."""


def share_done(progress: Progress) -> float:
    """Return how much of a running step is done, from what it has reported; 0 where it has not."""
    if "step" not in progress:
        return 0.0
    return float(progress["step"]) / max(1.0, float(progress["steps"]))


@dataclass(frozen=True)
class Running:
    """A step that a lane is at."""

    stage: str
    name: str
    lane: str
    seconds: float
    progress: Progress


@dataclass(frozen=True)
class Summary:
    """What a display shows of a board."""

    total: int
    done: int
    failed: int
    running: tuple[Running, ...]
    """The longest path first."""
    cost_done: float
    """Nominal cost of what is done, running steps in part."""
    cost_total: float
    open_wide: int
    """Steps to do that all workers of a lane share."""
    open_narrow: int
    """Steps to do that one worker does alone."""
    over: bool
    """Whether nothing is left to do, nor will be."""


class Board:
    """Hands out steps, longest path first, as soon as their inputs are done.

    Args:
        plan: The steps.
        done: Digests of those whose artifacts are in the store.
        wanted: Name of a cell -> the last steps that it needs; null wants every step.
        max_attempts: Times that a step is given out whose worker dies.
        max_preemptions: Times that a step is given out again because its node went away.
    """

    def __init__(
        self,
        plan: Plan,
        done: Iterable[str],
        wanted: Mapping[str, Collection[str]] | None = None,
        max_attempts: int = 2,
        max_preemptions: int = 20,
    ) -> None:
        self.plan = plan
        self.entries = {
            key: Entry(step, plan.priority[key], is_wide(step)) for key, step in plan.steps.items()
        }
        self.costs = {key: plan.cost(key) for key in plan.steps}
        self.turn = {
            key: turn
            for turn, key in enumerate(sorted(plan.steps, key=lambda key: -plan.priority[key]))
        }
        self.max_attempts, self.max_preemptions = max_attempts, max_preemptions
        self.crews: dict[str, Crew] = {}
        self.closed = False
        self.expecting = False
        """Whether more may be wanted later: lanes then wait instead of ending."""
        self.ran = 0
        self.journal: Journal | None = None
        """What happened, where somebody follows the study."""
        self.cells: dict[str, frozenset[str]] = {}
        self.open: set[str] = set()
        """Steps that are wanted and neither done nor failed."""
        self.ready: set[str] = set()
        """Those of them that could run now."""
        for key in done:
            self._move(key, "done")
        for key in self.entries:
            self._refresh(key)
        for cell, keys in ({"everything": list(plan.steps)} if wanted is None else wanted).items():
            self.want(cell, keys)

    # -- what is wanted ----------------------------------------------------------------------------

    def want(self, cell: str, keys: Collection[str]) -> None:
        """Note that a cell waits for some steps, and so for all that they rest on."""
        if cell not in self.cells:
            self.cells[cell] = frozenset[str]().union(*map(self.plan.closure, keys))
            for key in self.cells[cell]:
                self.entries[key].wanted += 1
                self._move(key)

    def unwant(self, cell: str) -> None:
        """Note that a cell waits no longer; a running step that nobody waits for is halted."""
        for key in self.cells.pop(cell, ()):
            self.entries[key].wanted -= 1
            self._move(key)

    def _move(self, key: str, state: State | None = None) -> None:
        """Put a step into a state, and into the sets that are looked at often."""
        entry = self.entries[key]
        entry.state = state or entry.state
        is_open = entry.wanted > 0 and entry.state not in ("done", "failed")
        (self.open.add if is_open else self.open.discard)(key)
        (self.ready.add if is_open and entry.state == "ready" else self.ready.discard)(key)

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
            self._move(key, "ready")

    # -- lanes -------------------------------------------------------------------------------------

    def take(
        self,
        lane: str,
        workers: int = 1,
        single: bool = False,
        nodes: Collection[str] = (),
        preempted: bool = False,
    ) -> list[str] | None:
        """Give a lane its next work: one wide step, or up to `workers` narrow ones.

        A lane that asks while it still holds steps has lost them to a crash: they are given out
        again, until they have been tried `max_attempts` times. A lane that comes back with other
        workers than before was resized, which is nobody's fault.

        Args:
            lane: Who asks.
            workers: Its workers.
            single: Whether it takes no wide steps.
            nodes: Where its workers are.
            preempted: Whether a node went away under the steps that it holds.

        Returns:
            Digests; empty when there is nothing to do yet; None when there never will be.
        """
        if (before := self.crews.get(lane)) is not None:
            self.release(lane, preempted or before.workers != workers)
        crew = self.crews[lane] = Crew(workers, single, frozenset(nodes))
        now = time.monotonic()
        ready = [
            key
            for key in self.ready
            if (entry := self.entries[key]).not_before <= now and not (single and entry.wide)
        ]
        if not ready:
            if self.closed or (not self.expecting and self._surplus(crew)):
                self.crews.pop(lane)
                return None
            return []
        ready.sort(key=self.turn.__getitem__)
        chosen = ready[:1]
        if not (self.entries[ready[0]].wide or self.entries[ready[0]].suspect):
            narrow = (k for k in ready if not (self.entries[k].wide or self.entries[k].suspect))
            chosen = list(islice(narrow, workers))
        for key in chosen:
            entry = self.entries[key]
            entry.lane, entry.taken_at = lane, now
            entry.attempts += 1
            self._move(key, "running")
        crew.given = tuple(chosen)
        return chosen

    def held_by(self, lane: str) -> list[str]:
        """Return what a lane is at."""
        crew = self.crews.get(lane)
        return [
            key
            for key in (crew.given if crew else ())
            if self.entries[key].state == "running" and self.entries[key].lane == lane
        ]

    def _surplus(self, crew: Crew) -> bool:
        """Whether an idle lane will not be needed: there are fewer steps to come than lanes."""
        kin = [other for other in self.crews.values() if other.single == crew.single]
        to_come = sum(not (crew.single and self.entries[key].wide) for key in self.open)
        return to_come < len(kin)

    def release(self, lane: str, preempted: bool = False) -> None:
        """Put back, or give up, what a lane held when it died; nothing when it held nothing."""
        held = self.held_by(lane)
        self.crews.pop(lane, None)
        for key in held:
            entry = self.entries[key]
            name = title(entry.step, self.plan.steps)
            if preempted:
                entry.attempts -= 1
                entry.preemptions += 1
            if entry.preemptions > self.max_preemptions:
                self.fail(key, f"{name}: its node went away {entry.preemptions} times")
            elif entry.attempts >= self.max_attempts:
                why = entry.error or f"its worker died {entry.attempts} times"
                self.fail(key, f"{name}: {why}")
            else:
                entry.suspect, entry.progress = not preempted, {}
                self._move(key, "ready")

    def release_lost(self, nodes: Collection[str]) -> None:
        """Put back what lanes hold of whose nodes one is not among those that are alive."""
        for lane, crew in list(self.crews.items()):
            if not crew.nodes <= set(nodes):
                self.release(lane, preempted=True)

    # -- steps -------------------------------------------------------------------------------------

    def finish(self, key: str, ran: bool = True) -> None:
        """Note that a step's artifact is in the store; `ran` is false when it was found there."""
        entry = self.entries[key]
        entry.error, entry.progress = "", {}
        self._move(key, "done")
        entry.seconds = time.monotonic() - entry.taken_at
        self.ran += ran
        self._tell(News(key, "ran" if ran else "found"))
        for user in self.plan.users[key]:
            self._refresh(user)

    def fail(self, key: str, error: str) -> None:
        """Give a step up, and with it every step that needs it."""
        entry = self.entries[key]
        entry.error, entry.progress = error, {}
        self._move(key, "failed")
        self._tell(News(key, "failed", error=error))
        for user in self.plan.users[key]:
            if self.entries[user].state in ("waiting", "ready"):
                self.fail(user, error)

    def blame(self, key: str, error: str) -> None:
        """Remember why a lane is about to crash over a step."""
        self.entries[key].error = error

    def postpone(self, key: str) -> None:
        """Put a step back because another driver is computing it."""
        entry = self.entries[key]
        entry.not_before = time.monotonic() + RETRY_SECONDS
        entry.attempts -= 1
        self._move(key, "ready")

    def put_back(self, key: str) -> None:
        """Put a step back that was halted because nobody waited for it."""
        entry = self.entries[key]
        entry.progress = {}
        entry.attempts -= 1
        self._move(key, "ready")

    def progress(self, key: str, progress: Progress) -> bool:
        """Note how far a running step is; returns whether somebody still waits for it."""
        self.entries[key].progress = progress
        self._tell(News(key, "progress", progress))
        return self.entries[key].wanted > 0

    def _tell(self, news: News) -> None:
        if self.journal is not None:
            self.journal.add(news)

    def news(self, heard: int) -> list[News]:
        """Return what happened after the first `heard` events."""
        return self.journal.since(heard) if self.journal is not None else []

    def close(self, why: str) -> None:
        """Give up everything that is not finished; lanes end when they next ask."""
        self.closed = True
        for key, entry in self.entries.items():
            if entry.state not in ("done", "failed"):
                self.fail(key, f"{title(entry.step, self.plan.steps)}: {why}")

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self.expecting and not self.open

    def status(self, cell: str, keys: Collection[str]) -> tuple[bool, str, Progress]:
        """Tell of a cell whether its last steps have ended, the first error, the latest progress.

        The progress is that of a step on the way to them which is running, the last in the
        procedure first: the pretraining, while there is one.
        """
        entries = [self.entries[key] for key in keys]
        ended = all(entry.state in ("done", "failed") for entry in entries)
        error = next((entry.error for entry in entries if entry.state == "failed"), "")
        running = [
            entry
            for key in (() if ended else self.cells.get(cell, ()))
            if (entry := self.entries[key]).state == "running" and entry.progress
        ]
        nearest = min(running, key=lambda entry: entry.priority, default=None)
        return ended, error, nearest.progress if nearest else {}

    def errors(self) -> dict[str, str]:
        """Return digest -> reason of the failed steps."""
        return {key: e.error for key, e in self.entries.items() if e.state == "failed"}

    def summary(self) -> Summary:
        """Return what a display shows."""
        wanted = {key: e for key, e in self.entries.items() if e.wanted or e.state == "done"}
        spent, now = {"done": 1.0, "failed": 1.0}, time.monotonic()
        waiting = tuple(self.open)  # asked for by the thread that draws, while steps are taken
        running = sorted(
            (e for e in wanted.values() if e.state == "running"), key=lambda e: -e.priority
        )
        return Summary(
            total=len(wanted),
            done=sum(e.state == "done" for e in wanted.values()),
            failed=sum(e.state == "failed" for e in wanted.values()),
            running=tuple(
                Running(e.step.stage, e.step.name, e.lane, now - e.taken_at, e.progress)
                for e in running
            ),
            cost_done=sum(
                self.costs[key] * spent.get(entry.state, share_done(entry.progress))
                for key, entry in wanted.items()
            ),
            cost_total=sum(self.costs[key] for key in wanted),
            open_wide=sum(self.entries[key].wide for key in waiting),
            open_narrow=sum(not self.entries[key].wide for key in waiting),
            over=self.finished,
        )


def tasks_of(plan: Plan) -> Tasks:
    """Name what a study waits for: its cells, or the last steps of a run that stops before them."""
    if not plan.cells:
        return {key: [key] for key, users in plan.users.items() if not users}
    return {f"cell{n}": [cell.steps["finetune"]] for n, cell in enumerate(plan.cells)}
