"""What a person meets: answers, mistakes, exit codes."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ray.arguments import SCHEMA_NAMES
from dp4tl_ray.cli import main
from dp4tl_ray.results import read_results
from tests.conftest import study_data, supervised

Pictures = dict[str, str]
LINE = "# yaml-language-server: $schema=../schemas/study.schema.json\n"


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def dp4tl(*args: str | Path) -> Answer:
    """Run a command in this process, which spares the imports."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def keep_signal_handlers() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def study(pictures: Pictures, tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(LINE + json.dumps(study_data(pictures, **changes), indent=1))
        return path

    return write


def test_help_teaches_every_verb() -> None:
    command = [sys.executable, "-m", "dp4tl_ray", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "plan" in answer.stdout
    for verb in ("plan", "run", "report", "data", "export", "wandb-sweep", "schema", "list"):
        assert dp4tl(verb, "--help").returncode == 0


@pytest.mark.parametrize("what", ["methods", "datasets", "networks", "objectives", "transfers"])
def test_list_says_what_there_is(what: str) -> None:
    known = {
        "methods": "label_mapping",
        "datasets": "image_folder",
        "networks": "resnet18",
        "objectives": "budget (default {epochs: 200})",
        "transfers": "batch_norm (default frozen)",
    }
    assert known[what] in dp4tl("list", what).stdout


def test_schema_prints_the_committed_files() -> None:
    for name in SCHEMA_NAMES:
        assert dp4tl("schema", name).stdout == Path(f"schemas/{name}.schema.json").read_text()


def test_a_run_from_nothing_to_the_report(study: Callable[..., Path], tmp_path: Path) -> None:
    path, store = study(), tmp_path / "store"
    before = json.loads(dp4tl("plan", path, "--store", store, "--json").stdout)
    assert before["stages"]["pretrain"] == {"naive": 8, "unique": 4, "done": 0}
    assert len(before["steps"]) == sum(s["unique"] for s in before["stages"].values())

    first = dp4tl("run", path, "--store", store, "--local")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""  # not a terminal: no progress, no chatter
    assert "17 steps run, 0 reused, 0 failed" in first.stdout
    folder = store / "studies" / "tiny"
    for name in ("results.jsonl", "results.csv", "results.md", "accuracy_over_ratio.png"):
        assert (folder / name).stat().st_size > 0, name

    after = json.loads(dp4tl("plan", path, "--store", store, "--json").stdout)
    assert all(step["done"] for step in after["steps"])
    second = dp4tl("run", path, "--store", store, "--local")
    assert "0 steps run, 17 reused, 0 failed" in second.stdout
    assert dp4tl("report", path, "--store", store).returncode == 0
    table = dp4tl("plan", path, "--store", store).stdout
    assert "naive" in table and "to run" in table


def test_a_plan_needs_no_data_and_says_what_is_not_here(
    study: Callable[..., Path], tmp_path: Path
) -> None:
    nowhere = {"dataset": "image_folder", "path": "nowhere", "image_size": 16, "channels": 1}
    targets = [{**nowhere, "shots": shots} for shots in (2, 4)]
    root = f"data_root={tmp_path}"
    here = json.loads(dp4tl("plan", study(), "--store", tmp_path / "s", "--json").stdout)
    assert here["absent"] == []
    path = study(targets=targets)
    answer = dp4tl("plan", path, "--store", tmp_path / "s", "--set", root)
    assert answer.returncode == 0
    table, absent = answer.stdout.rsplit("\n\n", 1)
    assert "finetune" in table
    assert absent == f"{tmp_path / 'nowhere'} is not here: `dp4tl run` needs it\n"
    (tmp_path / "nowhere").mkdir()  # a disk that is not mounted, perhaps: not absent, but wrong
    answer = dp4tl("plan", path, "--store", tmp_path / "s", "--set", root)
    assert answer.returncode == 2 and "no pictures below" in answer.stderr


def test_until_prune_prints_the_kept_lists(study: Callable[..., Path], tmp_path: Path) -> None:
    answer = dp4tl("run", study(), "--store", tmp_path / "s", "--local", "--until", "prune")
    lists = [Path(line) for line in answer.stdout.splitlines() if line.endswith(".npy")]
    assert len(lists) == 2 and all(path.exists() for path in lists)


def test_a_person_exports_a_subset(study: Callable[..., Path], tmp_path: Path) -> None:
    path, store = study(), tmp_path / "s"
    asked = ("export", path, "--store", store, "--method", "label_mapping", "--format", "npy")
    assert "there is no store" in dp4tl(*asked).stderr
    store.mkdir()
    answer = dp4tl(*asked, "--set", "seeds=[0, 7]", "--seed", "7")
    assert answer.returncode == 2 and answer.stdout == ""
    command = f"dp4tl run {path} --store={store} --until=prune '--set=seeds=[0, 7]'"
    assert answer.stderr.splitlines() == [
        "prune label_mapping-r0.5-s7 is not done yet; this does it:",
        f"  {command}",
    ]
    assert dp4tl("run", path, f"--store={store}", "--until=prune", "--local").returncode == 0
    answer = dp4tl(*asked)  # one ratio, one target, the first seed
    assert answer.returncode == 0, answer.stderr
    said, where, use = answer.stdout.splitlines()
    assert said.startswith("label_mapping at 0.5 for image_folder(")
    assert said.endswith("seed 0: 72 of 144 examples, of 3 classes")
    assert (Path(where) / "kept.npy").is_file()
    assert Path(where).is_relative_to(store / "studies" / "tiny" / "exports")
    assert use.startswith("use: torch.utils.data.Subset")


def test_set_overrides_and_is_checked(study: Callable[..., Path], tmp_path: Path) -> None:
    path = study()
    answer = dp4tl("plan", path, "--store", tmp_path / "s", "--json", "--set", "seeds=[0, 1]")
    assert json.loads(answer.stdout)["stages"]["surrogate"]["unique"] == 2
    answer = dp4tl("plan", path, "--store", tmp_path / "s", "--set", "seeds=[zero]")
    assert answer.returncode == 2 and "--set seeds=[zero]" in answer.stderr


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"sedes": [0]}, "did you mean 'seeds'"),
    ({"pruning_ratios": [1.0]}, "less than 1"),
    ({"pruning_ratios": [-0.1]}, "-0.1"),
    ({"methods": ["label_maping"]}, "did you mean 'label_mapping'"),
    ({"targets": ["handwriten_digits"]}, "did you mean 'handwritten_digits'"),
    ({"methods": [{"method": "plugin", "scorer": "nobodys"}]}, "'nobodys' is not installed"),
    ({"methods": [{"method": "scores_file", "path": "/no.npz"}]}, "/no.npz: No such file"),
    ({"methods": [{"method": "given", "path": "/no.txt"}]}, "given /no.txt: No such file"),
    ({"methods": [{"method": "given", "path": "x", "select": "ccs"}]}, "'ccs' is not known"),
    (
        {"methods": [{"method": "random_classes", "within": {"method": "given", "path": "x"}}]},
        "given keeps a list as it is, and orders no units",
    ),
    ({"seeds": [0, 0]}, "repeats an earlier entry"),
    ({"seeds": []}, "at least one"),
    ({"seeds": "0"}, "list"),
    ({"source": {"dataset": "image_folder", "path": "/nowhere"}}, "/nowhere is not a folder"),
    ({"source": {"dataset": "image_folder", "path": "x", "shots": 3}}, "shots are drawn from"),
    ({"surrogate": supervised(budget={"examples_seen": 7})}, "less than one batch of 16"),
    ({"surrogate": supervised(batch_norm={"group_size": 3})}, "not a multiple of"),
    ({"runtime": {"device": "cuda"}}, "torch sees no GPU here"),
]


