"""A store in object storage, with a folder on every machine for what is computed and read there.

A step is computed in the local folder; its files are uploaded, then the manifest, by a conditional
write: of two who finish a step, one does. A file's key contains its checksum, so that a writer who
was frozen and taken over cannot spoil what another one has finished. A file is fetched when it is
asked for and verified while it arrives. The local folder is only a copy: remove it at any time.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.lease import Holder, Lease, LeaseHeldError, is_alive, read_owner
from dp4tl_ray.objects.bucket import Bucket, ConflictError, Version, age
from dp4tl_ray.objects.lease import ObjectLease, Sightings
from dp4tl_ray.plan import PlannedStep
from dp4tl_ray.specs.records import File, Manifest
from dp4tl_ray.store import (
    FAILED,
    MANIFEST,
    Artifact,
    Store,
    StoreError,
    Workbench,
    copies_of,
    failure_in,
    failure_text,
    manifest_of,
)

log = logging.getLogger("dp4tl")

LEASES = "leases"
REQUESTS = 16
"""Requests at a time, where many are made at once."""


class ObjectStore(Store):
    """Artifacts below a URI of object storage."""

    def __init__(self, uri: str, writes: bool = True) -> None:
        super().__init__(uri.rstrip("/"), copies_of(uri.rstrip("/")), writes)
        self.bucket = Bucket(self.uri)
        self._found: dict[str, Artifact] = {}
        self._sightings = Sightings()

    @classmethod
    def open(cls, uri: str, write: bool) -> "ObjectStore":
        """Open a store and try it out."""
        store = cls(uri, write)
        if not write:
            next(store.bucket.list("studies"), None)
        elif not store.bucket.try_out(f".probe-{uuid.uuid4().hex[:8]}"):
            log.warning(
                "the storage of %s ignores conditions of writes: use this store from one driver "
                "only",
                store.uri,
            )
        return store

    def publish(self, path: Path) -> None:
        """Upload a file below the root, under the same name."""
        if self.writes:
            self.bucket.upload(path, path.relative_to(self.root).as_posix())

    def read_text(self, path: Path) -> str:
        """Return what any machine last published of a file below the root."""
        return self.bucket.read(path.relative_to(self.root).as_posix())[0].decode()

    # -- finished steps ----------------------------------------------------------------------------

    def find(self, step: PlannedStep) -> Artifact | None:
        """Return a step's artifact if it is done, else None; its files are fetched when needed."""
        if (known := self._found.get(step.digest)) is not None:
            return known
        try:
            text, version = self.bucket.read(f"{self.name(step)}/{MANIFEST}")
            manifest = Manifest.model_validate_json(text)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            self._disown(step, f"{MANIFEST} is damaged: {error}")
            return None
        copy = self._copy_of_manifest(step, version)
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, lambda part: part.write_bytes(text))
        return self._keep(step, manifest)

    def finished(self, steps: Iterable[PlannedStep]) -> set[str]:
        """Return the digests of those steps that are done, with one listing per stage.

        The manifests that this machine has no copy of are read, several at a time.
        """
        named = {f"{self.name(step)}/{MANIFEST}": step for step in steps}
        stages = sorted({step.stage for step in named.values()})
        there = [
            (named[listed.key], listed.version)
            for stage in stages
            for listed in self.bucket.list(stage)
            if listed.key in named
        ]
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = pool.map(lambda one: self._find_version(*one), there)
            done = {artifact.manifest.digest for artifact in found if artifact is not None}
        for step in named.values():
            if step.digest not in done:
                self._found.pop(step.digest, None)
        return done

    def _find_version(self, step: PlannedStep, version: Version) -> Artifact | None:
        """Find a step by this machine's copy of its manifest, if that is the listed one."""
        with contextlib.suppress(FileNotFoundError, ValidationError):
            text = self._copy_of_manifest(step, version).read_bytes()
            return self._keep(step, Manifest.model_validate_json(text))
        self._found.pop(step.digest, None)
        return self.find(step)

    def _copy_of_manifest(self, step: PlannedStep, version: Version) -> Path:
        tag = hashlib.sha256(f"{version.e_tag} {version.generation}".encode()).hexdigest()[:12]
        return self.folder(step) / f"manifest-{tag}.json"

    def _keep(self, step: PlannedStep, manifest: Manifest) -> Artifact | None:
        if manifest.digest != step.digest:
            return None
        fetch = partial(self._fetch, step, manifest)
        artifact = Artifact(manifest, fetch, "remove this copy, and it is fetched again")
        self._found[step.digest] = artifact
        return artifact

    def _disown(self, step: PlannedStep, problem: str) -> None:
        """Make a step not done, because what it left is damaged."""
        where = f"{self.uri}/{self.name(step)}"
        log.warning("%s: %s; the step will be computed again", where, problem)
        self._found.pop(step.digest, None)
        if self.writes:
            self.bucket.delete([f"{self.name(step)}/{MANIFEST}"])

    def _fetch(self, step: PlannedStep, manifest: Manifest, name: str) -> Path:
        """Return a file's copy on this machine, fetching it first if it is not there."""
        file = manifest.files[name]
        path = self.folder(step) / stamped(name, file)
        with _one_at_a_time(self.folder(step)):
            if path.exists() and path.stat().st_size == file.size:
                return path
            problem = self._download(f"{self.name(step)}/{path.name}", path, file)
        if not problem:
            return path
        self._found.pop(step.digest, None)
        fresh = self.find(step)
        if fresh is not None and fresh.manifest.files.get(name) != file:
            return fresh.file(name)  # it was declared damaged and computed again
        if fresh is not None:
            self._disown(step, f"{name} {problem}")
        raise StoreError(f"{name} of {step.stage} {step.name} in {self.uri} {problem}")

    def _download(self, key: str, path: Path, file: File) -> str:
        """Fetch a file and verify it while it arrives; says what is wrong with it."""
        checksum = hashlib.sha256()

        def write(part: Path) -> None:
            with part.open("wb") as out:
                for chunk in self.bucket.chunks(key, file.size):
                    checksum.update(chunk)
                    out.write(chunk)
                size = out.tell()
            if size != file.size:
                raise _DamagedError(f"has {size} bytes instead of {file.size}")
            if checksum.hexdigest() != file.sha256:
                raise _DamagedError("does not match its sha256")

        try:
            write_atomically(path, write)
        except FileNotFoundError:
            return "is missing"
        except _DamagedError as problem:
            return str(problem)
        return ""

    # -- steps being computed ----------------------------------------------------------------------

    def _lease(self, step: PlannedStep) -> Lease:
        return ObjectLease(self.bucket, f"{LEASES}/{self.name(step)}.json", self._sightings)

    def leases(self) -> list[Holder]:
        """Return who computes what now, dead owners included."""
        holders = []
        for listed in self.bucket.list(LEASES):
            if listed.size:
                with contextlib.suppress(FileNotFoundError):
                    owner = read_owner(self.bucket.read(listed.key)[0])
                    step = listed.key.removeprefix(f"{LEASES}/").removesuffix(".json")
                    holders.append(Holder(step, owner["host"], owner["pid"], age(listed)))
        return holders

    def workbench(self, step: PlannedStep, lease: Lease | None = None) -> Workbench:
        """Return where a step is computed: a folder of this process.

        A driver on the same machine that was frozen and taken over has another one, so that neither
        meets the other's files.
        """
        work = self.root / "work"
        for left in work.glob("*-*-*"):
            host, pid, _ = left.name.rsplit("-", 2)
            if not is_alive({"host": host, "pid": int(pid)}):
                shutil.rmtree(left, ignore_errors=True)
        folder = work / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        return _ObjectWorkbench(folder, self.bucket, self.name(step), lease)

    def finish(
        self, step: PlannedStep, bench: Workbench, lease: Lease, facts: dict[str, Any]
    ) -> Artifact:
        """Upload the files, then the manifest, which makes the step done."""
        where = self.name(step)
        manifest = manifest_of(step, bench, facts)
        lease.check()  # before a long upload
        keep = {f"{where}/{MANIFEST}"}
        for name, file in manifest.files.items():
            key = f"{where}/{stamped(name, file)}"
            self.bucket.upload(bench.folder / name, key)
            keep.add(key)
        lease.check()
        text = manifest.model_dump_json(indent=1).encode()
        self.folder(step).mkdir(parents=True, exist_ok=True)
        for name, file in manifest.files.items():
            os.replace(bench.folder / name, self.folder(step) / stamped(name, file))
        bench.leave()
        with contextlib.suppress(ConflictError):  # another driver was first
            self.bucket.create(f"{where}/{MANIFEST}", text)
            self.bucket.delete([one.key for one in self.bucket.list(where) if one.key not in keep])
        artifact = self.find(step)
        if artifact is None:
            raise StoreError(f"{self.uri}/{where} was written but does not read back")
        return artifact

    def note_failure(self, step: PlannedStep, error: str, trace: str = "") -> None:
        """Leave word of why a step failed, for reports that are written later."""
        with contextlib.suppress(StoreError):  # the driver still says it
            self.bucket.write(f"{self.name(step)}/{FAILED}", failure_text(error, trace).encode())

    def failure(self, step: PlannedStep) -> str:
        """Return why the last attempt at a step failed; empty if it did not."""
        try:
            return failure_in(self.bucket.read(f"{self.name(step)}/{FAILED}")[0])
        except FileNotFoundError:
            return ""

    def failures(self, steps: Iterable[PlannedStep]) -> dict[str, str]:
        """Return digest -> reason of those steps whose last attempt failed."""
        named = {f"{self.name(step)}/{FAILED}": step for step in steps}
        stages = sorted({step.stage for step in named.values()})
        noted = [
            named[listed.key]
            for stage in stages
            for listed in self.bucket.list(stage)
            if listed.key in named
        ]
        with ThreadPoolExecutor(REQUESTS) as pool:
            reasons = zip(noted, pool.map(self.failure, noted), strict=True)
            return {step.digest: reason for step, reason in reasons if reason}

    def clear(self, step: PlannedStep) -> None:
        """Forget what an earlier attempt left, but for its checkpoint.

        The manifest is not touched: there is none, or another driver has finished the step since
        we looked.
        """
        self._found.pop(step.digest, None)
        self.bucket.delete([f"{self.name(step)}/{FAILED}"])


