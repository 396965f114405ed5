"""Follows a study, and tells the mirror what a dashboard shows of it. Costs the study nothing."""

import logging
import os
import queue
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from dp4tl_ray.plan import Cell, Plan
from dp4tl_ray.results import result_of
from dp4tl_ray.runners.journal import News
from dp4tl_ray.specs.records import Result
from dp4tl_ray.specs.study import Wandb
from dp4tl_ray.store import Store
from dp4tl_ray.tracking.client import Client
from dp4tl_ray.tracking.entries import (
    ROLES,
    cell_entry,
    manifest_summary,
    outcome_of,
    run_id,
    summary_of,
    surrogate_entry,
)
from dp4tl_ray.tracking.ledger import Ledger
from dp4tl_ray.tracking.lineage import model_item, subset_item
from dp4tl_ray.tracking.messages import Answer, End, Item, Message, Ready, Row, Said, Setup, Tracked
from dp4tl_ray.tracking.overview import overview
from dp4tl_ray.tracking.sweep_file import sweep_config

log = logging.getLogger("dp4tl")


class Tracker:
    """Mirrors one run of a study; used as a context around all that it does.

    Nothing that goes wrong here is raised: it is said, and results.jsonl is whole.

    Args:
        plan: With the cells of this run.
        store: Where artifacts are.
        spec: Where to, unless an agent of a sweep has started this process, which then says so.
    """

    def __init__(self, plan: Plan, store: Store, spec: Wandb) -> None:
        self.plan, self.store = plan, store
        self.agent = os.environ.get("WANDB_RUN_ID", "") if "WANDB_SWEEP_ID" in os.environ else ""
        self.spec = _as_the_agent_says(spec) if self.agent else spec
        self.cells = {cell.steps["finetune"]: cell for cell in plan.cells}
        self.pretrainings = {
            cell.steps["pretrain"]: key
            for key, cell in reversed(self.cells.items())
            if "pretrain" in cell.steps
        }
        """Pretraining -> the first of its cells, which shows it while it happens."""
        self.ledger = Ledger(store, plan.study.name)
        self.ran: set[str] = set()
        self.told: set[str] = set()
        """Runs that the mirror knows of."""
        self.ended: set[str] = set()
        self.made: set[str] = set()
        self.tracked = self.tracked_offline = 0
        self.failure = self.url = ""
        self.destination = "offline"
        self.work = queue.SimpleQueue[Sequence[News] | tuple[Sequence[Result], Path] | None]()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.client: Client | None = None

    # -- the study ---------------------------------------------------------------------------------

    def __enter__(self) -> "Tracker":
        """Begin to follow. Should the server not be there, that is said a second later."""
        self.thread.start()
        return self

    def _start(self) -> Client:
        """Start the mirror, and wait until it knows where runs go."""
        sweep_ids = dict(self.ledger.sweeps)
        if self.agent:
            sweep_ids = {"": os.environ["WANDB_SWEEP_ID"]}
        setup = Setup(
            mode="online" if self.spec.mode == "online" else "offline",
            project=self.spec.project,
            entity=self.spec.entity,
            group=self.plan.study.name,
            folder=self.store.root,
            sweep=None if self.agent else sweep_config(self.plan.study),
            sweep_ids=sweep_ids,
            written=self.ledger.at("offline"),
        )
        folder = self.store.root / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "mirror.log").open("ab") as output:
            self.client = Client(setup, output, self._listen)
        ready = self.client.wait()
        self.destination = ready.destination
        if ready.why:
            how = self._how_to_send()
            log.warning(f"Weights & Biases: {ready.why}; runs are written offline: {how}")
        known = self.ledger.sweeps.get(ready.destination)
        if ready.sweep_id and ready.mode == "online" and not self.agent and known is None:
            self.ledger.note(destination=ready.destination, sweep=ready.sweep_id)
        return self.client

    def hear(self, news: Sequence[News]) -> None:
        """Take what has happened; returns at once."""
        self.work.put(news)

    def report(self, results: Sequence[Result], folder: Path) -> None:
        """Take the results of the study, and where its report is."""
        self.work.put((results, folder))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the mirror finish, as long as it gets on."""
        try:
            self.work.put(None)
            self.thread.join()
            if self.client is not None and not self.client.end():
                self._fail(OSError("the mirror did not come to an end"))
        except KeyboardInterrupt:  # once more: it is taken at its word
            if self.client is not None:
                self.client.kill()
            raise
        finally:
            self.ledger.publish()

    def text(self) -> str:
        """Say what was tracked, for people."""
        where = f"at {self.url}" if self.url else ""
        if self.tracked_offline:
            where += f"{', some ' * bool(where)}offline; {self._how_to_send()}"
        return f"Weights & Biases: {self.tracked} runs {where}" if self.tracked else ""

    def _how_to_send(self) -> str:
        return f"send them with `wandb sync {self.store.root / 'wandb'}`"

    # -- the mirror --------------------------------------------------------------------------------

    def _listen(self, answer: Answer) -> None:
        match answer:
            case Tracked(id, outcome, destination):
                self.tracked += 1
                self.tracked_offline += destination == "offline"
                if id == self.agent:
                    id = run_id(self.plan.study.name, self.plan.cells[0].steps["finetune"])
                self.ledger.note(destination=destination, run=id, outcome=outcome)
            case Said(text, url=True):
                self.url = text
            case Said(text):
                log.warning("Weights & Biases: %s", text)
            case Ready():
                pass

    def _run(self) -> None:
        """Pass on what was heard, in order, until told that there is no more."""
        try:
            if self.spec.mode == "online":
                self._start()  # at once, so that people learn early where their runs go
            while (heard := self.work.get()) is not None:
                if isinstance(heard, tuple):
                    self._finish(*heard)
                else:
                    for news in heard:
                        self._pass_on(news)
        except Exception as error:  # the mirror has died, or a result cannot be read
            self._fail(error)
            if self.client is not None:
                self.client.kill()

    def _fail(self, error: Exception) -> None:
        if not self.failure:
            self.failure = str(error) or type(error).__name__
            log.warning("Weights & Biases: %s; results.jsonl is whole", self.failure)

    def _send(self, message: Message) -> None:
        (self.client or self._start()).send(message)

    # -- what happens ------------------------------------------------------------------------------

    def _pass_on(self, news: News) -> None:
        step = self.plan.steps[news.key]
        match news.what:
            case "progress":
                if "epoch" in news.progress:
                    self._row(news)
            case "ran" | "found":
                if news.what == "ran":
                    self.ran.add(news.key)
                    if step.stage == "surrogate" and not self.agent:
                        self._end_surrogate(news.key)
            case "failed":
                pass
        if news.what != "progress" and (cell := self.cells.get(news.key)):
            self._end(cell, news.error)

    def _row(self, news: News) -> None:
        """Show a report, in the run of the cell that it belongs to."""
        key = self.cells.get(news.key) or self.cells.get(self.pretrainings.get(news.key, ""))
        # a search may never come to the first cell of a pretraining
        if key is not None and (self.plan.study.search == "grid" or news.key in self.cells):
            self._tell(key)
        elif key is None and not self._tell_surrogate(news.key):
            return
        values = {name: value for name, value in news.progress.items() if name != "steps"}
        self._send(Row(news.key, values))

    def _tell(self, cell: Cell) -> str:
        """Announce the run of a cell; returns its id."""
        id = run_id(self.plan.study.name, cell.steps["finetune"])
        if self.agent and cell is self.plan.cells[0]:
            id = self.agent  # the server waits for a run of this name
        if id not in self.told:
            self.told.add(id)
            self._send(replace(cell_entry(self.plan, cell), id=id))
        return id

    def _tell_surrogate(self, key: str) -> bool:
        if self.agent or self.plan.steps[key].stage != "surrogate":
            return False
        entry = surrogate_entry(self.plan, key)
        if entry is not None and entry.id not in self.told:
            self.told.add(entry.id)
            self._send(entry)
        return entry is not None

    def _end_surrogate(self, key: str) -> None:
        artifact = self.store.find(self.plan.steps[key])
        if artifact is not None and self._tell_surrogate(key):
            items = (model_item(self.store, "surrogate", self.plan.steps[key], artifact, True),)
            summary = manifest_summary(artifact.manifest)
            id = run_id(self.plan.study.name, key)
            self._send(End(id, "done", False, summary, (), items))

    def _end(self, cell: Cell, error: str) -> None:
        """Write what came of a cell."""
        result = result_of(self.plan, self.store, cell, error)
        if result is None:
            return
        self.ended.add(cell.steps["finetune"])
        reused = [role for role in ROLES if role in cell.steps and cell.steps[role] not in self.ran]
        self._send(
            End(
                id=self._tell(cell),
                outcome=outcome_of(result),
                failed=result.status == "failed",
                summary=summary_of(result, self.plan, cell),
                reused=() if error else tuple(reused),
                items=tuple(self._items(cell)),
            )
        )

    def _items(self, cell: Cell) -> list[Item]:
        """Return what a cell used and made. What several share was made by one of them."""
        steps = {role: self.plan.steps[key] for role, key in cell.steps.items()}
        found = {role: self.store.find(step) for role, step in steps.items()}
        there = {role: artifact for role, artifact in found.items() if artifact is not None}
        pretrain = cell.steps.get("pretrain", "")
        made = pretrain in self.ran and pretrain not in self.made
        items = []
        if "prune" in there:
            for key in sorted(self.plan.closure(cell.steps["prune"])):
                step = self.plan.steps[key]
                if step.stage == "surrogate" and (artifact := self.store.find(step)):
                    items.append(model_item(self.store, "surrogate", step, artifact, False))
            subset = cell.steps["prune"]
            first = made and subset not in self.made
            items.append(subset_item(self.store, steps, there, first))
            self.made.add(subset)
        if "pretrain" in there:
            artifact = there["pretrain"]
            items.append(model_item(self.store, "pretrained", steps["pretrain"], artifact, made))
            self.made.add(pretrain)
        return items

    # -- the end -----------------------------------------------------------------------------------

    def _known(self) -> dict[str, str]:
        """Return the runs that need not be written again: offline, those that are on this disk."""
        noted = self.ledger.at(self.destination)
        if self.destination != "offline":
            return noted
        folders = (self.store.root / "wandb").glob("offline-run-*")
        here = {folder.name.rpartition("-")[2] for folder in folders}
        return {id: outcome for id, outcome in noted.items() if id in here}

    def _finish(self, results: Sequence[Result], folder: Path) -> None:
        """Write the cells that ended before, unless they were, and the summary run."""
        known = self._known()
        for key, cell in self.cells.items():
            if key in self.ended or self.store.find(self.plan.steps[key]) is None:
                continue
            result = result_of(self.plan, self.store, cell, "")
            id = run_id(self.plan.study.name, key)
            if self.agent or (result is not None and known.get(id) != outcome_of(result)):
                self._end(cell, "")
        if results and not self.agent:
            drawn = overview(self.plan, self.store, results, folder)
            if known.get(drawn.entry.id) != drawn.outcome:
                self._send(drawn)


def _as_the_agent_says(spec: Wandb) -> Wandb:
    """Return where the sweep of an agent is."""
    given = {
        "mode": "online",
        "project": os.environ.get("WANDB_PROJECT", spec.project),
        "entity": os.environ.get("WANDB_ENTITY", spec.entity),
    }
    return spec.model_copy(update=given)
