"""The store: one folder per step, found by its digest. The one owner of every path.

A step is done when its manifest exists, which is written last, and when every file still has the
checksum in it. A step is computed by whoever holds its lease. A store is a folder that all machines
share, or a place in object storage, for which see `objects`.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from dp4tl_ray.atomic import write_atomically, write_text
from dp4tl_ray.lease import LEASE_FILE, FileLease, Holder, Lease, file_holders, has_links
from dp4tl_ray.plan import STAGE_VERSIONS, PlannedStep
from dp4tl_ray.specs.records import File, Manifest

log = logging.getLogger("dp4tl")

MANIFEST, FAILED = "manifest.json", "failed.json"
OBJECT_SCHEMES = ("s3", "gs", "az")
READ_WHOLE = 2**30
"""Bytes of an artifact's pictures up to which every process reads all of them once, to be sure.
Above, a process that needs a part of them reads that part, each picture with its checksum."""
LOOKED_AT = 2**26
"""Bytes of a file up to which a process that only looks at a store reads it whole, to be sure: what
results are made of is smaller, embeddings of a million images are larger, by size alone."""


class StoreError(Exception):
    """The store cannot be used as asked; the message says where and why."""


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Artifact:
    """What a finished step left."""

    manifest: Manifest
    locate: Callable[[str], Path]
    """Gives the place of a file on this machine, bringing it there if need be."""
    repair: str = "remove the manifest.json beside it, and it is computed again"
    """What to do about a file that turns out to be damaged while it is read."""

    def file(self, name: str) -> Path:
        """Return where a file is on this machine, to be read only.

        Raises:
            StoreError: It cannot be had, or is damaged: the step will be computed again.
        """
        return self.locate(name)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return an array, memory-mapped; nothing in a store is unpickled."""
        array: npt.NDArray[Any] = np.load(
            self.file(f"{name}.npy"), mmap_mode="r", allow_pickle=False
        )
        return array

    def json(self, name: str) -> Any:
        """Return the content of a JSON file."""
        return json.loads(self.file(f"{name}.json").read_text(encoding="utf-8"))


