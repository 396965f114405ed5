"""Preflight: before any work, ask every node for what would stop the study later.

Nodes are to run the same versions of the same code, to read and write one store, to have room on
their disks and the GPUs that Ray promises. Nodes that an autoscaler adds later are not asked.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dp4tl_ray
from dp4tl_ray.store import OBJECT_SCHEMES, StoreError, copies_of

MIN_FREE = 1 << 30
"""Bytes that must be free where the store is, or its copy, and where Ray keeps its files."""
ANSWER_SECONDS = 90.0
"""Time that a node has to answer; starting a process there takes some of it."""
STATE_API_SECONDS = 30.0
PACKAGES = ("ray", "torch", "numpy")


@dataclass(frozen=True)
class Facts:
    """What a node found out about itself."""

    name: str
    """Address and host name, for messages."""
    versions: dict[str, str]
    """Python, packages, and our own code."""
    free: dict[str, int]
    """Folder -> bytes free on its file system."""
    gpus: int
    """Promised to Ray."""
    gpus_of_torch: int
    """Visible to torch; as promised where nobody needs them."""
    sees: bool = True
    """Whether the node sees in the store what the driver wrote there."""
    error: str = ""
    """Why the store cannot be read or written from there."""
    mark: str = ""
    """What the node wrote in the store, for the driver to see."""


def check_nodes(uri: str, gpus: bool) -> list[str]:
    """Ask every node of the connected cluster; returns the problems in words, each with its node.

    On one machine alone only disk, GPUs and Ray's state API are looked at: the driver has tried
    the store.

    Args:
        uri: The store's.
        gpus: Whether workers will use GPUs.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    problems = list(_state_api(here))
    driver = look_around(uri, 0, "", node_name(ray.util.get_node_ip_address()))
    if [node["NodeID"] for node in nodes] == [here]:
        promised = int(nodes[0]["Resources"].get("GPU", 0)) if gpus else 0
        return problems + judge(driver, [look_around(uri, promised, "", driver.name)], set())
    mark = leave_mark(uri)
    found = list[Facts]()
    try:
        for facts in _ask(nodes, uri, gpus, mark):
            if isinstance(facts, str):
                problems.append(facts)
            else:
                found.append(facts)
        seen = {facts.mark for facts in found if facts.mark and sees_mark(uri, facts.mark)}
        return problems + judge(driver, found, seen)
    finally:
        for name in (mark, *(facts.mark for facts in found)):
            remove_mark(uri, name)


def judge(driver: Facts, nodes: Sequence[Facts], seen: set[str]) -> list[str]:
    """Say what is wrong with some nodes.

    Args:
        driver: What the driver's machine found about itself.
        nodes: What the nodes found about themselves.
        seen: The nodes' marks in the store that the driver sees.
    """
    return [f"{node.name}: {what}" for node in nodes for what in _problems(driver, node, seen)]


def _problems(driver: Facts, node: Facts, seen: set[str]) -> Iterator[str]:
    for what, ours in driver.versions.items():
        if (theirs := node.versions[what]) != ours:
            yield f"has {what} {theirs}, the driver {ours}; install the same on all nodes"
    if node.error:
        yield f"cannot use the store: {node.error}"
    elif not node.sees or (node.mark and node.mark not in seen):
        yield (
            "sees another folder under the store's path than the driver; mount one shared file "
            "system on all nodes, or give an object store, such as --store s3://bucket/prefix"
        )
    for folder, free in node.free.items():
        if free < MIN_FREE:
            yield f"{folder} has {free / 2**20:.0f} MiB free; at least {MIN_FREE >> 20} are needed"
    if node.gpus_of_torch < node.gpus:
        yield (
            f"Ray counts {node.gpus} GPU(s), torch sees {node.gpus_of_torch}; check the driver "
            "with nvidia-smi, and that torch is not a build for CPUs"
        )


def _state_api(here: str) -> Iterator[str]:
    """Try the API through which Ray Train gives back what a stopped run held."""
    import ray
    from ray.util.state import list_nodes

    # without an address, and without a dashboard, it may be another Ray that answers
    address, reason = ray.get_runtime_context().gcs_address, "another Ray on this machine does"
    deadline = time.monotonic() + STATE_API_SECONDS
    while time.monotonic() < deadline:  # a dashboard takes a while to come up
        try:
            nodes = list_nodes(
                address=address, limit=10_000, timeout=20, raise_on_missing_output=False
            )
            if here in {node.node_id for node in nodes}:
                return
        except Exception as error:
            reason = type(error).__name__
        time.sleep(0.5)
    yield (
        f"Ray's state API does not answer ({reason}): install ray[default] on the head and leave "
        "the dashboard on"
    )


