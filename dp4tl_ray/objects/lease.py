"""A lease in object storage, by conditional writes: no clock of another machine is compared."""

import contextlib
import threading
import time

from dp4tl_ray import lease as timing
from dp4tl_ray.lease import Lease, LeaseHeldError, is_alive, read_owner
from dp4tl_ray.objects.bucket import Bucket, ConflictError, Version
from dp4tl_ray.specs.base import canonical_json
from dp4tl_ray.store import StoreError

FREE = b""
"""Content of a lease that nobody holds. It is not deleted: storage has no conditional delete, and
a plain one could remove the lease of whoever took it over a moment before."""


class Sightings:
    """For how long other owners' leases have not changed, by this process's own clock."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[Version, float]] = {}

    def unchanged(self, key: str, version: Version) -> float:
        """Return the seconds since a lease was first seen at this version."""
        now = time.monotonic()
        seen, since = self._first.get(key, (None, now))
        if seen != version:
            self._first[key] = version, now
            return 0.0
        return now - since


class ObjectLease(Lease):
    """An object that says who computes a step; every heartbeat replaces exactly our last version.

    An owner is dead when its lease has not changed for LEASE_SECONDS while we looked. Of several
    who take it over one succeeds, because they all replace the same version; the old owner finds
    out at its next write, however long it was frozen.
    """

    def __init__(self, bucket: Bucket, key: str, sightings: Sightings) -> None:
        super().__init__()
        self.key = key
        self._bucket, self._sightings = bucket, sightings
        self._version: Version | None = None
        self._beats = 0
        self._lock = threading.Lock()

    def _content(self) -> bytes:
        """Say who we are, differently every time: equal contents may be equal versions."""
        self._beats += 1
        return canonical_json({**self.signature(), "beat": self._beats}).encode()

    def _take(self) -> None:
        with self._lock:
            try:
                self._version = self._bucket.create(self.key, self._content())
            except ConflictError:
                self._version = self._take_over()

    def _take_over(self) -> Version:
        """Replace a lease that is free, or whose owner is dead."""
        try:
            content, version = self._bucket.read(self.key)
        except FileNotFoundError:
            raise LeaseHeldError(self.key) from None
        owner = read_owner(content)
        if owner["token"] == self.token:  # created, but the answer was lost
            return version
        unchanged = self._sightings.unchanged(self.key, version)
        if content != FREE and unchanged < timing.LEASE_SECONDS and is_alive(owner):
            raise LeaseHeldError(self.key)
        try:
            return self._bucket.update(self.key, self._content(), version)
        except ConflictError:
            if (taken := self._ours_after_all()) is None:
                raise LeaseHeldError(self.key) from None
            return taken

    def _renew(self) -> None:
        """Replace our last version, or find out that it is not there any more."""
        with self._lock:
            if self._version is None or self._stop.is_set():
                raise LeaseHeldError(f"{self.key} was taken over")
            try:
                self._version = self._bucket.update(self.key, self._content(), self._version)
            except ConflictError:
                self._version = self._ours_after_all()

    def _ours_after_all(self) -> Version | None:
        """Look whether the version in our way is our own, whose answer was lost."""
        with contextlib.suppress(FileNotFoundError):
            content, version = self._bucket.read(self.key)
            if read_owner(content)["token"] == self.token:
                return version
        return None

    def _beat(self) -> None:
        with contextlib.suppress(StoreError, LeaseHeldError):
            self._renew()

    def check(self) -> None:
        """Raise LeaseHeldError if the lease was lost, for example while this machine slept."""
        self._renew()
        if self._version is None:
            raise LeaseHeldError(f"{self.key} was taken over")

    def give_back(self) -> None:
        """End the heartbeat, and the lease if it is still ours."""
        self._stop.set()
        with self._lock, contextlib.suppress(StoreError, ConflictError):
            if self._version is not None:
                self._bucket.update(self.key, FREE, self._version)