class Workbench:
    """The folder of a step that is being computed. Its owner alone writes there.

    Training state goes to `checkpoint`, a folder of folders step-<n>, of which the newest that has
    a facts.json, written last, is whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[str] = []
        self.checked_in_parts: set[str] = set()
        """Those of the files whose parts have checksums of their own."""

    @property
    def checkpoint(self) -> Path:
        """Where the training state is kept; not part of the artifact."""
        return self.folder / "checkpoint"

    def publish(self, path: Path) -> None:
        """Let other machines have a file of the checkpoint; here they share the folder."""

    def fetch_checkpoint(self) -> None:
        """Get the newest whole checkpoint that any machine has published."""

    def leave(self) -> None:
        """Remove what only this worker has, once the step is over; here all share the folder."""

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Write one file of the artifact."""
        write_atomically(self.folder / name, write)
        self.files.append(name)

    def array(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write an array as NAME.npy."""

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)

        self.write(f"{name}.npy", save)

    def add_parts(self, name: str) -> None:
        """Take a file that is there into the artifact; its parts have checksums of their own."""
        self.files.append(name)
        self.checked_in_parts.add(name)

    @contextlib.contextmanager
    def growing(
        self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> Iterator[npt.NDArray[Any]]:
        """Give an array to fill part by part, on disk, which then becomes NAME.npy.

        Nobody else fills the same file, not even one who held the step's lease before.
        """
        part = self.folder / f".{name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.growing"
        try:
            array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with part.open("r+b") as file:
                    # a hole that a full disk cannot fill would end this process without a word
                    os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            yield array
            array.flush()
            self.write(f"{name}.npy", lambda path: _move(part, path))
        finally:
            part.unlink(missing_ok=True)

    def json(self, name: str, value: Any) -> None:
        """Write plain data as NAME.json."""
        self.write(
            f"{name}.json", partial(Path.write_text, data=json.dumps(value), encoding="utf-8")
        )


def _move(part: Path, path: Path) -> None:
    part.replace(path)


class Store(ABC):
    """Artifacts at one URI, which several machines share."""

    def __init__(self, uri: str, root: Path, writes: bool) -> None:
        self.uri = uri
        """What another process opens to see the same store."""
        self.root = root
        """Folder on this machine: the store itself, or its copy."""
        self.writes = writes

    def name(self, step: PlannedStep) -> str:
        """Return the place of a step below the root, finished or not."""
        return f"{step.stage}/{_readable(step.name)}-{step.digest[:12]}"

    def folder(self, step: PlannedStep) -> Path:
        """Return the folder of a step on this machine, finished or not."""
        return self.root / self.name(step)

    def study_folder(self, study: str) -> Path:
        """Return the folder on this machine of a study's results and report."""
        return self.root / "studies" / study

    @abstractmethod
    def publish(self, path: Path) -> None:
        """Let other machines have a file below the root, under the same name."""

    @abstractmethod
    def read_text(self, path: Path) -> str:
        """Return what any machine last published of a file below the root.

        Raises:
            FileNotFoundError: Nobody has.
        """

    @abstractmethod
    def find(self, step: PlannedStep) -> Artifact | None:
        """Return a step's artifact if it is done and whole, else None.

        What is damaged is said aloud; the step counts as not done and is computed again.
        """

    def finished(self, steps: Iterable[PlannedStep]) -> set[str]:
        """Return the digests of those steps that are done; the way to ask for many at once."""
        return {step.digest for step in steps if self.find(step) is not None}

    @contextlib.contextmanager
    def lease(self, step: PlannedStep) -> Iterator[Lease]:
        """Hold a step's lease while the block runs, with a heartbeat.

        Raises:
            LeaseHeldError: Somebody who is alive holds it.
        """
        self.folder(step).mkdir(parents=True, exist_ok=True)
        lease = self._lease(step)
        lease.take()
        try:
            yield lease
        finally:
            lease.give_back()

    @abstractmethod
    def _lease(self, step: PlannedStep) -> Lease:
        """Make a lease, not taken yet."""

    @abstractmethod
    def leases(self) -> list[Holder]:
        """Return who computes what now, dead owners included."""

    @abstractmethod
    def workbench(self, step: PlannedStep, lease: Lease | None = None) -> Workbench:
        """Return where a step is computed.

        Args:
            step: What to compute.
            lease: Held by the worker of rank 0; None on the others.
        """

    @abstractmethod
    def finish(
        self, step: PlannedStep, bench: Workbench, lease: Lease, facts: dict[str, Any]
    ) -> Artifact:
        """Write the manifest, which makes the step done.

        Args:
            step: Step that was computed.
            bench: Its files.
            lease: Must still be ours: a holder that was away too long does not write.
            facts: The manifest's seconds, device, num_workers, metrics, versions, resumed.

        Raises:
            LeaseHeldError: The lease was lost.
        """

    @abstractmethod
    def note_failure(self, step: PlannedStep, error: str, trace: str = "") -> None:
        """Leave word of why a step failed, for reports that are written later."""

    @abstractmethod
    def failure(self, step: PlannedStep) -> str:
        """Return why the last attempt at a step failed; empty if it did not."""

    def failures(self, steps: Iterable[PlannedStep]) -> dict[str, str]:
        """Return digest -> reason of those steps whose last attempt failed."""
        return {step.digest: error for step in steps if (error := self.failure(step))}

    @abstractmethod
    def clear(self, step: PlannedStep) -> None:
        """Forget what an earlier attempt left, but for its checkpoint."""


class FolderStore(Store):
    """A store in a folder that all machines share."""

    def __init__(self, root: Path, writes: bool = True) -> None:
        super().__init__(str(root), root, writes)
        self._verified: dict[str, tuple[int, Artifact]] = {}

    @classmethod
    def open(cls, root: Path, write: bool, missing_ok: bool = False) -> "FolderStore":
        """Open a folder, creating it if it is to be written, and make sure that it can be."""
        if not write:
            if not root.is_dir() and not missing_ok:
                raise StoreError(f"there is no store at {root}")
            return cls(root, writes=False)
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not has_links(root):
                log.warning(
                    "the file system of %s has no hard links: use this store from one driver only",
                    root,
                )
        except OSError as error:
            raise StoreError(f"store {root} cannot be written: {error.strerror}") from error
        return cls(root)

    def study_folder(self, study: str) -> Path:
        """Return the folder of a study's results and report; a copy where it cannot be written."""
        ours = self.writes or os.access(self.root, os.W_OK)
        return (self.root if ours else copies_of(self.uri)) / "studies" / study

    def publish(self, path: Path) -> None:
        """Let other machines have a file below the root: they share it."""

    def read_text(self, path: Path) -> str:
        """Return the content of a file of the store."""
        if not path.is_relative_to(self.root):
            path = self.root / path.relative_to(copies_of(self.uri))
        return path.read_text(encoding="utf-8")

    def find(self, step: PlannedStep) -> Artifact | None:
        """Return a step's artifact if it is done and whole, else None."""
        path = self.folder(step) / MANIFEST
        try:
            stamp = path.stat().st_mtime_ns
            if (known := self._verified.get(step.digest)) and known[0] == stamp:
                return known[1]
            manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValidationError, UnicodeDecodeError) as error:
            log.warning("%s is damaged and will be computed again: %s", path, error)
            return None
        if manifest.digest != step.digest:
            return None
        in_parts = sum(file.size for file in manifest.files.values() if file.checked_in_parts)
        for name, file in manifest.files.items():
            lazily = file.checked_in_parts and in_parts > READ_WHOLE
            lazily |= not self.writes and file.size > LOOKED_AT
            if problem := _problem(path.parent / name, file, whole=not lazily):
                log.warning("%s %s; the step will be computed again", path.parent / name, problem)
                return None
        artifact = Artifact(manifest, path.parent.joinpath)
        self._verified[step.digest] = stamp, artifact
        return artifact

    def _lease(self, step: PlannedStep) -> Lease:
        return FileLease(self.folder(step) / LEASE_FILE)

    def leases(self) -> list[Holder]:
        """Return who computes what now, dead owners included."""
        return file_holders(self.root)

    def workbench(self, step: PlannedStep, lease: Lease | None = None) -> Workbench:
        """Return where a step is computed."""
        return Workbench(self.folder(step))

    def finish(
        self, step: PlannedStep, bench: Workbench, lease: Lease, facts: dict[str, Any]
    ) -> Artifact:
        """Write the manifest, which makes the step done."""
        text = manifest_of(step, bench, facts).model_dump_json(indent=1)
        lease.check()
        write_text(bench.folder / MANIFEST, text)
        shutil.rmtree(bench.checkpoint, ignore_errors=True)
        artifact = self.find(step)
        if artifact is None:
            raise StoreError(f"{bench.folder} was written but does not read back")
        return artifact

    def note_failure(self, step: PlannedStep, error: str, trace: str = "") -> None:
        """Leave word of why a step failed, for reports that are written later."""
        text = failure_text(error, trace)
        with contextlib.suppress(OSError):  # on a full disk the driver still says it
            write_text(self.folder(step) / FAILED, text)

    def failure(self, step: PlannedStep) -> str:
        """Return why the last attempt at a step failed; empty if it did not."""
        try:
            return failure_in((self.folder(step) / FAILED).read_bytes())
        except OSError:
            return ""

    def clear(self, step: PlannedStep) -> None:
        """Forget what an earlier attempt left, but for its checkpoint."""
        self._verified.pop(step.digest, None)
        folder = self.folder(step)
        # whoever was killed left what it was writing: arrays of gigabytes
        for path in (folder / MANIFEST, folder / FAILED, *folder.glob(".*.part"),
                     *folder.glob(".*.growing")):  # fmt: skip
            path.unlink(missing_ok=True)


