"""What every store promises; the contract at the top is kept by folders and buckets alike."""

import contextlib
import errno
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
from dp4tl_ray.lease import FileLease, LeaseHeldError
from dp4tl_ray.plan import PlannedStep
from dp4tl_ray.specs.data import GlyphsAndTextures
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.store import FolderStore, Store, StoreError, open_store

STEP = PlannedStep(DataStep(dataset=GlyphsAndTextures(), role="source"), {}, "made up / step")
FACTS = {
    "seconds": 1.0,
    "device": "cpu",
    "num_workers": 1,
    "metrics": {"n": 3},
    "versions": {},
    "resumed": False,
}


@pytest.fixture(params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of an empty store of either kind."""
    if request.param == "folder":
        return str(tmp_path / "store")
    bucket_uri: str = request.getfixturevalue("bucket_uri")
    return bucket_uri


def finish(store: Store) -> Path:
    """Compute the step; returns its folder."""
    with store.lease(STEP) as lease:
        bench = store.workbench(STEP, lease)
        bench.array("numbers", np.arange(1000))
        bench.json("names", ["a", "b"])
        store.finish(STEP, bench, lease, FACTS)
    return bench.folder


def test_a_finished_step_reads_back(uri: str) -> None:
    store = open_store(uri)
    assert store.find(STEP) is None and store.finished([STEP]) == set()
    finish(store)
    for again in (store, open_store(uri), open_store(store.uri, write=False)):
        assert again.finished([STEP]) == {STEP.digest}
        artifact = again.find(STEP)
        assert artifact is not None
        assert artifact.array("numbers").tolist() == list(range(1000))
        assert artifact.json("names") == ["a", "b"]
        assert artifact.manifest.metrics == {"n": 3}


def test_of_two_one_holds_the_lease(uri: str) -> None:
    one, two = open_store(uri), open_store(uri)
    with one.lease(STEP) as lease:
        with pytest.raises(LeaseHeldError), two.lease(STEP):
            pass
        lease.check()
        (holder,) = two.leases()
        assert holder.step == one.name(STEP) and holder.pid == os.getpid() and holder.seconds < 30
    assert two.leases() == []
    with two.lease(STEP):
        pass


def test_a_failure_is_remembered_until_the_step_is_tried_again(uri: str) -> None:
    store = open_store(uri)
    store.folder(STEP).mkdir(parents=True)
    assert store.failure(STEP) == "" and store.failures([STEP]) == {}
    store.note_failure(STEP, "data x: broke")
    assert open_store(uri).failure(STEP) == "data x: broke"
    assert open_store(uri).failures([STEP]) == {STEP.digest: "data x: broke"}
    store.clear(STEP)
    assert store.failure(STEP) == ""


def test_a_dead_owners_lease_expires_at_once_on_its_machine(uri: str) -> None:
    code = (
        "import sys, time; from tests.test_store import STEP, open_store\n"
        "with open_store(sys.argv[1]).lease(STEP): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    store = open_store(uri)
    with pytest.raises(LeaseHeldError), store.lease(STEP):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with store.lease(STEP) as lease:
        lease.check()


def test_an_unfinished_checkpoint_stays_and_goes_with_the_end_of_its_step(uri: str) -> None:
    store = open_store(uri)
    facts = Path("checkpoint", "step-3", "facts.json")
    with store.lease(STEP) as lease:
        bench = store.workbench(STEP, lease)
        (bench.folder / facts).parent.mkdir(parents=True)
        (bench.folder / facts).write_text("{}")
        bench.publish(bench.folder / facts)
    store.clear(STEP)
    bench = open_store(uri).workbench(STEP)
    bench.fetch_checkpoint()
    assert (bench.folder / facts).read_text() == "{}"
    finish(store)
    bench = open_store(uri).workbench(STEP)
    bench.fetch_checkpoint()
    assert not bench.checkpoint.exists()


# -- folders ---------------------------------------------------------------------------------------


def test_a_folder_holds_the_files_and_the_manifest(tmp_path: Path) -> None:
    folder = finish(open_store(tmp_path.as_uri()))
    assert folder.parent == tmp_path / "data" and folder.name.endswith(STEP.digest[:12])
    names = ["manifest.json", "names.json", "numbers.npy"]
    assert sorted(p.name for p in folder.iterdir()) == names


def test_without_its_manifest_a_step_is_not_done(tmp_path: Path) -> None:
    (finish(FolderStore(tmp_path)) / "manifest.json").unlink()
    assert FolderStore(tmp_path).find(STEP) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_said_aloud_and_not_done(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = finish(FolderStore(tmp_path)) / "numbers.npy"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-10])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING, "dp4tl"):
        assert FolderStore(tmp_path).find(STEP) is None
    assert "numbers.npy" in caplog.text and "computed again" in caplog.text


def test_a_damaged_manifest_is_said_aloud_and_not_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = finish(FolderStore(tmp_path)) / "manifest.json"
    path.write_text(path.read_text()[:-40])
    assert FolderStore(tmp_path).find(STEP) is None
    assert "manifest.json is damaged" in caplog.text


def test_a_manifest_is_valid_under_the_committed_schema(tmp_path: Path) -> None:
    from jsonschema import Draft7Validator

    schema = json.loads(Path("schemas/manifest.schema.json").read_text())
    manifest = json.loads((finish(FolderStore(tmp_path)) / "manifest.json").read_text())
    Draft7Validator(schema).validate(manifest)


def test_another_scheme_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match="ftp:// is not supported; allowed"):
        open_store("ftp://bucket/x")


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        open_store(str(tmp_path / "file" / "store"))


def test_another_machines_lease_expires_with_its_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"token": "x", "host": "elsewhere", "pid": 1}))
    with pytest.raises(LeaseHeldError):
        FileLease(path).take()
    old = time.time() - lease_module.LEASE_SECONDS - 1
    os.utime(path, (old, old))
    lease = FileLease(path)
    lease.take()
    lease.give_back()


def test_who_lost_the_lease_does_not_write(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with store.lease(STEP) as lease:
        assert isinstance(lease, FileLease)
        bench = store.workbench(STEP, lease)
        bench.array("numbers", np.arange(3))
        lease.path.write_text(json.dumps({"token": "thief", "host": "elsewhere", "pid": 1}))
        with pytest.raises(LeaseHeldError, match="taken over"):
            store.finish(STEP, bench, lease, FACTS)
    assert store.find(STEP) is None
    assert json.loads(lease.path.read_text())["token"] == "thief"  # not ours to remove


def test_of_many_who_race_for_a_dead_lease_one_wins(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from dp4tl_ray.lease import FileLease, LeaseHeldError\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: FileLease(Path(sys.argv[1])).take(); print('won', flush=True)\n"
        "except LeaseHeldError: print('held', flush=True)\n"
        "sys.stdin.read()"  # stay alive until all have tried
    )
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"token": "x", "host": "elsewhere", "pid": 1}))
    os.utime(path, (0, 0))
    with contextlib.ExitStack() as stack:
        racers = []
        for _ in range(8):
            command = [sys.executable, "-c", code, str(path)]
            pipe = subprocess.PIPE
            racer = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            racers.append(stack.enter_context(racer))
        ins, outs = [r.stdin for r in racers if r.stdin], [r.stdout for r in racers if r.stdout]
        assert [out.readline() for out in outs] == ["ready\n"] * 8
        for line in ins:
            line.write("go\n")
            line.flush()
        answers = [out.readline().strip() for out in outs]
        for line in ins:
            line.close()
    assert sorted(answers) == ["held"] * 7 + ["won"]


def test_a_store_to_read_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        open_store(str(tmp_path / "store"), write=False)
    finish(open_store(str(tmp_path / "store")))
    before = sorted((tmp_path / "store").rglob("*"))
    assert open_store(str(tmp_path / "store"), write=False).find(STEP) is not None
    assert sorted((tmp_path / "store").rglob("*")) == before


def test_the_report_of_a_store_that_cannot_be_written_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DP4TL_CACHE", str(tmp_path / "cache"))
    store = open_store(str(tmp_path / "store"))
    status = store.study_folder("tiny") / "status.json"
    status.parent.mkdir(parents=True)
    status.write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    reader = open_store(store.uri, write=False)
    folder = reader.study_folder("tiny")
    assert folder.is_relative_to(tmp_path / "cache")
    assert reader.read_text(folder / "status.json") == "{}"


def test_without_hard_links_a_store_says_so_and_serves_one_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with caplog.at_level(logging.WARNING, "dp4tl"):
        store = open_store(str(tmp_path))
    assert "use this store from one driver only" in caplog.text
    with store.lease(STEP), pytest.raises(LeaseHeldError), store.lease(STEP):
        pass
    finish(store)


def test_a_torn_lease_belongs_to_nobody_and_expires(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    path.write_text("")
    with pytest.raises(LeaseHeldError):
        FileLease(path).take()
    os.utime(path, (0, 0))
    lease = FileLease(path)
    lease.take()
    lease.give_back()


def test_what_a_killed_writer_left_is_removed_before_the_next_attempt(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    code = (
        "import os, signal, sys; from tests.test_store import STEP, open_store, np\n"
        "bench = open_store(sys.argv[1]).workbench(STEP)\n"
        "bench.folder.mkdir(parents=True)\n"
        "def write(path): path.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "with bench.growing('numbers', (1000,), np.float32): bench.write('names.json', write)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = sorted(path.suffix for path in store.folder(STEP).glob(".*"))
    assert left == [".growing", ".part"]
    store.clear(STEP)
    assert [*store.folder(STEP).iterdir()] == []


def test_who_only_looks_trusts_the_size_of_what_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finish(FolderStore(tmp_path))
    numbers = folder / "numbers.npy"
    numbers.write_bytes(numbers.read_bytes()[:-1] + b"x")
    assert FolderStore(tmp_path, writes=False).find(STEP) is None
    monkeypatch.setattr("dp4tl_ray.store.LOOKED_AT", 1000)
    assert FolderStore(tmp_path, writes=False).find(STEP) is not None
    assert FolderStore(tmp_path).find(STEP) is None  # whoever computes reads all
    numbers.write_bytes(b"")
    assert FolderStore(tmp_path, writes=False).find(STEP) is None
