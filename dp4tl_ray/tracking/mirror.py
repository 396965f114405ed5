"""The process that talks to Weights & Biases. The only import of wandb.

Runs are held open while something happens in them, and resumed later if need be. When the server
stops answering, everything that it has not confirmed is written offline instead, from the start.
"""

import contextlib
import os
import pickle
import shutil
import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
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
from dp4tl_ray.tracking.server import create_sweep, host, refusal

MAX_OPEN = 32
"""Runs held open at a time: each costs three threads."""
RENEWED_AFTER = 100
"""Runs after which the client's own helper is started anew: it keeps 80 KB of each."""
PATIENCE_SECONDS = 20.0
"""How long the server may take to accept a run, or the last of its data."""
KILLED = 255
"""Exit code that Weights & Biases shows as killed instead of failed."""
MISTAKES = (ValueError, TypeError, KeyError, wandb.errors.UsageError)
"""Errors that are not the server's."""
SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "symlink": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,  # the command line among it
    "x_disable_stats": True,
    "x_save_requirements": False,
    "init_timeout": float(os.environ.get("WANDB_INIT_TIMEOUT", PATIENCE_SECONDS)),
    "finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", PATIENCE_SECONDS)),
    "finish_timeout_raises": True,
}


class Mirror:
    """Runs of one study."""

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
            self.destination = f"{host()} {self.setup.entity or ''}/{self.setup.project}"
        # a sweep that exists can be joined offline, too: the runs say so when they are sent
        known = self.setup.sweep_ids
        self.sweep_id = known.get(self.destination) or next(iter(known.values()), None)
        if self.mode == "online" and self.setup.sweep and self.destination not in known:
            try:
                self.sweep_id = create_sweep(self.setup)
            except Exception as error:  # a dashboard less
                self.sweep_id = None
                self.answer(Said(f"the sweep was not created: {error}"))
        return Ready(self.mode, self.destination, why, self.sweep_id)

    def _go_offline(self, error: Exception) -> None:
        """Give up on the server: what it has not confirmed is written again, here."""
        self.mode, self.destination = "offline", "offline"
        self.answer(Said(f"the server stopped answering ({error}); what it lacks is kept"))
        self.open.clear()
        self.sent.clear()
        with contextlib.suppress(Exception):
            wandb.teardown()  # waits for all open runs together, as long as for one
        for id in self.entries:
            self._remove(f"run-*-{id}")

    def fail(self, error: Exception) -> None:
        """Go on after something went wrong."""
        if self.mode == "online" and not isinstance(error, MISTAKES):
            self._go_offline(error)
        else:
            self.answer(Said(f"{error}; results.jsonl is whole"))

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
                self._whole(self.entries[message.id], message.outcome, self._ender(message))
                del self.entries[message.id]
            case Overview(entry, outcome):
                self._whole(entry, outcome, self._drawer(message))
            case Setup():
                raise ValueError("out of turn")

    def _whole(self, entry: Entry, outcome: str, write: Callable[[Any, Entry], int]) -> None:
        """Write a run to its end; if the server does not take it, offline."""
        if self.mode == "offline" and self.setup.written.get(entry.id) == outcome:
            return  # with its curves, which a rerun does not have
        try:
            self._finish(entry, write)
        except Exception as error:
            if self.mode == "offline" or isinstance(error, MISTAKES):
                raise
            self._go_offline(error)
            self._remove(f"run-*-{entry.id}")
            self._whole(entry, outcome, write)
            return
        self.answer(Tracked(entry.id, outcome, self.destination))

    def _finish(self, entry: Entry, write: Callable[[Any, Entry], int]) -> None:
        run = self._run(entry)
        code = _in_time(partial(write, run, entry))
        folder = Path(run.dir).parent
        self.open.pop(entry.id, None)
        run.finish(exit_code=code)
        if self.mode == "online":
            self._remove(f"run-*-{entry.id}")  # the server has it
        self._remove(f"offline-run-*-{entry.id}", folder)  # as it was before
        self.sent.pop(entry.id, None)
        self.ended += 1
        if self.ended >= RENEWED_AFTER and not self.open:
            wandb.teardown()
            self.ended = 0

    def _ender(self, end: End) -> Callable[[Any, Entry], int]:
        def write(run: Any, entry: Entry) -> int:
            self._show(run, entry)
            if end.reused and not run.resumed:
                run.tags = (*(run.tags or ()), "reused")
                run.config.update({"reused": [*end.reused]})
            run.summary.update(end.summary)
            for item in end.items:
                try:
                    attach(run, item, offline=self.mode == "offline")
                except Exception as error:  # the run is worth more
                    self.answer(Said(f"artifact {item.name}: {error}"))
            return int(end.failed)

        return write

    def _drawer(self, overview: Overview) -> Callable[[Any, Entry], int]:
        def write(run: Any, entry: Entry) -> int:
            draw(run, overview)
            return 0

        return write

    def _run(self, entry: Entry) -> Any:
        """Return a run, opened or resumed if need be."""
        if entry.id not in self.open:
            self.open[entry.id] = self._init(entry)
            if len(self.open) > MAX_OPEN:
                _, idle = self.open.popitem(last=False)
                idle.finish()  # it is resumed as soon as it has more to say
        self.open.move_to_end(entry.id)
        return self.open[entry.id]

    def _init(self, entry: Entry) -> Any:
        # an overview is drawn afresh; everything else goes on
        goes_on = self.mode == "online" and entry.job_type != "summary"
        run = wandb.init(
            id=entry.id,
            name=entry.name,
            project=self.setup.project,
            entity=self.setup.entity,
            group=self.setup.group,
            job_type=entry.job_type,
            tags=entry.tags,
            config=entry.config,
            dir=self.setup.folder,
            mode=self.mode,
            resume="allow" if goes_on else None,
            reinit="create_new",
            settings=wandb.Settings(sweep_id=self.sweep_id if entry.in_sweep else None, **SETTINGS),
        )
        for curve in entry.curves.values():
            x = f"{curve.prefix}/{curve.x}"
            run.define_metric(x, hidden=True)
            run.define_metric(f"{curve.prefix}/*", step_metric=x)
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
        for run in self.open.values():
            with contextlib.suppress(Exception):
                run.finish(exit_code=KILLED)
        with contextlib.suppress(Exception):
            wandb.teardown()


def _in_time(work: Callable[[], int]) -> int:
    """Do what may block: the client waits for an artifact without end.

    Raises:
        TimeoutError: It is not done; whatever it waits for, nobody does any longer.
    """
    done: list[int | Exception] = []

    def do() -> None:
        try:
            done.append(work())
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(SETTINGS["finish_timeout"])
    if not done:
        raise TimeoutError("it did not take an artifact in time")
    if isinstance(done[0], Exception):
        raise done[0]
    return done[0]


def main() -> None:
    """Mirror what comes in by standard input, until it ends; answer by standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed is no answer

    def answer(what: Answer) -> None:
        with contextlib.suppress(BrokenPipeError):  # the driver is gone; what it said still counts
            pickle.dump(what, answers)
            answers.flush()

    messages = _messages()
    setup = next(messages)
    assert isinstance(setup, Setup)
    mirror = Mirror(setup, answer)
    answer(mirror.prepare())
    for message in messages:
        try:
            mirror.take(message)
        except Exception as error:  # wandb raises many kinds; the next run may do better
            mirror.fail(error)
    mirror.close()


def _messages() -> Iterator[Message]:
    with contextlib.suppress(EOFError):
        while True:
            yield pickle.load(sys.stdin.buffer)


if __name__ == "__main__":
    main()
