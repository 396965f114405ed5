"""Bounded memory: work in chunks of rows, and refuse what would not fit before allocating it."""

from collections.abc import Iterator

CHUNK_BYTES = 64 * 2**20
"""Temporary memory of one chunk. Large enough that a matrix product runs at full speed."""


class MemoryLimitError(ValueError):
    """A method would need more memory than it may use; the message names what to do instead."""


def require_memory(num_bytes: float, limit_bytes: float, what: str, instead: str) -> None:
    """Refuse an allocation that is larger than allowed.

    Args:
        num_bytes: Memory that would be needed.
        limit_bytes: Memory that may be used.
        what: What needs it, with its formula, such as "the similarities of 9 examples, 4 N^2".
        instead: The chunked or per-class alternative, as advice.

    Raises:
        MemoryLimitError: num_bytes is larger than limit_bytes.
    """
    if num_bytes > limit_bytes:
        raise MemoryLimitError(
            f"{what}: {num_bytes / 2**30:.2f} GiB are needed and {limit_bytes / 2**30:.2f} GiB "
            f"allowed; {instead}"
        )


def row_chunks(num_rows: int, bytes_per_row: float, budget: int = CHUNK_BYTES) -> Iterator[slice]:
    """Yield slices that cover num_rows rows in order, each of at most `budget` temporary bytes."""
    step = max(1, int(budget / max(bytes_per_row, 1)))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