# -- on a node -------------------------------------------------------------------------------------


def look_around(uri: str, gpus: int, mark: str, name: str) -> Facts:
    """Gather the facts of the machine that this runs on.

    Args:
        uri: The store's.
        gpus: GPUs that Ray promises here and workers will use.
        mark: What the driver has left in the store; empty does not try the store.
        name: What to call the machine.
    """
    sees, error, own = True, "", ""
    if mark:
        try:
            sees = sees_mark(uri, mark)
            own = leave_mark(uri) if sees else ""
        except (OSError, StoreError) as problem:
            error = str(problem)
    return Facts(
        name=name,
        versions=_versions(),
        free={str(path): shutil.disk_usage(path).free for path in _folders(uri)},
        gpus=gpus,
        gpus_of_torch=_gpus_of_torch() if gpus else 0,
        sees=sees,
        error=error,
        mark=own,
    )


def node_name(address: str) -> str:
    """Return address and name of this machine."""
    return f"node {address} ({socket.gethostname()})"


def _versions() -> dict[str, str]:
    found = {"Python": "{}.{}".format(*sys.version_info[:2])}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found | {"dp4tl_ray": f"{_digest(Path(dp4tl_ray.__file__).parent)[:8]} (sha256)"}


def _digest(folder: Path) -> str:
    """Identify our code: of one version there are many while it is worked on."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _folders(uri: str) -> Iterator[Path]:
    """Yield a folder of each file system that will fill."""
    files_of_ray = Path(os.environ.get("RAY_TMPDIR", "/tmp"))
    for path in (copies_of(uri) if _is_bucket(uri) else _root(uri), files_of_ray):
        yield next(p for p in (path, *path.parents) if p.exists())


def _gpus_of_torch() -> int:
    """Ask in a process of its own: Ray hides the GPUs from those that reserve none."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    asked = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
        capture_output=True,
        text=True,
        env=environment,
    )
    return int(asked.stdout) if asked.returncode == 0 else 0


def _ask(nodes: Sequence[dict[str, Any]], uri: str, gpus: bool, mark: str) -> Iterator[Facts | str]:
    """Run `look_around` on every node at once; yields what each found, or why it did not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in nodes:
        name = f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
        promised = int(node["Resources"].get("GPU", 0)) if gpus else 0
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(look_around)
        asked[name] = task.remote(uri, promised, mark, name)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
    for name, answer in asked.items():
        try:
            yield ray.get(answer, timeout=0)
        except ray.exceptions.GetTimeoutError:
            yield f"{name}: has not answered for {ANSWER_SECONDS:.0f} s"
        except Exception as error:
            yield f"{name}: {str(error).strip().splitlines()[-1]}"


# -- marks in a store ------------------------------------------------------------------------------


def leave_mark(uri: str) -> str:
    """Write a small file that others can look for; returns its name.

    Raises:
        OSError: A folder cannot be written.
        StoreError: A bucket cannot be written.
    """
    name = f".preflight-{uuid.uuid4().hex[:8]}"
    if _is_bucket(uri):
        _bucket(uri).write(name, b"preflight")
    else:
        (_root(uri) / name).write_text("preflight")
    return name


def sees_mark(uri: str, name: str) -> bool:
    """Whether somebody's mark is there."""
    try:
        if _is_bucket(uri):
            _bucket(uri).read(name)
        else:
            (_root(uri) / name).read_text()
    except FileNotFoundError:
        return False
    return True


def remove_mark(uri: str, name: str) -> None:
    """Remove a mark; one that is not there is no error."""
    if _is_bucket(uri):
        _bucket(uri).delete([name])
    elif name:
        (_root(uri) / name).unlink(missing_ok=True)


def _is_bucket(uri: str) -> bool:
    return uri.partition("://")[0] in OBJECT_SCHEMES


def _bucket(uri: str) -> Any:
    from dp4tl_ray.objects.bucket import Bucket

    return Bucket(uri)


def _root(uri: str) -> Path:
    return Path(uri.removeprefix("file://")).expanduser().absolute()
