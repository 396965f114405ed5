"""What the mirror does with what it is told.

Runs are held open while something happens in them, and resumed later if need be. They are ended
side by side, because ending one is mostly waiting for the server. When the server stops answering,
everything that it has not confirmed is written offline instead, from the start.
"""

import contextlib
import shutil
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import wandb

from dp4tl_ray.tracking.drawing import attach, draw
from dp4tl_ray.tracking.messages import (
    COUNT,
    Answer,
    End,
    Entry,
    Message,
    Mode,
    Overview,
    Ready,
    Row,
    Said,
    Setup,
    Tracked,
)
from dp4tl_ray.tracking.runs import KILLED, MISTAKES, begin, in_time
from dp4tl_ray.tracking.server import create_sweep, destination, outgrown, refusal

MAX_OPEN = 32
"""Runs held open at a time, beside those that are being ended: each costs three threads."""
SIDE_BY_SIDE = 12
"""Runs that are being ended at a time; more gain little, as each takes 45 ms of a processor."""
RENEWED_AFTER = 100
"""Runs after which the client's own helper is started anew: it keeps 80 KB of each."""


@dataclass(frozen=True)
class Ending:
    """A run that is being ended."""

    entry: Entry
    outcome: str
    write: Callable[[Any], int]
    """Puts what is left into the run, and returns its exit code."""
    makes: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    """Names of artifacts."""


