"""Stores in object storage: what they add to the contract in test_store."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ray import lease as lease_module
from dp4tl_ray.data import pack as packing
from dp4tl_ray.lease import Lease, LeaseHeldError
from dp4tl_ray.objects.bucket import Bucket, ConflictError, Version
from dp4tl_ray.objects.lease import ObjectLease, Sightings
from dp4tl_ray.objects.store import ObjectStore
from dp4tl_ray.plan import Plan, PlannedStep
from dp4tl_ray.runners.step import run_step
from dp4tl_ray.specs.base import canonical_json
from dp4tl_ray.stages.bench import StageError, images_of
from dp4tl_ray.stages.run import compute
from dp4tl_ray.store import Artifact, Store, StoreError, open_store
from dp4tl_ray.sweep import plan_study, run_study
from dp4tl_ray.tracking.ledger import Ledger
from dp4tl_ray.training.worker import Progress, Worker
from dp4tl_ray.warm import warm_study
from tests.conftest import tiny_study
from tests.test_store import FACTS, STEP, finish

ELSEWHERE = canonical_json({"token": "x", "host": "elsewhere", "pid": 1}).encode()


class NoLease(Lease):
    """A lease that nobody takes away."""

    def _take(self) -> None: ...

    def _beat(self) -> None: ...

    def check(self) -> None: ...

    def give_back(self) -> None: ...


def on_another_machine(
    uri: str, tmp_path_factory: pytest.TempPathFactory, write: bool = True
) -> ObjectStore:
    """Open a store with an empty cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DP4TL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ObjectStore.open(uri, write)


def found(store: Store, step: PlannedStep = STEP) -> Artifact:
    artifact = store.find(step)
    assert artifact is not None
    return artifact


def numbers_key(store: ObjectStore) -> str:
    """Return the key of the array that `finish` writes."""
    (key,) = (one.key for one in store.bucket.list("data") if one.key.endswith(".npy"))
    return key


# -- requests --------------------------------------------------------------------------------------


def test_conditional_writes_are_kept_to(bucket_uri: str) -> None:
    bucket = Bucket(bucket_uri)
    first = bucket.create("a", b"1")
    with pytest.raises(ConflictError):
        bucket.create("a", b"2")
    second = bucket.update("a", b"2", first)
    with pytest.raises(ConflictError):
        bucket.update("a", b"3", first)
    assert bucket.read("a") == (b"2", second)
    bucket.delete(["a", "never there"])
    with pytest.raises(ConflictError):
        bucket.update("a", b"4", second)
    with pytest.raises(FileNotFoundError):
        bucket.read("a")


