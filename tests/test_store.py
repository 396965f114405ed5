import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dp4tl_ray import lease as lease_module
from dp4tl_ray.lease import Lease, LeaseHeldError
from dp4tl_ray.plan import PlannedStep
from dp4tl_ray.specs.data import GlyphsAndTextures
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.store import Store, StoreError, Workbench

STEP = PlannedStep(DataStep(dataset=GlyphsAndTextures(), role="source"), {}, "made up / step")
FACTS = {
    "seconds": 1.0,
    "device": "cpu",
    "num_workers": 1,
    "metrics": {"n": 3},
    "versions": {},
    "resumed": False,
}


def finish(store: Store) -> Path:
    bench = Workbench(store.folder(STEP))
    with store.lease(STEP) as lease:
        bench.array("numbers", np.arange(1000))
        bench.json("names", ["a", "b"])
        store.finish(STEP, bench, lease, FACTS)
    return bench.folder


def test_a_finished_step_reads_back(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    assert store.find(STEP) is None
    folder = finish(store)
    artifact = Store.open(tmp_path.as_uri()).find(STEP)
    assert artifact is not None
    assert artifact.array("numbers").tolist() == list(range(1000))
    assert artifact.json("names") == ["a", "b"]
    assert artifact.manifest.metrics == {"n": 3}
    assert folder.parent.name == "data" and folder.name.endswith(STEP.digest[:12])
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "names.json",
        "numbers.npy",
    ]


def test_without_its_manifest_a_step_is_not_done(tmp_path: Path) -> None:
    (finish(Store(tmp_path)) / "manifest.json").unlink()
    assert Store(tmp_path).find(STEP) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_said_aloud_and_not_done(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = finish(Store(tmp_path)) / "numbers.npy"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-10])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING, "dp4tl"):
        assert Store(tmp_path).find(STEP) is None
    assert "numbers.npy" in caplog.text and "computed again" in caplog.text


def test_a_damaged_manifest_is_said_aloud_and_not_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = finish(Store(tmp_path)) / "manifest.json"
    path.write_text(path.read_text()[:-40])
    assert Store(tmp_path).find(STEP) is None
    assert "manifest.json is damaged" in caplog.text


def test_a_manifest_is_valid_under_the_committed_schema(tmp_path: Path) -> None:
    from jsonschema import Draft7Validator

    schema = json.loads(Path("schemas/manifest.schema.json").read_text())
    manifest = json.loads((finish(Store(tmp_path)) / "manifest.json").read_text())
    Draft7Validator(schema).validate(manifest)


def test_another_scheme_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match="s3:// is not supported"):
        Store.open("s3://bucket/x")


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store.open(str(tmp_path / "file" / "store"))


def test_of_two_one_holds_the_lease(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    with one.lease(STEP), pytest.raises(LeaseHeldError), two.lease(STEP):
        pass
    with two.lease(STEP):
        pass


def test_a_dead_owners_lease_expires_at_once_on_its_machine(tmp_path: Path) -> None:
    code = (
        "import time, sys; from pathlib import Path; from dp4tl_ray.lease import Lease\n"
        "Lease(Path(sys.argv[1])).take(); print('held', flush=True); time.sleep(60)"
    )
    path = tmp_path / "lease.json"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeldError):
        Lease(path).take()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    lease = Lease(path)
    lease.take()
    lease.check()
    lease.give_back()
    assert not list(tmp_path.iterdir())


def test_another_machines_lease_expires_with_its_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"token": "x", "host": "elsewhere", "pid": 1}))
    with pytest.raises(LeaseHeldError):
        Lease(path).take()
    old = time.time() - lease_module.LEASE_SECONDS - 1
    os.utime(path, (old, old))
    lease = Lease(path)
    lease.take()
    lease.give_back()


def test_who_lost_the_lease_does_not_write(tmp_path: Path) -> None:
    store = Store(tmp_path)
    bench = Workbench(store.folder(STEP))
    with store.lease(STEP) as lease:
        bench.array("numbers", np.arange(3))
        lease.path.write_text(json.dumps({"token": "thief", "host": "elsewhere", "pid": 1}))
        with pytest.raises(LeaseHeldError, match="taken over"):
            store.finish(STEP, bench, lease, FACTS)
    assert store.find(STEP) is None
    assert json.loads(lease.path.read_text())["token"] == "thief"  # not ours to remove


def test_of_many_who_race_for_a_dead_lease_one_wins(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from dp4tl_ray.lease import Lease, LeaseHeldError\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "try: Lease(Path(sys.argv[1])).take(); print('won', flush=True); time.sleep(2)\n"
        "except LeaseHeldError: print('held', flush=True)"
    )
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"token": "x", "host": "elsewhere", "pid": 1}))
    os.utime(path, (0, 0))
    start = str(time.time() + 4)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), start], stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    answers = [racer.communicate()[0].strip() for racer in racers]
    assert sorted(answers) == ["held"] * 7 + ["won"]


def test_a_torn_lease_belongs_to_nobody_and_expires(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    path.write_text("")
    with pytest.raises(LeaseHeldError):
        Lease(path).take()
    os.utime(path, (0, 0))
    lease = Lease(path)
    lease.take()
    lease.give_back()


def test_a_failure_is_remembered_until_the_step_is_tried_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.folder(STEP).mkdir(parents=True)
    assert store.failure(STEP) == ""
    store.note_failure(STEP, "data x: broke")
    assert Store(tmp_path).failure(STEP) == "data x: broke"
    store.clear(STEP)
    assert store.failure(STEP) == ""
