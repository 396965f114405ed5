"""What `dp4tl status` tells, from the store alone."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ray.cli import main
from dp4tl_ray.plan import Plan
from dp4tl_ray.runners.board import Board, tasks_of
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.runners.status import StatusFile, status_of, status_text
from dp4tl_ray.store import Store, open_store
from dp4tl_ray.sweep import plan_study
from tests.conftest import study_data, supervised, tiny_study


@pytest.fixture
def plan(pictures: dict[str, str]) -> Plan:
    return plan_study(tiny_study(pictures))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def write_status(store: Store, **facts: Any) -> None:
    path = store.study_folder("tiny") / "status.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": "far", "pid": 7, **facts}))


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def test_a_study_that_never_ran_says_so(plan: Plan, store: Store) -> None:
    text = status_text(status_of(plan, store))
    assert "not run yet" in text
    assert re.search(r"^pretrain +0 of 4$", text, re.M)


def test_a_driver_that_fell_silent_is_noticed(plan: Plan, store: Store) -> None:
    write_status(store, state="running", updated=ago(300), lanes=2)
    text = status_text(status_of(plan, store))
    assert "(pid 7 on far) was last heard of" in text and "run it again" in text


def test_a_running_study_tells_its_steps_and_who_holds_them(plan: Plan, store: Store) -> None:
    running = {"step": "pretrain x", "lane": "lane0", "seconds": 12, "share_done": 0.25}
    write_status(
        store, state="running", updated=ago(1), lanes=2, seconds_left=130, running=[running]
    )
    step = next(step for step in plan.steps.values() if step.stage == "pretrain")
    with store.lease(step):
        text = status_text(status_of(plan, store))
    assert "running on 2 lane(s), about 2 min 10 s left" in text
    assert "pretrain x on lane0, 12 s 25%" in text
    assert f"{store.name(step)} held by pid" in text
    assert "leases:" not in status_text(status_of(plan, store))


def test_a_failed_step_is_told_with_its_reason(plan: Plan, store: Store) -> None:
    step = next(step for step in plan.steps.values() if step.stage == "pretrain")
    with store.lease(step):
        store.note_failure(step, "pretrain x: the loss is nan")
    assert "failed:\n  pretrain x: the loss is nan" in status_text(status_of(plan, store))


def test_the_display_leaves_its_last_state(plan: Plan, store: Store) -> None:
    path = store.study_folder("tiny") / "status.json"
    board = Board(plan, (), tasks_of(plan))
    with (
        pytest.raises(KeyboardInterrupt),
        Display("tiny", StatusFile(path, store.publish)) as display,
    ):
        display.update(board.summary())
        assert json.loads(path.read_text())["state"] == "running"
        raise KeyboardInterrupt
    assert json.loads(path.read_text())["state"] == "interrupted"
    with Display("tiny", StatusFile(path, store.publish)) as display:
        board.close("no lane")
        display.update(board.summary())
    told = json.loads(path.read_text())
    assert told["state"] == "failed" and told["failed"] == told["total"]


def test_run_leaves_status_and_logs_and_status_reads_them(
    pictures: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "tiny.yaml"
    wild = supervised(optimizer={"lr": 1e9})
    study.write_text(json.dumps(study_data(pictures, pretraining=[wild], methods=["el2n"])))
    store = str(tmp_path / "store")
    assert main(["run", str(study), "--store", store, "--local"]) == 1
    capsys.readouterr()
    assert main(["status", str(study), "--store", store]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^surrogate +1 of 1$", out, re.M)
    assert "the loss is" in out and "failed at 20" in out
    (log,) = Path(store).glob("surrogate/*/step.log")
    lines = log.read_text().splitlines()
    assert (
        "started on " in lines[0] and "epoch 1, step 9" in lines[1] and lines[-1].endswith("done")
    )
    failed = [p.read_text() for p in Path(store).glob("pretrain/*/step.log")]
    assert failed and all("failed: pretrain" in text for text in failed)
    assert main(["status", str(study), "--store", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["driver"]["state"] == "failed"


def test_status_and_report_need_no_pictures(
    pictures: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(pictures["source"], source)
    here = {**pictures, "source": str(source)}
    study = tmp_path / "tiny.yaml"
    changes = {"pretraining": ["none", supervised()], "methods": ["random_classes"]}
    study.write_text(json.dumps(study_data(here, **changes)))
    store = str(tmp_path / "store")
    assert main(["run", str(study), "--store", store, "--local"]) == 0
    source.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["status", str(study), "--store", store]) == 0
    assert re.search(r"^pretrain +3 of 3$", capsys.readouterr().out, re.M)
    assert main(["report", str(study), "--store", store]) == 0
    assert "3 results are done" in capsys.readouterr().out
    assert main(["run", str(study), "--store", store, "--local"]) == 2
    assert "is not a folder" in capsys.readouterr().err
