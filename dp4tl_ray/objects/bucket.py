"""A bucket: the few requests that a store needs, and their errors in words. The only obstore."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from dp4tl_ray.store import StoreError

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

CHUNK = 32 << 20
"""Bytes of a download per request, so that a slow network does not meet the time limit of one."""
_CLIENT: "ClientConfig" = {
    "connect_timeout": "5s",
    "read_timeout": "20s",
    "timeout": "60s",
    "allow_http": True,  # only an endpoint that says http:// is spoken to so
}
_RETRY: "RetryConfig" = {"max_retries": 6, "retry_timeout": timedelta(seconds=25)}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for others than Amazon, "
    "AWS_ENDPOINT_URL in the environment (`aws configure export-credentials --format env` prints "
    "those of a profile), or the role of the machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS in the environment, or the account of the machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY in "
    "the environment, or the identity of the machine",
}


class ConflictError(Exception):
    """The object is not, or no longer, what a conditional write expected."""


@dataclass(frozen=True)
class Version:
    """One content of one object, as conditional writes name it."""

    e_tag: str | None
    generation: str | None
    """What Google asks for in place of the tag."""

    def condition(self) -> "UpdateVersion":
        """Return it as a precondition."""
        condition: UpdateVersion = {}
        if self.e_tag is not None:
            condition["e_tag"] = self.e_tag
        if self.generation is not None:
            condition["version"] = self.generation
        return condition


@dataclass(frozen=True)
class Listed:
    """An object, as a listing shows it."""

    key: str
    size: int
    modified: datetime
    version: Version


class Bucket:
    """The objects below one URI.

    Every method raises StoreError, in words, when the storage cannot be used; what a caller can
    deal with is FileNotFoundError and ConflictError.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise StoreError(
                f"store {uri}: object storage needs the package obstore; install it with "
                "pip install 'dp4tl_ray[objects]'"
            ) from error
        with self._in_words("open it"):
            self._objects = from_url(uri, client_options=_CLIENT, retry_config=_RETRY)

    @contextlib.contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError) as error:
            raise ConflictError(what) from error
        except FileNotFoundError as error:
            if "NoSuchBucket" not in str(error):
                raise FileNotFoundError(f"{self.uri}: {what}") from error
            raise self._problem(what, error) from error
        except (BaseError, ValueError) as error:
            raise self._problem(what, error) from error

    def _problem(self, what: str, error: Exception) -> StoreError:
        where = _CREDENTIALS[urlparse(self.uri).scheme]
        return StoreError(
            f"store {self.uri}: cannot {what}: {_reason(str(error))}; credentials are read from "
            f"{where}"
        )

    def read(self, key: str) -> tuple[bytes, Version]:
        """Return an object and its version."""
        with self._in_words(f"read {key}"):
            found = self._objects.get(key)
            version = Version(found.meta["e_tag"], found.meta["version"])
            return found.bytes().to_bytes(), version

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """Yield the first `size` bytes of an object, part by part; fewer if it is shorter."""
        for start in range(0, size, CHUNK):
            with self._in_words(f"read {key}"):
                part = (start, min(size, start + CHUNK))
                found = self._objects.get(key, options={"range": part})
                yield found.bytes().to_bytes()
            if found.meta["size"] <= part[1]:
                return

    def write(self, key: str, content: bytes) -> None:
        """Put an object in place, whatever was there."""
        with self._in_words(f"write {key}"):
            self._objects.put(key, content)

    def upload(self, path: Path, key: str) -> None:
        """Put a file in place, in parts where it is large; it appears whole."""
        part = max(8 << 20, path.stat().st_size // 5000)  # storage takes 10,000 parts
        with self._in_words(f"write {key}"):
            self._objects.put(key, path, chunk_size=part)

    def create(self, key: str, content: bytes) -> Version:
        """Put an object in place unless there is one.

        Raises:
            ConflictError: There is one; perhaps ours, if the answer to a first request was lost.
        """
        with self._in_words(f"create {key}"):
            put = self._objects.put(key, content, mode="create")
            return Version(put["e_tag"], put["version"])

    def update(self, key: str, content: bytes, version: Version) -> Version:
        """Replace one version of an object.

        Raises:
            ConflictError: It is another version, or gone; perhaps ours, as in `create`.
        """
        with self._in_words(f"update {key}"):
            put = self._objects.put(key, content, mode=version.condition())
            return Version(put["e_tag"], put["version"])

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""
        if keys:
            with self._in_words(f"delete {keys[0]}"), contextlib.suppress(FileNotFoundError):
                self._objects.delete(list(keys))

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield every object below a folder; one request per thousand."""
        with self._in_words(f"list {prefix}"):
            for chunk in self._objects.list(prefix, chunk_size=1000):
                for meta in chunk:
                    version = Version(meta["e_tag"], meta["version"])
                    yield Listed(meta["path"], meta["size"], meta["last_modified"], version)

    def try_out(self, key: str) -> bool:
        """Write, and say whether conditional writes are kept to.

        Raises:
            StoreError: Nothing can be written, or conditional writes are refused.
        """
        self.create(key, b"probe")
        try:
            self.create(key, b"probe")
        except ConflictError:
            return True
        finally:
            self.delete([key])
        return False


def age(listed: Listed) -> float:
    """Return the seconds since an object was written, by our clock and the storage's."""
    return max(0.0, (datetime.now(UTC) - listed.modified).total_seconds())


def _reason(text: str) -> str:
    """Find what a person needs in an error of obstore: the storage's own words, or the last."""
    code = re.search(r"<Code>(.*?)</Code>", text, re.S)
    message = re.search(r"<Message>(.*?)</Message>", text, re.S)
    if code:
        return f"{code[1]} ({message[1]})" if message else code[1]
    return " ".join(text.partition("\n\nDebug source")[0].split())[:300]
