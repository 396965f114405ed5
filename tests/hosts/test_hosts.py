"""cluster.yaml's own-machines variant on two hosts: up, submit, lose a host, down.

Run by `make hosts`, not by `make test`. The tests share one cluster and run in their order.
"""

import functools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dp4tl_ray.results import read_results
from tests.hosts.rig import Host, Rig, on_prem_variant, reason_to_skip
from tests.processes import title

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip()),
]
STUDY = Path(__file__).with_name("study.yaml")
LONG = ("--set", "pretraining.0.budget.epochs=100")
"""A pretraining that is long enough to lose a host in."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two hosts, with Ray started by `ray up`."""
    with Rig(tmp_path_factory.mktemp("rig"), auth_mode="token") as rig:
        code, out = rig.run("up", "-y", "--no-config-cache", write_cluster(rig))
        assert code == 0, out
        wait_for(lambda: cpus(rig) == 2, 120, lambda: rig.on(rig.head, "ray status"))
        yield rig


def write_cluster(rig: Rig) -> Path:
    """Fill in the documented variant; the hosts share this machine's Python, so none is made."""
    token = rig.home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    variant = on_prem_variant()
    variant["provider"] |= {"head_ip": rig.head.address, "worker_ips": [rig.worker.address]}
    variant["auth"] = {"ssh_user": "root", "ssh_private_key": str(rig.key)}
    variant["file_mounts"]["~/.ray/auth_token"] = str(token)
    variant["setup_commands"] = []
    with cluster(rig).open("w") as file:
        YAML(typ="safe").dump(variant, file)
    return cluster(rig)


def cluster(rig: Rig) -> Path:
    return rig.folder / "cluster.yaml"


def submit(rig: Rig, store: Path, *options: str, tmux: bool = False) -> "subprocess.Popen[str]":
    how = ("--tmux",) if tmux else ()
    script = (cluster(rig), "dp4tl_ray/submit.py", STUDY)
    return rig.ray("submit", "--no-config-cache", *how, *script, "--store", store, *options)


def finish(process: "subprocess.Popen[str]", seconds: float = 280) -> tuple[int, str]:
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def cpus(rig: Rig) -> float:
    """Ask the cluster how many CPUs it has."""
    ask = "import ray; ray.init(log_to_driver=False); print('cpus', ray.cluster_resources()['CPU'])"
    out = rig.on(rig.head, f'python -c "{ask}" 2>/dev/null || echo cpus 0')
    return float(re.findall(r"cpus (\S+)", out)[-1])


def wait_for(
    what: Callable[[], bool], seconds: float = 60, explain: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.3)


def runs_on(host: Host, name: str) -> bool:
    return any(name in title(pid) for pid in host.processes())


def checkpointed(store: Path) -> bool:
    """Whether a pretraining has begun and saved an epoch."""
    return any(
        not (path.parent / "manifest.json").exists()
        for path in store.glob("pretrain/supervised-*/checkpoint*")
    )