def test_storage_that_ignores_conditions_serves_one_driver_and_says_so(
    bucket_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def overwrite(bucket: Bucket, key: str, content: bytes) -> Version:
        bucket.write(key, content)
        return Version(None, None)

    monkeypatch.setattr(Bucket, "create", overwrite)
    with caplog.at_level(logging.WARNING, "dp4tl"):
        open_store(bucket_uri)
    assert "use this store from one driver only" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "error sending request"),
        ({"AWS_ACCESS_KEY_ID": None}, "Missing AccessKeyId"),
    ],
)
def test_what_cannot_be_reached_is_answered_in_words(
    bucket_uri: str,
    change: dict[str, str | None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(StoreError) as caught:
        open_store(bucket_uri)
    assert bucket_uri in str(caught.value) and said in str(caught.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)


def test_a_bucket_that_is_not_there_is_named(bucket_uri: str) -> None:
    for write in (True, False):
        with pytest.raises(StoreError, match=r"s3://nobody/x: .*NoSuchBucket"):
            open_store("s3://nobody/x", write)


def test_what_to_install_is_said(bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"pip install 'dp4tl_ray\[objects\]'"):
        open_store(bucket_uri)


# -- leases ----------------------------------------------------------------------------------------


def test_a_lease_expires_when_it_has_not_changed_for_long_enough_by_our_own_clock(
    bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, sightings, now = Bucket(bucket_uri), Sightings(), [1000.0]
    monkeypatch.setattr("dp4tl_ray.objects.lease.time.monotonic", lambda: now[0])

    def attempt() -> ObjectLease:
        lease = ObjectLease(bucket, "lease", sightings)
        lease.take()
        return lease

    bucket.write("lease", ELSEWHERE)
    with pytest.raises(LeaseHeldError):
        attempt()
    now[0] += lease_module.LEASE_SECONDS - 1
    bucket.write("lease", ELSEWHERE + b" ")  # a heartbeat
    with pytest.raises(LeaseHeldError):
        attempt()
    now[0] += lease_module.LEASE_SECONDS - 1
    with pytest.raises(LeaseHeldError):
        attempt()
    now[0] += 1
    ours = attempt()
    with pytest.raises(LeaseHeldError):  # it is ours now, and fresh
        attempt()
    ours.give_back()  # its heartbeat would write for as long as this process lives


def test_of_many_who_take_a_lease_one_wins(bucket_uri: str) -> None:
    bucket = Bucket(bucket_uri)
    bucket.write("dead", ELSEWHERE)
    won: list[ObjectLease] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        sightings = Sightings()
        version = bucket.read("dead")[1]
        sightings._first["dead"] = version, time.monotonic() - lease_module.LEASE_SECONDS - 1
        for key in ("dead", "fresh"):
            barrier.wait()
            lease = ObjectLease(bucket, key, sightings)
            with contextlib.suppress(LeaseHeldError):
                lease.take()
                won.append(lease)

    racers = [threading.Thread(target=race) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(lease.key for lease in won) == ["dead", "fresh"]
    for lease in won:
        lease.give_back()


def test_a_lease_whose_answer_was_lost_is_ours_all_the_same(
    bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(bucket_uri)
    create, update = bucket.create, bucket.update

    def lose_create(key: str, content: bytes) -> Version:
        create(key, content)
        return create(key, content)  # what the library does when no answer comes

    def lose_update(key: str, content: bytes, version: Version) -> Version:
        update(key, content, version)
        return update(key, content, version)

    monkeypatch.setattr(bucket, "create", lose_create)
    monkeypatch.setattr(bucket, "update", lose_update)
    lease = ObjectLease(bucket, "lease", Sightings())
    lease.take()
    lease.check()
    lease.check()
    lease.give_back()
    assert bucket.read("lease")[0] == b""


def test_a_frozen_holder_finds_out_and_does_not_write(
    bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, sys\n"
        "from dp4tl_ray import lease\n"
        "from tests.test_store import FACTS, STEP, LeaseHeldError, np, open_store\n"
        "lease.HEARTBEAT_SECONDS = 0.05\n"
        "store = open_store(sys.argv[1])\n"
        "with store.lease(STEP) as held:\n"
        "    bench = store.workbench(STEP, held)\n"
        "    bench.array('numbers', np.arange(3))\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    try: store.finish(STEP, bench, held, {**FACTS, 'device': 'frozen'})\n"
        "    except LeaseHeldError as error: print(error, flush=True)\n"
    )
    command = [sys.executable, "-c", code, bucket_uri]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "held\n"
        os.kill(child.pid, signal.SIGSTOP)
        monkeypatch.setattr(lease_module, "LEASE_SECONDS", 0.5)
        store = open_store(bucket_uri)
        with pytest.raises(LeaseHeldError):
            finish(store)
        time.sleep(0.6)
        finish(store)
        child.stdin.write("go on\n")
        child.stdin.flush()
        os.kill(child.pid, signal.SIGCONT)
        assert "was taken over" in child.stdout.read()
    assert found(open_store(bucket_uri)).manifest.device == FACTS["device"]
    assert open_store(bucket_uri).leases() == []


# -- steps -----------------------------------------------------------------------------------------


class Log:
    """A desk that notes what became of the last step."""

    def __init__(self) -> None:
        self.last, self.ran = "", Counter[str]()

    def finish(self, key: str, ran: bool = True) -> None:
        self.last = "finished"
        self.ran[key] += ran

    def fail(self, key: str, error: str) -> None:
        raise AssertionError(error)

    def blame(self, key: str, error: str) -> None:
        raise AssertionError(error)

    def postpone(self, key: str) -> None:
        self.last = "held"

    def put_back(self, key: str) -> None:
        raise AssertionError("halted")

    def progress(self, key: str, progress: Progress) -> bool:
        return True


def drive(plan: Plan, store: Store, log: Log) -> None:
    """Run all steps in order, waiting where another driver is at one."""
    for key in plan.steps:
        log.last = ""
        while log.last != "finished":
            if log.last == "held":
                time.sleep(0.02)
            run_step(key, plan.steps, store, Worker(), log)


def test_two_drivers_compute_each_step_once(
    pictures: dict[str, str], bucket_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = {"methods": ["random_classes"], "pruning_ratios": [0.5]}
    plan = plan_study(tiny_study(pictures, **study))
    stores = [on_another_machine(bucket_uri, tmp_path_factory) for _ in range(2)]
    logs = [Log(), Log()]
    drivers = [
        threading.Thread(target=drive, args=(plan, store, log))
        for store, log in zip(stores, logs, strict=True)
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert logs[0].ran + logs[1].ran == Counter(plan.steps.keys())
    reader = on_another_machine(bucket_uri, tmp_path_factory, write=False)
    assert reader.finished(plan.steps.values()) == plan.steps.keys()
    assert reader.leases() == []
    assert not [one.key for one in reader.bucket.list("pretrain") if "checkpoint" in one.key]


def test_finished_steps_are_found_with_one_listing(
    bucket_uri: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(open_store(bucket_uri))
    read = list[str]()
    real = Bucket.read

    def note(bucket: Bucket, key: str) -> tuple[bytes, Version]:
        read.append(key)
        return real(bucket, key)

    monkeypatch.setattr(Bucket, "read", note)
    steps = [STEP, *(replace(STEP, inputs={"source": f"{n:064}"}) for n in range(20))]
    assert open_store(bucket_uri).finished(steps) == {STEP.digest}
    assert read == []  # the listing, and this machine's copy
    store = on_another_machine(bucket_uri, tmp_path_factory)
    assert store.finished(steps) == {STEP.digest}
    assert len(read) == 1
    assert found(store).manifest.metrics == {"n": 3}
    assert len(read) == 1


def test_of_two_who_finish_a_step_one_writes_and_both_read_it(
    bucket_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stores = [on_another_machine(bucket_uri, tmp_path_factory) for _ in range(2)]
    benches = [store.workbench(STEP) for store in stores]
    for size, (store, bench) in enumerate(zip(stores, benches, strict=True), 1):
        bench.array("numbers", np.arange(size))
        artifact = store.finish(STEP, bench, NoLease(), {**FACTS, "device": f"cpu {size}"})
        assert artifact.manifest.device == "cpu 1"
        assert artifact.array("numbers").tolist() == [0]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_object_is_said_aloud_and_its_step_not_done(
    bucket_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("dp4tl_ray.objects.bucket.CHUNK", 1000)
    store = open_store(bucket_uri)
    assert isinstance(store, ObjectStore)
    finish(store)
    key = numbers_key(store)
    content = store.bucket.read(key)[0]
    if damage == "flip":
        store.bucket.write(key, content[:-1] + b"\xff")
    elif damage == "truncate":
        store.bucket.write(key, content[:4000])
    else:
        store.bucket.delete([key])
    reader = on_another_machine(bucket_uri, tmp_path_factory)
    artifact = found(reader)
    assert artifact.json("names") == ["a", "b"]
    with (
        caplog.at_level(logging.WARNING, "dp4tl"),
        pytest.raises(StoreError, match=r"numbers\.npy"),
    ):
        artifact.array("numbers")
    assert "numbers.npy" in caplog.text and "computed again" in caplog.text
    assert reader.find(STEP) is None and reader.finished([STEP]) == set()
    finish(reader)
    assert len(found(reader).array("numbers")) == 1000
    again = on_another_machine(bucket_uri, tmp_path_factory)
    assert len(found(again).array("numbers")) == 1000


def test_an_artifact_that_was_computed_again_is_read_in_its_new_form(
    bucket_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = open_store(bucket_uri)
    assert isinstance(store, ObjectStore)
    finish(store)
    reader = on_another_machine(bucket_uri, tmp_path_factory)
    old = found(reader)
    store.bucket.delete([f"{store.name(STEP)}/manifest.json", numbers_key(store)])
    other = on_another_machine(bucket_uri, tmp_path_factory)
    bench = other.workbench(STEP)
    bench.array("numbers", np.arange(7))
    other.finish(STEP, bench, NoLease(), FACTS)
    assert len(old.array("numbers")) == 7


def test_a_damaged_manifest_is_said_aloud_and_written_again(
    bucket_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(bucket_uri)
    assert isinstance(store, ObjectStore)
    store.bucket.write(f"{store.name(STEP)}/manifest.json", b"{")
    assert store.finished([STEP]) == set()
    assert "manifest.json is damaged" in caplog.text
    finish(store)
    assert found(open_store(bucket_uri)).manifest.metrics == {"n": 3}


def test_the_copies_on_a_machine_can_be_removed_at_any_time(bucket_uri: str) -> None:
    import shutil

    store = open_store(bucket_uri)
    finish(store)
    artifact = found(store)
    shutil.rmtree(store.root)
    assert artifact.json("names") == ["a", "b"]
    assert open_store(bucket_uri).finished([STEP]) == {STEP.digest}


# -- checkpoints and reports -----------------------------------------------------------------------


def save(store: Store, step: int, whole: bool = True) -> None:
    """Write and publish a checkpoint of two files."""
    bench = store.workbench(STEP)
    folder = bench.checkpoint / f"step-{step}"
    folder.mkdir(parents=True)
    for name in ("state", "facts.json") if whole else ("state",):
        (folder / name).write_text(str(step))
        bench.publish(folder / name)


def test_the_newest_whole_checkpoint_is_fetched_by_other_machines(
    bucket_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, two = (on_another_machine(bucket_uri, tmp_path_factory) for _ in range(2))
    bench = two.workbench(STEP)
    bench.fetch_checkpoint()
    assert not bench.checkpoint.exists()
    for step in (9, 10):
        save(one, step)
    save(one, 11, whole=False)
    left = {listed.key.split("/")[-2] for listed in one.bucket.list(one.name(STEP))}
    assert left == {"step-10", "step-11"}
    (bench.checkpoint / "step-12").mkdir(parents=True)  # which the others do not have
    bench.fetch_checkpoint()
    files = {path.name: path.read_text() for path in bench.checkpoint.glob("*/*")}
    assert files == {"state": "10", "facts.json": "10"}
    assert [path.name for path in bench.checkpoint.iterdir()] == ["step-10"]


def test_a_checkpoint_that_cannot_be_shared_does_not_end_the_training(
    bucket_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(bucket_uri)
    assert isinstance(store, ObjectStore)
    upload = Bucket.upload

    def fail_once(bucket: Bucket, path: Path, key: str) -> None:
        monkeypatch.setattr(Bucket, "upload", upload)
        raise StoreError("no answer")

    monkeypatch.setattr(Bucket, "upload", fail_once)
    with store.lease(STEP) as lease:
        bench = store.workbench(STEP, lease)
        for step in (1, 2):
            folder = bench.checkpoint / f"step-{step}"
            folder.mkdir(parents=True)
            for name in ("state", "facts.json"):
                (folder / name).write_text("")
                bench.publish(folder / name)
    assert "not shared: no answer" in caplog.text
    keys = [listed.key.rpartition("checkpoint/")[2] for listed in store.bucket.list("data")]
    assert sorted(keys) == ["step-2/facts.json", "step-2/state"]
    monkeypatch.setattr(Bucket, "upload", fail_once)
    bench = store.workbench(STEP)
    with pytest.raises(StoreError):  # rank 0 would not know
        bench.publish(bench.checkpoint / "step-3" / "state")


def test_who_lost_the_lease_publishes_no_checkpoint(
    bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket_uri)
    assert isinstance(store, ObjectStore)
    with store.lease(STEP) as lease:
        bench = store.workbench(STEP, lease)
        (bench.checkpoint / "step-1").mkdir(parents=True)
        (bench.checkpoint / "step-1" / "facts.json").write_text("{}")
        store.bucket.write(f"leases/{store.name(STEP)}.json", ELSEWHERE)
        bench.publish(bench.checkpoint / "step-1" / "facts.json")
    assert list(store.bucket.list("data")) == []
    assert store.bucket.read(f"leases/{store.name(STEP)}.json")[0] == ELSEWHERE


def test_a_machine_fetches_the_shards_whose_pictures_it_reads(
    bucket_uri: str,
    pictures: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "SHARD_BYTES", 24 * 256)  # a class each
    plan = plan_study(tiny_study(pictures), "data")
    assert not run_study(plan.study, plan, open_store(bucket_uri), local=True).errors
    other = on_another_machine(bucket_uri, tmp_path_factory)
    [step] = [s for s in plan.steps.values() if getattr(s.spec, "role", "") == "source"]

    def fetched() -> list[str]:
        return sorted(path.name[:12] for path in other.folder(step).glob("images-*"))

    images = images_of(found(other, step))
    assert fetched() == []
    rows = np.array([100, 30, 119, 31])  # of the second and the fifth class
    assert np.array_equal(images[rows], images_of(found(open_store(bucket_uri), step))[rows])
    assert fetched() == ["images-00001", "images-00004"]
    warmed = warm_study(plan, other)
    assert [line[1] for line in warmed] == [144, 90] and len(fetched()) == 6


def test_a_report_is_published_unless_the_store_is_only_read(bucket_uri: str) -> None:
    for write in (False, True):
        store = open_store(bucket_uri, write)
        assert isinstance(store, ObjectStore)
        folder = store.study_folder("tiny")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.md").write_text("x")
        store.publish(folder / "results.md")
        keys = [one.key for one in store.bucket.list("studies")]
        assert keys == (["studies/tiny/results.md"] if write else [])
    assert store.read_text(folder / "results.md") == "x"
    with pytest.raises(FileNotFoundError):
        store.read_text(folder / "status.json")


def test_a_step_that_fails_leaves_no_folder_behind(
    pictures: dict[str, str], bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = (
        plan_study(tiny_study(pictures, pruning_ratios=[0.0]), "data"),
        open_store(bucket_uri),
    )
    assert isinstance(store, ObjectStore)
    step = next(iter(plan.steps.values()))

    def fails(spec: Any, job: Any) -> Any:
        job.bench.array("numbers", np.arange(1000))
        raise StageError("broke")

    monkeypatch.setattr("dp4tl_ray.stages.run.run_stage", fails)
    with store.lease(step) as lease, pytest.raises(StageError):
        compute(step, plan.steps, store, Worker(), lease)
    assert [*(store.root / "work").iterdir()] == []


def test_what_one_machine_tracked_is_not_forgotten_by_the_next(
    bucket_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for machine in ("first", "second", "first"):
        monkeypatch.setenv("DP4TL_CACHE", str(tmp_path / machine))
        ledger = Ledger(open_store(bucket_uri), "tiny")
        ledger.note(destination="there", run=machine, outcome="done")
        ledger.note(destination="there", sweep="abc")
        ledger.publish()
    monkeypatch.setenv("DP4TL_CACHE", str(tmp_path / "third"))
    third = Ledger(open_store(bucket_uri), "tiny")
    assert third.at("there") == {"first": "done", "second": "done"}
    assert third.sweeps == {"there": "abc"}
