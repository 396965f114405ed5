"""What only several nodes show, on one machine that plays them: their GPUs are promises."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import study_data, supervised
from tests.processes import descendants, kill, title
from tests.test_ray import (
    finish,
    run_here,
    start,
    wait_for_checkpoint,
    weights,
    what_was_computed,
)

pytestmark = pytest.mark.ray
Pictures = dict[str, str]
FAKE_GPU = {"device": "cpu", "worker_resources": {"GPU": 1.0}}
WHOLE_NODE = {"device": "cpu", "worker_resources": {"GPU": 2.0}}
LONG = supervised(budget={"epochs": 100})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that has no CPU and no GPU, and one node with two of each."""
    before = dict(os.environ)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    # no port: another Ray on this machine may have taken the usual one
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": None}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, num_gpus=2)
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster
    cluster.shutdown()
    del cluster
    with warnings.catch_warnings():  # Ray leaves a socket to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def study(pictures: Pictures, tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        runtime = {**FAKE_GPU, **changes.pop("runtime", {})}
        data = study_data(pictures, runtime=runtime, **changes)
        path.write_text(json.dumps(data, indent=1))
        return path

    return write


def drive(path: Path, store: Path, *options: str) -> dict[str, Any]:
    """Run tests/drive.py; returns what it printed."""
    command = [sys.executable, "-m", "tests.drive", str(path), str(store), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    code, out, err = finish(process)
    assert code == 0, (out, err)
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


def status(store: Path) -> dict[str, Any]:
    path = store / "studies" / "tiny" / "status.json"
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return told


def wait_until(
    what: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 150
) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, "it did not happen"
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    return value


def test_tunes_results_are_the_results_and_a_stopped_cell_halts_its_pretraining(
    cluster: Any, study: Callable[..., Path], tmp_path: Path
) -> None:
    path = study(
        methods=["random_classes"],
        pretraining=[LONG],
        pruning_ratios=[0.0, 0.5],
        runtime={"lanes": 1, "sharding": "fsdp2"},
    )
    told = drive(path, tmp_path / "store", "random_classes")
    assert told["equal"] and told["grid"] == told["results"] == 1 and not told["errors"]
    assert [name for name in told["done"] if name.startswith("prune")]  # its inputs were computed
    assert len([name for name in told["done"] if name.startswith("pretrain")]) == 1


def test_lanes_come_and_go_with_the_nodes_and_none_is_on_the_head(
    cluster: Any, study: Callable[..., Path], tmp_path: Path
) -> None:
    path = study(
        methods=["random_classes"],
        pretraining=[LONG, "none"],
        pruning_ratios=[0.0, 0.4],
        seeds=[0, 1],
        runtime={**WHOLE_NODE, "max_failures": 0},
    )
    store = tmp_path / "store"
    process = start(path, store)
    try:
        wait_until(lambda: status(store).get("lanes") == 1 and status(store)["running"], process)
        joined = cluster.add_node(num_cpus=2, num_gpus=2)
        both = lambda: len(status(store)["running"]) == 2  # noqa: E731
        wait_until(both, process)
        workers = [p for p in descendants(cluster.head_node.all_processes["raylet"][0].process.pid)
                   if "TrainWorker" in title(p)]  # fmt: skip
        assert not workers
        cluster.remove_node(joined, allow_graceful=False)  # shot: with max_failures 0, no excuse
        code, out, err = finish(process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate()
    assert code == 0, (out, err)
    assert run_here(path, tmp_path / "local") == 0
    assert what_was_computed(store) == what_was_computed(tmp_path / "local")
    assert weights(store) == weights(tmp_path / "local")


@pytest.mark.parametrize(("sharding", "workers"), [("ddp", 2), ("fsdp2", 2)])
def test_every_way_to_share_a_pretraining_gives_what_one_process_gives(
    cluster: Any, study: Callable[..., Path], tmp_path: Path, sharding: str, workers: int
) -> None:
    runtime = {"sharding": sharding, "pretrain_workers": workers, "lanes": 1}
    recipes = [supervised(budget={"epochs": 30}), "none"]
    path = study(methods=["label_mapping"], pretraining=recipes, runtime=runtime)
    process = start(path, tmp_path / "ray")
    if sharding == "ddp":  # one of its workers dies in the middle
        wait_for_checkpoint(tmp_path / "ray", process)
        victims = [p for p in descendants(os.getpid()) if "TrainWorker" in title(p)]
        assert len(victims) == workers
        kill(victims[0], signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, (out, err)
    assert run_here(path, tmp_path / "local") == 0
    here, there = networks(tmp_path / "local"), networks(tmp_path / "ray")
    assert here.keys() == there.keys()
    for name, tensors in here.items():
        for key, expected in tensors.items():
            torch.testing.assert_close(there[name][key], expected, rtol=1e-3, atol=1e-4)
            if sharding == "ddp" and key.endswith("weight"):
                assert torch.equal(there[name][key], expected), (name, key)
    manifests = [json.loads(p.read_text()) for p in (tmp_path / "ray").glob("*/*/manifest.json")]
    wide = [m for m in manifests if m["stage"] in ("surrogate", "pretrain")]
    assert any(m["resumed"] for m in manifests) == (sharding == "ddp")
    assert {m["num_workers"] for m in wide if m["metrics"].get("optimizer_steps")} == {workers}


def networks(store: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = {p.parent.name: load_file(p) for p in store.glob("*/*/network.safetensors")}
    assert found
    return found
