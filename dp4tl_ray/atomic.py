"""Files that appear whole or not at all."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in place; a failure leaves nothing behind.

    Two writers who meet, or a reader in the middle, see one whole file or the other.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, in UTF-8 wherever it is run."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