@pytest.mark.parametrize(("change", "fragment"), MISTAKES, ids=lambda v: str(v)[:40])
def test_a_mistake_is_answered_before_any_work(
    study: Callable[..., Path], tmp_path: Path, change: dict[str, Any], fragment: str
) -> None:
    if "source" in change:
        change = {"source": {**change["source"], "image_size": 16, "channels": 1}}
    answer = dp4tl("run", study(**change), "--store", tmp_path / "s", "--local")
    assert answer.returncode == 2
    assert fragment in answer.stderr
    assert "Traceback" not in answer.stderr
    left = [path for path in (tmp_path / "s").glob("*/*/*") if path.name != "fingerprints.json"]
    assert not left


def test_a_store_that_cannot_be_written(study: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = dp4tl("run", study(), "--store", tmp_path / "file", "--local")
    assert answer.returncode == 2
    assert "cannot be written" in answer.stderr and "Traceback" not in answer.stderr


def test_a_missing_study_file() -> None:
    answer = dp4tl("run", "experiments/quickstat.yaml")
    assert answer.returncode == 2
    assert "quickstat.yaml" in answer.stderr and "quickstart.yaml" in answer.stderr


def test_a_diverging_cell_fails_by_name_and_the_rest_finishes(
    study: Callable[..., Path], tmp_path: Path
) -> None:
    recipes = [supervised(optimizer={"lr": lr}) for lr in (0.1, 1e9)]
    path = study(pretraining=recipes, pruning_ratios=[0.0], methods=["random_classes"])
    answer = dp4tl("run", path, "--store", tmp_path / "s", "--local")
    assert answer.returncode == 1
    assert "failed: pretrain" in answer.stderr and "the loss is" in answer.stderr
    lines = tmp_path / "s" / "studies" / "tiny" / "results.jsonl"
    assert sorted(r.status for r in read_results(lines)) == ["done", "failed"]
    before = lines.read_text()
    assert dp4tl("report", path, "--store", tmp_path / "s").returncode == 0
    assert lines.read_text() == before  # a later report does not forget the failure


LONG = {
    "pretraining": [supervised(budget={"epochs": 80})],
    "methods": ["random_classes"],
    "pruning_ratios": [0.0],
}


def start(path: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dp4tl_ray", "run", str(path), "--store", str(store), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_checkpoint(store: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not list(store.glob("pretrain/*/checkpoint/*/facts.json")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)


def weights(store: Path) -> dict[str, bytes]:
    found = {p.parent.name: p.read_bytes() for p in store.glob("pretrain/*/network.safetensors")}
    assert found
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_a_run_a_rerun_continues_to_the_same_weights(
    study: Callable[..., Path], tmp_path: Path, how: signal.Signals
) -> None:
    path = study(**LONG)
    process = start(path, tmp_path / "halted", "--local")
    wait_for_checkpoint(tmp_path / "halted", process)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    if how is not signal.SIGKILL:
        assert process.returncode == 130
        assert "run it again to continue" in err and "Traceback" not in err
    assert not list((tmp_path / "halted").glob("pretrain/*/manifest.json"))
    assert dp4tl("run", path, "--store", tmp_path / "halted", "--local").returncode == 0
    manifest = json.loads(next((tmp_path / "halted").glob("pretrain/*/manifest.json")).read_text())
    assert manifest["resumed"] is True
    assert dp4tl("run", path, "--store", tmp_path / "straight", "--local").returncode == 0
    assert weights(tmp_path / "halted") == weights(tmp_path / "straight")


def test_two_drivers_on_one_store_compute_each_step_once(
    study: Callable[..., Path], tmp_path: Path
) -> None:
    path = study()
    drivers = [start(path, tmp_path / "s", "--local") for _ in range(2)]
    answers = [driver.communicate(timeout=200) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], answers
    ran = [int(out.split(" steps run")[0].rsplit(" ", 1)[1]) for out, _ in answers]
    assert sum(ran) == 17
    lines = (tmp_path / "s" / "studies" / "tiny" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 5


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root to mount")
def test_a_full_disk_fails_the_step_and_a_rerun_continues(
    study: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "small"
    store.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(store)])
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        path = study()
        answer = dp4tl("run", path, "--store", store, "--local")
        assert answer.returncode in (1, 2)
        assert "No space left on device" in answer.stderr and "Traceback" not in answer.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(store)], check=True)
        assert dp4tl("run", path, "--store", store, "--local").returncode == 0
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


def test_planning_leaves_no_store_behind(study: Callable[..., Path], tmp_path: Path) -> None:
    assert dp4tl("plan", study(), "--store", tmp_path / "store").returncode == 0
    assert not (tmp_path / "store").exists()


def test_a_point_of_a_run_that_stops_before_the_results_is_refused(
    study: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    answer = dp4tl("run", study(), "--store", store, "--until", "prune", "--only", "seed=0")
    assert answer.returncode == 2 and "--until prune does not come to" in answer.stderr