class _ObjectWorkbench(Workbench):
    """A folder of this process, whose checkpoints are shared through the bucket."""

    def __init__(self, folder: Path, bucket: Bucket, where: str, lease: Lease | None) -> None:
        super().__init__(folder)
        self._bucket, self._where, self._lease = bucket, where, lease
        self._unpublished: set[Path] = set()

    def publish(self, path: Path) -> None:
        """Upload a file of the checkpoint; the last one makes the older checkpoints superfluous.

        Where storage does not answer, the worker of rank 0 goes on, and the checkpoint is never
        whole; another worker ends with StoreError, because rank 0 would not know.
        """
        if path.parent in self._unpublished:
            return
        try:
            if self._lease is not None:
                self._lease.check()
            self._bucket.upload(path, f"{self._where}/{path.relative_to(self.folder).as_posix()}")
            if path.name == FACTS:
                self._drop_older(path.parent.name)
        except LeaseHeldError:
            self._unpublished.add(path.parent)  # whoever took over publishes its own
        except StoreError as error:
            if self._lease is None:
                raise
            log.warning("a checkpoint is not shared: %s", error)
            self._unpublished.add(path.parent)

    def _drop_older(self, newest: str) -> None:
        keys = [listed.key for listed in self._bucket.list(f"{self._where}/checkpoint")]
        self._bucket.delete([key for key in keys if _number(key) < _number(f"{newest}/{FACTS}")])

    def fetch_checkpoint(self) -> None:
        """Get the newest checkpoint in the bucket that is whole, and no other."""
        listed = list(self._bucket.list(f"{self._where}/checkpoint"))
        whole = [_number(one.key) for one in listed if one.key.endswith(f"/{FACTS}")]
        newest = [one for one in listed if whole and _number(one.key) == max(whole)]
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        for one in newest:
            path = self.folder / one.key.removeprefix(f"{self._where}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, partial(self._copy, one.key, one.size))

    def _copy(self, key: str, size: int, part: Path) -> None:
        with part.open("wb") as out:
            out.writelines(self._bucket.chunks(key, size))

    def leave(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _DamagedError(Exception):
    """A file is not what its manifest says."""


FACTS = "facts.json"


def _number(key: str) -> int:
    """Return n of .../step-<n>/file; -1 for anything else."""
    number = PurePosixPath(key).parent.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def stamped(name: str, file: File) -> str:
    """Put the checksum of a file into its name."""
    path = PurePosixPath(name)
    return f"{path.stem}-{file.sha256[:12]}{path.suffix}"


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process or thread of this machine at a time fetch to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
