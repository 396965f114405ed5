"""Where the campaign takes place: Ray with two nodes on this machine, stores, and the study."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.conftest import study_data, supervised, write_folder
from tests.processes import descendants, title

REPOSITORY = Path(__file__).parents[2]
SLOW = Path(__file__).parent / "slow"
NAME = "faults"
STORE_SIZE = "2g"
"""More than the preflight wants to be free; it takes memory only where it is used."""
PR_SET_CHILD_SUBREAPER = 36
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}
"""Ray notices a dead node after seconds; by default after half a minute, of which there are 8."""


def sh(*command: str | Path) -> None:
    """Run a command that must work."""
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount file systems."""
    folder.mkdir()
    try:
        sh("mount", "-t", "tmpfs", "none", folder)
        sh("umount", folder)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


class StoreFolder:
    """An empty store on a file system of its own, where that is allowed."""

    def __init__(self, path: Path, mounted: bool) -> None:
        self.path, self.mounted = path, mounted
        # Linux refuses to make read-only what has a file open for writing, and the driver keeps
        # its log open: it lies on another file system
        self.mounts = [path, path / "ray"] if mounted else []

    def __enter__(self) -> "StoreFolder":
        self.path.mkdir()
        for mount in self.mounts:
            mount.mkdir(exist_ok=True)
            sh("mount", "-t", "tmpfs", "-o", f"size={STORE_SIZE}", "none", mount)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for mount in reversed(self.mounts):
            sh("umount", "-l", mount)
        shutil.rmtree(self.path)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Refuse every write while the block runs."""
        _persist(lambda: sh("mount", "-o", "remount,ro", self.path))
        try:
            yield
        finally:
            sh("mount", "-o", "remount,rw", self.path)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room while the block runs."""
        try:
            self.shrink()
            yield
        finally:
            for mount in self.mounts:
                sh("mount", "-o", f"remount,size={STORE_SIZE}", mount)

    def shrink(self) -> None:
        """Let the file systems end where their last files do: a filler would take memory."""
        for mount in self.mounts:
            _persist(lambda mount=mount: _shrink(mount))  # type: ignore[misc]


def _shrink(mount: Path) -> None:
    space = os.statvfs(mount)
    if space.f_bfree or space.f_blocks == 0:
        used = max(1, space.f_blocks - space.f_bfree) * space.f_frsize
        sh("mount", "-o", f"remount,size={used}", mount)


def _persist(change: Callable[[], None], seconds: float = 20.0) -> None:
    """Try until it works: in the way are files that are open for a moment only."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return change()
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class World:
    """Ray with a head that computes nothing and two nodes of one CPU, alive over all rounds.

    Args:
        folder: Of everything that is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control = folder / "control"
        self.study = folder / "study.json"
        self.mounts = can_mount(folder / "trial")
        self.began = time.monotonic()
        self.cluster: Any = None

    def __enter__(self) -> "World":
        self.control.mkdir()
        pictures = {
            "source": str(write_folder(self.folder / "source", range(6), 24, seed=0)),
            "target": str(write_folder(self.folder / "target", range(1, 4), 30, seed=1)),
        }
        self.study.write_text(json.dumps(_study(pictures), indent=1))
        self._reference()
        # orphans of a shot raylet become our children: that none is left can then be seen
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        os.environ |= {
            "RAY_AUTH_MODE": "disabled",
            "DP4TL_FAULTS": str(self.control),
            "PYTHONPATH": f"{SLOW}:{_path()}",
        }
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": 0,
            "include_dashboard": True,
            "dashboard_port": None,  # another Ray on this machine may have the usual one
            "_system_config": HEALTH_CHECKS,
        }
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self.cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = self.cluster.address
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def seconds(self) -> float:
        """Since the campaign began."""
        return time.monotonic() - self.began

    @property
    def reference(self) -> Path:
        """Store of the run that nothing disturbed."""
        return self.folder / "reference"

    def store(self, number: int) -> StoreFolder:
        """Return the store of a round."""
        return StoreFolder(self.folder / f"store{number}", self.mounts)

    def start(self, store: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start a driver, whose output goes to a file."""
        with log.open("wb") as file:
            return subprocess.Popen(
                _command(self.study, store, *options),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=REPOSITORY,
            )

    def _reference(self) -> None:
        done = subprocess.run(
            _command(self.study, self.reference, "--local"),
            env=os.environ | {"PYTHONPATH": _path()},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the study fails undisturbed: {done.stdout}{done.stderr}")

    def shoot_node(self, pid: int) -> None:
        """Kill the raylet above a worker, clear away the rest of the node, and add another."""
        node = next(
            node
            for node in self.cluster.worker_nodes
            if pid in descendants(node.all_processes["raylet"][0].process.pid)
        )
        raylet = node.all_processes["raylet"][0].process
        raylet.kill()
        raylet.wait()
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(num_cpus=1)

    def owner_of(self, pid: int) -> int | None:
        """Return the process of the actor that has made the actor in a process."""
        actors = self.cluster.global_state.actor_table(None, actor_state_name="ALIVE").values()
        owners = [actor["OwnerAddress"] for actor in actors if actor["Pid"] == pid]
        pids = [int(actor["Pid"]) for actor in actors if actor["Address"] in owners]
        return pids[0] if pids else None

    def reap(self) -> None:
        """Bury orphaned workers: a zombie's pid looks alive to whoever asks for it."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ChildProcessError):
                name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
                state, parent = rest.split()[:2]
                if state == "Z" and int(parent) == os.getpid() and name.startswith("ray::"):
                    os.waitpid(int(stat.parent.name), os.WNOHANG)


def titles() -> dict[int, str]:
    """Return pid -> command line of every process that the campaign has brought about."""
    return {pid: title(pid) for pid in descendants(os.getpid())}


def _path() -> str:
    return os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))


def _command(study: Path, store: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "dp4tl_ray", "run", str(study), "--store", str(store), *options
    ]  # fmt: skip


def _study(pictures: dict[str, str]) -> dict[str, Any]:
    """Return a study of two cells that has every stage, each on the way to every result."""
    return study_data(
        pictures,
        name=NAME,
        surrogate=supervised(budget={"epochs": 4}),
        methods=[{"method": "feature_mapping", "clustering": {"num_clusters": 6}}],
        pruning_ratios=[0.3, 0.6],
        pretraining=[supervised(budget={"epochs": 6})],
        runtime={"device": "cpu"},
    )
