"""The store: one folder per step, found by its digest. The one owner of every path.

A step is done when its manifest exists, which is written last, and when every file still has the
checksum in it. A step is computed by whoever holds its lease.
"""

import contextlib
import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.lease import Lease
from dp4tl_ray.plan import STAGE_VERSIONS, PlannedStep
from dp4tl_ray.specs.records import File, Manifest

log = logging.getLogger("dp4tl")


class StoreError(Exception):
    """The store cannot be used as asked; the message says where and why."""


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Artifact:
    """The finished folder of a step."""

    folder: Path
    manifest: Manifest

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return an array, memory-mapped; nothing in a store is unpickled."""
        array: npt.NDArray[Any] = np.load(
            self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False
        )
        return array

    def json(self, name: str) -> Any:
        """Return the content of a JSON file."""
        return json.loads((self.folder / f"{name}.json").read_text())


class Workbench:
    """The folder of a step that is being computed. Its owner alone writes there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[str] = []

    @property
    def checkpoint(self) -> Path:
        """Where the training state is kept; not part of the artifact."""
        return self.folder / "checkpoint.safetensors"

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Write one file of the artifact."""
        write_atomically(self.folder / name, write)
        self.files.append(name)

    def array(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write an array as NAME.npy."""

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)

        self.write(f"{name}.npy", save)

    @contextlib.contextmanager
    def growing(
        self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> Iterator[npt.NDArray[Any]]:
        """Give an array to fill part by part, on disk, which then becomes NAME.npy."""
        part = self.folder / f".{name}.growing"
        array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
        try:
            yield array
            array.flush()
            self.write(f"{name}.npy", lambda path: _move(part, path))
        finally:
            part.unlink(missing_ok=True)

    def json(self, name: str, value: Any) -> None:
        """Write plain data as NAME.json."""
        self.write(f"{name}.json", partial(_write_text, text=json.dumps(value)))


def _move(part: Path, path: Path) -> None:
    part.replace(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


class Store:
    """Artifacts under one root folder, which several machines may share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: dict[str, tuple[int, Artifact]] = {}

    @classmethod
    def open(cls, uri: str) -> "Store":
        """Open a store, creating it, and make sure that it can be written.

        Raises:
            StoreError: The URI is not a path, or the folder cannot be written.
        """
        parsed = urlparse(uri)
        if parsed.scheme not in ("", "file"):
            raise StoreError(
                f"store {uri!r}: {parsed.scheme}:// is not supported; allowed: a folder that all "
                "machines share (/path or file:///path)"
            )
        try:
            root = Path(parsed.path if parsed.scheme else uri).expanduser().absolute()
        except RuntimeError as error:  # ~somebody who is not there
            raise StoreError(f"store {uri!r}: {error}") from error
        probe = root / f".probe-{uuid.uuid4().hex[:8]}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            write_atomically(probe, partial(_write_text, text="probe"))
            probe.unlink()
        except OSError as error:
            raise StoreError(f"store {root} cannot be written: {error.strerror}") from error
        return cls(root)

    def folder(self, step: PlannedStep) -> Path:
        """Return the folder of a step, finished or not."""
        return self.root / step.stage / f"{_readable(step.name)}-{step.digest[:12]}"

    def study_folder(self, study: str) -> Path:
        """Return the folder of a study's results and report."""
        return self.root / "studies" / study

    def find(self, step: PlannedStep) -> Artifact | None:
        """Return a step's artifact if it is done and whole, else None.

        A file that is missing or no longer matches its checksum is said aloud; the step counts as
        not done and is computed again.
        """
        path = self.folder(step) / "manifest.json"
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
        for name, file in manifest.files.items():
            if problem := _problem(path.parent / name, file):
                log.warning("%s %s; the step will be computed again", path.parent / name, problem)
                return None
        artifact = Artifact(path.parent, manifest)
        self._verified[step.digest] = stamp, artifact
        return artifact

    @contextlib.contextmanager
    def lease(self, step: PlannedStep) -> Iterator[Lease]:
        """Hold a step's lease while the block runs, with a heartbeat.

        Raises:
            LeaseHeldError: Somebody who is alive holds it.
        """
        folder = self.folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        lease = Lease(folder / "lease.json")
        lease.take()
        try:
            yield lease
        finally:
            lease.give_back()

    def finish(
        self, step: PlannedStep, bench: Workbench, lease: Lease, facts: dict[str, Any]
    ) -> Artifact:
        """Write the manifest, which makes the step done.

        Args:
            step: Step that was computed.
            bench: Its files.
            lease: Must still be ours: a holder that was away too long does not write.
            facts: The manifest's seconds, device, num_workers, metrics, versions, resumed.
        """
        files = {
            name: File(
                sha256=sha256_of(bench.folder / name), size=(bench.folder / name).stat().st_size
            )
            for name in bench.files
        }
        manifest = Manifest(
            stage=step.stage,
            stage_version=STAGE_VERSIONS[step.stage],
            digest=step.digest,
            name=step.name,
            spec=step.spec,
            inputs=dict(step.inputs),
            files=files,
            **facts,
        )
        lease.check()
        text = manifest.model_dump_json(indent=1)
        write_atomically(bench.folder / "manifest.json", partial(_write_text, text=text))
        bench.checkpoint.unlink(missing_ok=True)
        artifact = self.find(step)
        if artifact is None:
            raise StoreError(f"{bench.folder} was written but does not read back")
        return artifact

    def note_failure(self, step: PlannedStep, error: str, trace: str = "") -> None:
        """Leave word of why a step failed, for reports that are written later."""
        text = json.dumps({"error": error, "trace": trace}, indent=1)
        with contextlib.suppress(OSError):  # on a full disk the driver still says it
            write_atomically(self.folder(step) / "failed.json", partial(_write_text, text=text))

    def failure(self, step: PlannedStep) -> str:
        """Return why the last attempt at a step failed; empty if it did not."""
        try:
            return str(json.loads((self.folder(step) / "failed.json").read_text())["error"])
        except (OSError, ValueError):
            return ""

    def clear(self, step: PlannedStep) -> None:
        """Forget what an earlier attempt left, but for its checkpoint."""
        self._verified.pop(step.digest, None)
        for name in ("manifest.json", "failed.json"):
            (self.folder(step) / name).unlink(missing_ok=True)


def _readable(name: str) -> str:
    """Keep what is safe in a file name on every file system."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:80]


def _problem(path: Path, file: File) -> str:
    """Say what is wrong with a file of an artifact; empty when nothing is."""
    try:
        if path.stat().st_size != file.size:
            return f"has {path.stat().st_size} bytes instead of {file.size}"
        return "" if sha256_of(path) == file.sha256 else "does not match its sha256"
    except FileNotFoundError:
        return "is missing"