class Mirror:
    """Runs of one study.

    Messages are taken in one thread. A run that is being ended belongs to a thread of its own.
    """

    def __init__(self, setup: Setup, answer: Callable[[Answer], None]) -> None:
        self.setup, self.answer = setup, answer
        self.mode: Mode = setup.mode
        self.sweep_id: str | None = None
        self.destination = "offline"
        self.entries: dict[str, Entry] = {}
        """Runs that have not ended."""
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.owners: dict[str, str] = {}
        """Step -> the run that shows it while it happens; the others get its curve as they end."""
        self.open: OrderedDict[str, Any] = OrderedDict()
        """Those that are open, the one that was idle for longest first."""
        self.sent: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        """Run -> step -> rows that it has."""
        self.threads = ThreadPoolExecutor(SIDE_BY_SIDE)
        self.ending: dict[Future[None], Ending] = {}
        self.ended = 0
        """Runs since the client's helper was started."""
        self.url = ""

    # -- where to ----------------------------------------------------------------------------------

    def prepare(self) -> Ready:
        """Find out whether the server can be reached and knows the key; else go offline."""
        why = ""
        if self.mode == "online" and (why := refusal()):
            self.mode = "offline"
        if self.mode == "online":
            self.destination = destination(self.setup.project, self.setup.entity)
        # a sweep that exists can be joined offline, too: the runs say so when they are sent
        known = self.setup.sweep_ids
        self.sweep_id = known.get(self.destination) or next(iter(known.values()), None)
        if self.mode == "online" and self.setup.sweep:
            self._join_sweep(known.get(self.destination))
        return Ready(self.mode, self.destination, why, self.sweep_id)

    def _join_sweep(self, known: str | None) -> None:
        """Create the sweep, or say what it lacks."""
        try:
            if known is None:
                self.sweep_id = None  # another destination's
                self.sweep_id = create_sweep(self.setup)
            elif axes := outgrown(self.setup, known):
                what = f"the sweep {known} lists fewer values of {', '.join(axes)} than the study"
                self.answer(Said(f"{what}, whose cells all join it"))
        except Exception as error:  # a dashboard less
            self.answer(Said(f"the sweep {known or 'that was to be'} cannot be had: {error}"))

    def _go_offline(self, error: BaseException) -> None:
        """Give up on the server: what it has not confirmed is written again, here."""
        self.mode, self.destination = "offline", "offline"
        self.answer(Said(f"the server stopped answering ({error}); what it lacks is kept"))
        self.open.clear()
        self.sent.clear()
        with contextlib.suppress(Exception):
            # waits for all open runs together; without end if a question to the server is retried
            in_time(wandb.teardown)
        self.ended = 0
        for id in self.entries:
            self._remove(f"run-*-{id}")

    def _is_away(self, error: BaseException) -> bool:
        """Whether an error says that the server stopped answering."""
        return self.mode == "online" and not isinstance(error, MISTAKES)

    def fail(self, error: BaseException) -> None:
        """Go on after something went wrong."""
        if not self._is_away(error):
            self.answer(Said(f"{error}; results.jsonl is whole"))
            return
        self._settle()  # it may have taken some of what is under way
        if self.mode == "online":
            self._go_offline(error)

    # -- runs --------------------------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """Do what a message says."""
        match message:
            case Entry():
                self.entries[message.id] = message
                for key in message.curves:
                    self.owners.setdefault(key, message.id)
            case Row(key, values):
                self.rows[key].append(values)
                if self.mode == "online" and (entry := self.entries.get(self.owners.get(key, ""))):
                    self._show(self._run(entry), entry)
            case End():
                self._end(self._ending(message))
            case Overview(entry, outcome):
                self._settle()  # a summary comes last
                self._end(Ending(entry, outcome, partial(_draw, message)))
            case Setup():
                raise ValueError("out of turn")

    def _ending(self, end: End) -> Ending:
        entry = self.entries.pop(end.id)
        made, used = ([i.name for i in end.items if i.made is made] for made in (True, False))
        write = partial(self._complete, entry, end)
        return Ending(entry, end.outcome, write, frozenset(made), frozenset(used))

    def _end(self, ending: Ending) -> None:
        """Begin to end a run, as soon as not too many others are being ended."""
        self._settle(SIDE_BY_SIDE - 1)
        if ending.entry.id not in self.open:
            self._renew()
        if self.mode == "offline" and self._is_written(ending):
            return  # with its curves, which a rerun does not have
        run = self.open.pop(ending.entry.id, None)
        # the first that brings an artifact is shown as the run that made it
        makers = [future for future, e in self.ending.items() if e.makes & ending.uses]
        self.ending[self.threads.submit(self._finish, ending, run, makers)] = ending

    def _is_written(self, ending: Ending) -> bool:
        """Whether the same is on this disk; the store may be on another, too."""
        folder, id = self.setup.folder / "wandb", ending.entry.id
        same = self.setup.written.get(id) == ending.outcome
        return same and any(folder.glob(f"offline-run-*-{id}"))

    def _settle(self, most: int = 0) -> None:
        """Wait until at most so many runs are being ended; write offline what the server lacks."""
        lost: list[tuple[Ending, BaseException]] = []
        while len(self.ending) > (0 if lost else most):
            for future in wait(self.ending, return_when=FIRST_COMPLETED).done:
                ending, error = self.ending.pop(future), future.exception()
                if error is None:
                    self.ended += 1
                elif self._is_away(error):
                    lost.append((ending, error))
                else:
                    self.fail(error)
        if lost:
            self._go_offline(lost[0][1])
        for ending, _ in lost:
            self._remove(f"run-*-{ending.entry.id}")
            self._end(ending)

    def _finish(self, ending: Ending, run: Any, makers: Collection[Future[None]]) -> None:
        """Write a run to its end; in a thread of its own, and nothing else happens in the run."""
        id = ending.entry.id
        run = run or self._init(ending.entry)
        wait(makers)
        for error in (maker.exception() for maker in makers):
            if error is not None and self._is_away(error):
                raise error  # rather than wait as long again
        try:
            code = ending.write(run)
        except MISTAKES:
            run.finish(exit_code=KILLED)
            raise
        folder = Path(run.dir).parent
        run.finish(exit_code=code)
        if self.mode == "online":
            self._remove(f"run-*-{id}")  # the server has it
        self._remove(f"offline-run-*-{id}", folder)  # as it was before
        self.sent.pop(id, None)
        self.answer(Tracked(id, ending.outcome, self.destination))

    def _complete(self, entry: Entry, end: End, run: Any) -> int:
        """Put into a run what its cell came to."""
        self._show(run, entry)
        if end.reused and not run.resumed:
            run.tags = (*(run.tags or ()), "reused")
            run.config.update({"reused": [*end.reused]})
        run.summary.update(end.summary)
        for item in end.items:
            try:
                in_time(partial(attach, run, item, offline=self.mode == "offline"))
            except TimeoutError:
                raise
            except Exception as error:  # the run is worth more
                self.answer(Said(f"artifact {item.name}: {error}"))
        return int(end.failed)

    def _run(self, entry: Entry) -> Any:
        """Return a run, opened or resumed if need be."""
        if entry.id not in self.open:
            self._renew()
            self.open[entry.id] = self._init(entry)
            if len(self.open) > MAX_OPEN:
                _, idle = self.open.popitem(last=False)
                idle.finish()  # it is resumed as soon as it has more to say
        self.open.move_to_end(entry.id)
        return self.open[entry.id]

    def _renew(self) -> None:
        """Start the client's own helper anew, if it has served long and nothing is open."""
        if self.ended >= RENEWED_AFTER and not self.open:
            self._settle()
            wandb.teardown()
            self.ended = 0

    def _init(self, entry: Entry) -> Any:
        run = begin(entry, self.setup, self.mode, self.sweep_id)
        if not self.url and self.mode == "online":
            self.url = run.sweep_url or run.project_url or ""
            self.answer(Said(self.url, url=True))
        return run

    def _show(self, run: Any, entry: Entry) -> None:
        """Log the reports that a run lacks."""
        for key, curve in entry.curves.items():
            for n in range(self.sent[entry.id][key], len(self.rows[key])):
                row = {COUNT: n + 1, **self.rows[key][n]}
                if curve.x != COUNT:
                    del row[COUNT]
                run.log({f"{curve.prefix}/{name}": value for name, value in row.items()})
                self.sent[entry.id][key] = n + 1

    def _remove(self, pattern: str, keep: Path | None = None) -> None:
        for folder in (self.setup.folder / "wandb").glob(pattern):
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End the runs whose cells have not ended: they were interrupted, and will be resumed."""
        self._settle()
        wait([self.threads.submit(run.finish, exit_code=KILLED) for run in self.open.values()])
        with contextlib.suppress(Exception):
            in_time(wandb.teardown)


def _draw(overview: Overview, run: Any) -> int:
    in_time(partial(draw, run, overview))
    return 0