def in_the_middle(store: Path, process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait until a pretraining is under way."""

    def under_way() -> bool:
        if process and process.poll() is not None:
            pytest.fail(f"ended early: {process.communicate()[0]}")
        return checkpointed(store)

    wait_for(under_way, 200)


def wait_for_results(rig: Rig, store: Path) -> None:
    """Wait for the end of a study whose driver runs in tmux."""
    report = store / "studies" / "hosts" / "results.jsonl"
    wait_for(report.exists, 300, lambda: rig.on(rig.head, "tmux capture-pane -p; ray status"))


def results(store: Path) -> dict[str, Any]:
    """Map each cell to all that must not depend on where it ran."""
    found = read_results(store / "studies" / "hosts" / "results.jsonl")
    return {
        f"{r.method} {r.pretraining}": (
            r.status, r.metrics, r.val_accuracy, r.subset_digest, r.predictions_digest
        )
        for r in found
    }  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Return what the local runner computes, with some options."""

    @functools.cache
    def run(*options: str) -> dict[str, Any]:
        store = tmp_path_factory.mktemp("local")
        command = [sys.executable, "-m", "dp4tl_ray", "run", str(STUDY), "--store", str(store)]
        subprocess.run([*command, "--local", *options], check=True, capture_output=True)
        return results(store)

    return run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store that both hosts see."""
    return tmp_path_factory.mktemp("shared")


def test_a_study_on_both_hosts_equals_the_local_one(
    rig: Rig, shared: Path, reference: Callable[..., dict[str, Any]]
) -> None:
    process = submit(rig, shared)
    in_the_middle(shared, process)
    assert runs_on(rig.head, "RayTrainWorker") and runs_on(rig.worker, "RayTrainWorker")
    code, out = finish(process)
    assert code == 0, out
    assert results(shared) == reference()
    manifests = [json.loads(p.read_text()) for p in shared.glob("pretrain/superv*/manifest.json")]
    assert [manifest["num_workers"] for manifest in manifests] == [2, 2]


def test_a_job_finds_everything_done(rig: Rig, shared: Path) -> None:
    entry = f"python dp4tl_ray/dp4tl_ray/submit.py {STUDY} --store {shared}"
    out = rig.on(rig.head, f"cd; ray job submit --address http://127.0.0.1:8265 -- {entry} 2>&1")
    assert "0 steps run, 14 reused" in out and "succeeded" in out


def test_a_refusal_reaches_the_client_in_words_and_as_an_exit_code(
    rig: Rig, tmp_path: Path
) -> None:
    code, out = finish(submit(rig, tmp_path, "--set", "runtime.nonsense=1"))
    assert code == 1 and "nonsense" in out and "Traceback" not in out


def test_a_store_that_is_not_shared_is_noticed(rig: Rig, shared: Path) -> None:
    ask = "from dp4tl_ray.runners.preflight import check_nodes; import ray; ray.init()"

    def check(store: str) -> str:
        tell = f"print('said', check_nodes('{store}', False))"
        out = rig.on(rig.head, f'python -c "{ask}; {tell}" 2>/dev/null')
        return str(re.findall(r"said (.*)", out)[-1])

    assert check(str(shared)) == "[]"
    rig.on(rig.head, "mkdir -p ~/store")
    said = check("~/store")
    assert said.count("sees another folder") == 1 and rig.worker.address in said


def test_a_dropped_connection_ends_the_driver_and_a_rerun_continues(
    rig: Rig, tmp_path: Path, reference: Callable[..., dict[str, Any]]
) -> None:
    process = submit(rig, tmp_path, *LONG)
    in_the_middle(tmp_path, process)
    os.killpg(process.pid, signal.SIGKILL)  # the laptop is closed
    process.communicate()
    wait_for(lambda: not runs_on(rig.head, "submit.py"))
    wait_for(lambda: not runs_on(rig.worker, "RayTrainWorker"))
    assert checkpointed(tmp_path)

    code, out = finish(submit(rig, tmp_path, *LONG, tmux=True))
    assert code == 0 and "ray attach" in out
    wait_for_results(rig, tmp_path)
    assert results(tmp_path) == reference(*LONG)
    manifests = [json.loads(p.read_text()) for p in tmp_path.glob("pretrain/*/manifest.json")]
    assert any(manifest["resumed"] for manifest in manifests)


def test_a_study_outlives_a_host_that_is_cut_off(
    rig: Rig, tmp_path: Path, reference: Callable[..., dict[str, Any]]
) -> None:
    submit(rig, tmp_path, *LONG, "--set", "runtime.min_workers=1", tmux=True).communicate()
    in_the_middle(tmp_path)
    assert runs_on(rig.worker, "RayTrainWorker")
    rig.worker.cut()
    wait_for_results(rig, tmp_path)
    assert results(tmp_path) == reference(*LONG)
    manifests = [json.loads(p.read_text()) for p in tmp_path.glob("pretrain/*/manifest.json")]
    assert any(manifest["num_workers"] == 1 for manifest in manifests)


def test_ray_down_ends_it_all(rig: Rig) -> None:
    rig.worker.join()
    code, out = rig.run("down", "-y", cluster(rig))
    assert code == 0, out
    wait_for(lambda: not runs_on(rig.head, "raylet"))
    wait_for(lambda: not runs_on(rig.worker, "raylet"), 120)
