from pathlib import Path

import pytest

from dp4tl_ray.specs.study import Wandb
from dp4tl_ray.tracking import run_id, track
from tests.test_report import result

OFFLINE = Wandb(mode="offline")


@pytest.fixture(autouse=True)
def no_reporting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))


def offline_runs(folder: Path) -> dict[str, bytes]:
    files = folder.glob("wandb/offline-run-*/*.wandb")
    return {path.stem.removeprefix("run-"): path.read_bytes() for path in files}


def test_one_run_per_result_and_none_twice(tmp_path: Path) -> None:
    rows = [result(0.8, seed=0), result(0.8, seed=1)]
    assert track(rows, OFFLINE, tmp_path) == 2
    runs = offline_runs(tmp_path)
    assert runs.keys() == {run_id(r) for r in rows}
    for content in runs.values():
        assert b"pruning_ratio" in content and b"mean_class_accuracy" in content
        assert rows[0].study.encode() in content and rows[0].method.encode() in content
    assert track(rows, OFFLINE, tmp_path) == 0
    assert track([*rows, result(0.8, seed=2)], OFFLINE, tmp_path) == 1
    assert len(offline_runs(tmp_path)) == 3


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    assert track([result(0.8)], Wandb(), tmp_path) == 0
    assert not list(tmp_path.iterdir())


def test_a_failure_is_said_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb").write_text("in the way")
    assert track([result(0.8)], OFFLINE, tmp_path) == 0
    assert "results.jsonl is whole" in caplog.text