def open_store(uri: str, write: bool = True, missing_ok: bool = False) -> Store:
    """Open a store; it is created, and tried out by writing, unless it is only to be read.

    Args:
        uri: A folder (/path or file:///path) or a place in object storage (s3://bucket/prefix,
            gs://bucket/prefix, az://container/prefix).
        write: Whether steps are to be computed, not only looked at.
        missing_ok: Whether a folder to look at need not be there: nothing is done in it.

    Raises:
        StoreError: It cannot be reached, or not be used as asked; the message says why.
    """
    parsed = urlparse(uri)
    if parsed.scheme in OBJECT_SCHEMES:
        from dp4tl_ray.objects.store import ObjectStore

        return ObjectStore.open(uri, write)
    if parsed.scheme not in ("", "file"):
        raise StoreError(
            f"store {uri!r}: {parsed.scheme}:// is not supported; allowed: a folder that all "
            "machines share (/path or file:///path), s3://bucket/prefix, gs://bucket/prefix, "
            "az://container/prefix"
        )
    try:
        root = Path(parsed.path if parsed.scheme else uri).expanduser().absolute()
    except RuntimeError as error:  # ~somebody who is not there
        raise StoreError(f"store {uri!r}: {error}") from error
    return FolderStore.open(root, write, missing_ok)


def copies_of(uri: str) -> Path:
    """Return where this machine keeps copies of what is in a store."""
    cache = os.environ.get("DP4TL_CACHE") or "~/.cache/dp4tl_ray"
    return Path(cache).expanduser().absolute() / hashlib.sha256(uri.encode()).hexdigest()[:16]


def manifest_of(step: PlannedStep, bench: Workbench, facts: dict[str, Any]) -> Manifest:
    """Describe what was computed."""
    paths = {name: bench.folder / name for name in bench.files}
    return Manifest(
        stage=step.stage,
        stage_version=STAGE_VERSIONS[step.stage],
        digest=step.digest,
        name=step.name,
        spec=step.spec,
        inputs=dict(step.inputs),
        files={
            name: File(
                sha256=sha256_of(path),
                size=path.stat().st_size,
                checked_in_parts=name in bench.checked_in_parts,
            )
            for name, path in paths.items()
        },
        **facts,
    )


def failure_text(error: str, trace: str) -> str:
    """Write why a step failed."""
    return json.dumps({"error": error, "trace": trace}, indent=1)


def failure_in(text: str | bytes) -> str:
    """Read what `failure_text` wrote; empty where it was torn."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def _readable(name: str) -> str:
    """Keep what is safe in a file name on every file system."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:80]


def _problem(path: Path, file: File, whole: bool) -> str:
    """Say what is wrong with a file of an artifact, by its size or as a whole; empty if nothing."""
    try:
        if path.stat().st_size != file.size:
            return f"has {path.stat().st_size} bytes instead of {file.size}"
        intact = not whole or sha256_of(path) == file.sha256
        return "" if intact else "does not match its sha256"
    except FileNotFoundError:
        return "is missing"
