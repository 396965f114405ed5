"""The cluster runner against the local one, and what must survive on Ray."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ray.cli import main
from dp4tl_ray.results import read_results
from dp4tl_ray.specs.records import Result
from tests.conftest import study_data, supervised
from tests.loopback_wandb.server import Server
from tests.processes import descendants, gone

pytestmark = pytest.mark.ray
Pictures = dict[str, str]


@pytest.fixture
def study(pictures: Pictures, tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(json.dumps(study_data(pictures, **changes), indent=1))
        return path

    return write


def start(
    path: Path, store: Path, *options: str, verb: tuple[str, ...] = ("run",)
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dp4tl_ray", *verb, str(path), "--store", str(store), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], seconds: float = 280) -> tuple[int, str, str]:
    """Wait for a run's end; returns exit code, output, errors."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        pytest.fail(f"not finished after {seconds} s: {process.communicate()}")
    return process.returncode, out, err


def run_here(path: Path, store: Path, *options: str) -> int:
    """Run a study in this process, without Ray."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return main(["run", str(path), "--store", str(store), "--local", *options])
    finally:
        signal.signal(signal.SIGTERM, handler)


def results(store: Path) -> list[Result]:
    return read_results(store / "studies" / "tiny" / "results.jsonl")


def what_was_computed(store: Path) -> dict[str, Any]:
    """Map each cell to all that must not depend on where it ran."""
    return {
        f"{r.method} {r.pruning_ratio} {r.pretraining} {r.seed}": (
            r.status, r.metrics, r.val_accuracy, r.subset_digest, r.predictions_digest
        )
        for r in results(store)
    }  # fmt: skip


def weights(store: Path) -> dict[str, bytes]:
    found = {p.parent.name: p.read_bytes() for p in store.glob("*/*/network.safetensors")}
    assert found
    return found


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that runs are sent to."""
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", 40 * "x")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("CONFIG", "CACHE"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    yield server
    server.stop()
    assert server.unknown == [] and server.broken == []


def test_one_worker_on_ray_equals_local_and_a_nan_cell_fails_alone(
    study: Callable[..., Path], tmp_path: Path, dashboard: Server
) -> None:
    wild = supervised(optimizer={"lr": 1e9})
    path = study(
        pretraining=[supervised(), wild, "none", "raw_pixels"],
        runtime={"lanes": 1},
        tracking={"wandb": {"mode": "online"}},
    )
    process = start(path, tmp_path / "ray")
    code, out, err = finish(process)
    assert code == 1, (out, err)
    assert "failed: pretrain" in err and "the loss is" in err
    assert all(line.startswith("failed: ") for line in err.splitlines()), err  # Ray keeps quiet
    offline = ("--set", "tracking.wandb.mode=offline")
    assert run_here(path, tmp_path / "local", *offline) == 1
    assert what_was_computed(tmp_path / "ray") == what_was_computed(tmp_path / "local")
    assert weights(tmp_path / "ray") == weights(tmp_path / "local")
    statuses = [r.status for r in results(tmp_path / "ray")]
    assert statuses.count("failed") == 3 and statuses.count("done") == 5
    written = list((tmp_path / "local" / "wandb").glob("offline-run-*"))
    assert len(written) == len(statuses) + 2  # the surrogate and the summary
    shown = dashboard.in_group("tiny")
    assert sorted(run.state for run in shown) == 3 * ["failed"] + 5 * ["finished"]
    trained = [r for r in shown if r.state == "finished" and r.config["objective"] == "supervised"]
    assert len(trained) == 3
    for run in trained:  # what the lanes reported
        assert run.curve("pretrain/epoch") == [1, 2] and len(run.curve("pretrain/loss")) == 2
    assert not list((tmp_path / "ray" / "ray").iterdir())  # nothing of Ray's own is left


SLOW = {
    "pretraining": [supervised(budget={"epochs": 120})],
    "methods": ["random_classes"],
    "pruning_ratios": [0.0],
}


def wait_for_checkpoint(store: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not list(store.glob("pretrain/*/checkpoint/*/facts.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def test_a_driver_that_ends_leaves_a_store_to_continue_from_and_no_process(
    study: Callable[..., Path], tmp_path: Path
) -> None:
    path = study(**SLOW, runtime={"lanes": 1})
    process = start(path, tmp_path / "halted")
    wait_for_checkpoint(tmp_path / "halted", process)
    below = descendants(process.pid)
    assert len(below) > 5
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 130
    assert "Traceback" not in err
    assert gone(below)
    assert not list((tmp_path / "halted").glob("pretrain/*/manifest.json"))

    assert run_here(path, tmp_path / "halted") == 0
    manifest = json.loads(next((tmp_path / "halted").glob("pretrain/*/manifest.json")).read_text())
    assert manifest["resumed"] is True
    assert run_here(path, tmp_path / "straight") == 0
    assert weights(tmp_path / "halted") == weights(tmp_path / "straight")


DIES_ONCE = """
import os, signal
from dataclasses import replace
from pathlib import Path
from dp4tl_ray.data.image_folder import list_image_folder
from dp4tl_ray.specs.data import ImageFolder

def dies_once(path, role):
    pictures = list_image_folder(ImageFolder(path=path), role)

    def read(i):
        if i == 100 and not (died := Path(__file__).with_name("died")).exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return pictures.read(i)

    return replace(pictures, read=read)
"""


@pytest.fixture
def dies_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose dataset kills the process that first reads picture 100; where it says so."""
    package = tmp_path / "package"
    (info := package / "dies_once-1.0.dist-info").mkdir(parents=True)
    (package / "dies_once.py").write_text(DIES_ONCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dies-once\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dp4tl_ray.datasets]\ndies_once = dies_once:dies_once\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package))
    return package / "died"


def test_tasks_on_ray_pack_what_one_process_packs_though_one_dies(
    study: Callable[..., Path], tmp_path: Path, dies_once: Path
) -> None:
    # large and raw: two shards each
    options: dict[str, Any] = {"image_size": 512, "channels": 3}
    data = json.loads(study().read_text())
    own = {"dataset": "custom", "loader": "dies_once", "path": data["source"]["path"]}
    path = study(source={**own, **options}, targets=[{**data["targets"][0], **options}])
    code, out, err = finish(start(path, tmp_path / "ray", verb=("data", "pack")))
    assert code == 0, err
    assert "144 pictures of 6 classes" in out and dies_once.exists()
    code, out, err = finish(start(path, tmp_path / "here", "--local", verb=("data", "pack")))
    assert code == 0, err
    packed = sorted((tmp_path / "here" / "data").rglob("images-*"))
    assert len(packed) == 4
    for shard in packed:
        again = tmp_path / "ray" / shard.relative_to(tmp_path / "here")
        assert again.read_bytes() == shard.read_bytes()
