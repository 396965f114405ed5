"""The mirror with runs that only remember: what happens side by side, and what never does."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ray.tracking import mirror
from dp4tl_ray.tracking.messages import (
    Answer,
    Curve,
    End,
    Entry,
    Mode,
    Overview,
    Row,
    Said,
    Setup,
    Tracked,
)
from dp4tl_ray.tracking.mirror import SIDE_BY_SIDE, Mirror
from dp4tl_ray.tracking.runs import KILLED


@dataclass
class Run:
    """A run of a client that sends nothing."""

    id: str
    mode: Mode
    dir: str
    finish: Callable[..., None]
    finished_before: int
    """Runs that had ended when this one began."""
    resumed: bool = False
    sweep_url: str = "url"
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


class Study:
    """A mirror, what it answers, and the runs that it has begun."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[Answer] = []
        self.runs: list[Run] = []
        self.finished: dict[str, int] = {}
        """Run -> exit code, in the order of their ends."""
        self.unfinished_at_renewals: list[int] = []
        self.finishing: Callable[[Run], None] = lambda run: None
        """What happens while a run is being finished."""
        self.mirror = Mirror(Setup("online", "p", None, "g", folder), self.answers.append)

    def begin(self, entry: Entry, setup: Setup, mode: Mode, sweep_id: str | None) -> Run:
        def finish(exit_code: int) -> None:
            self.finishing(run)
            self.finished[run.id] = exit_code

        run = Run(entry.id, mode, str(setup.folder / "files"), finish, len(self.finished))
        self.runs.append(run)
        return run

    def teardown(self) -> None:
        self.unfinished_at_renewals.append(len(self.runs) - len(self.finished))

    def end(self, *ids: str) -> None:
        """End cells of which nothing was shown before."""
        for id in ids:
            self.take(entry(id), End(id, "done", False, {}))

    def take(self, *messages: Any) -> None:
        for message in messages:
            self.mirror.take(message)

    def tracked(self, at: str = "") -> list[str]:
        told = [answer for answer in self.answers if isinstance(answer, Tracked)]
        return [answer.id for answer in told if at in answer.destination]

    def said(self) -> list[str]:
        return [a.text for a in self.answers if isinstance(a, Said) and not a.url]


def entry(id: str, **curves: Curve) -> Entry:
    return Entry(id, id, "finetune", (), {}, curves)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    study = Study(tmp_path)
    study.mirror.destination = "server"
    monkeypatch.setattr(mirror, "begin", study.begin)
    monkeypatch.setattr("wandb.teardown", study.teardown)
    yield study
    study.finishing = lambda run: None
    study.mirror.close()


def test_runs_are_ended_side_by_side_and_the_summary_after_them(study: Study) -> None:
    cells = [f"cell{n}" for n in range(SIDE_BY_SIDE - 1)]  # room for a summary that does not wait
    together = threading.Barrier(len(cells), timeout=60)

    def finishing(run: Run) -> None:
        if run.id != "summary":
            together.wait()
            time.sleep(0.1)

    study.finishing = finishing
    study.end(*cells)
    study.take(Overview(entry("summary"), "done", ("accuracy",), (), {}, {}, ()))
    study.mirror.close()
    assert study.said() == [] and {*study.tracked("server")} == {*cells, "summary"}
    (summary,) = [run for run in study.runs if run.id == "summary"]
    assert summary.finished_before == len(cells)


def test_no_more_runs_are_ended_at_a_time_than_said(study: Study) -> None:
    under_way: list[int] = []
    study.finishing = lambda run: under_way.append(len(study.runs) - len(study.finished))
    study.end(*(f"cell{n}" for n in range(5 * SIDE_BY_SIDE)))
    study.mirror.close()
    assert len(under_way) == 5 * SIDE_BY_SIDE and max(under_way) <= SIDE_BY_SIDE


def test_the_helper_is_renewed_only_while_nothing_is_open(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "RENEWED_AFTER", 5)
    study.finishing = lambda run: time.sleep(0.02)
    study.take(entry("long", step=Curve("pretrain", "epoch")), Row("step", {"epoch": 1}))
    study.end(*(f"cell{n}" for n in range(4 * SIDE_BY_SIDE)))
    assert study.unfinished_at_renewals == []
    study.take(End("long", "done", False, {}))
    study.end(*(f"later{n}" for n in range(4 * SIDE_BY_SIDE)))
    assert study.unfinished_at_renewals and {*study.unfinished_at_renewals} == {0}


def test_what_a_server_did_not_take_is_written_offline_once(study: Study) -> None:
    answers = threading.Semaphore(7)

    def finishing(run: Run) -> None:
        if run.mode == "online" and not answers.acquire(blocking=False):
            time.sleep(0.02 * (len(study.runs) % SIDE_BY_SIDE))  # not all of them at once
            raise TimeoutError("no answer")

    study.finishing = finishing
    cells = [f"cell{n}" for n in range(3 * SIDE_BY_SIDE)]
    curve = Curve("pretrain", "epoch")
    study.take(entry("live", step=curve), Row("step", {"epoch": 1}))
    study.end(*cells)
    study.take(Row("step", {"epoch": 2}), End("live", "done", False, {}))
    study.mirror.close()
    assert len(study.said()) == 1 and "stopped answering (no answer)" in study.said()[0]
    assert sorted(study.tracked()) == sorted([*cells, "live"])
    assert len(study.tracked("server")) == 7
    offline = [run for run in study.runs if run.mode == "offline"]
    assert sorted(run.id for run in offline) == sorted(study.tracked("offline"))
    (live,) = [run for run in offline if run.id == "live"]
    assert live.rows == [{"pretrain/epoch": 1}, {"pretrain/epoch": 2}]


def test_a_mistake_costs_one_run_and_is_said(study: Study) -> None:
    no_summary: Any = None
    study.end("before")
    study.take(entry("wrong"), End("wrong", "done", False, no_summary))
    study.end("after")
    study.mirror.close()
    assert len(study.said()) == 1 and "results.jsonl is whole" in study.said()[0]
    assert {*study.tracked("server")} == {"before", "after"}
    assert study.finished == {"before": 0, "wrong": KILLED, "after": 0}
