"""Items made in a thread while the ones before them are used."""

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

DEPTH = 2
"""Items that are made ahead."""


@contextlib.contextmanager
def ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Give the same items in the same order, made DEPTH ahead by one thread.

    An error in the making is raised where the item would have been; leaving the context ends the
    thread, however it is left.
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    pending = deque(pool.submit(next, items, end) for _ in range(DEPTH))

    def taken() -> Iterator[T]:
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]

    try:
        yield taken()
    finally:
        pool.shutdown(cancel_futures=True)
