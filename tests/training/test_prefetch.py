import threading
from collections.abc import Iterator

import pytest

from dp4tl_ray.training.prefetch import DEPTH, ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_items_come_in_order_and_are_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    with ahead(items()) as stream:
        assert next(stream) == 0
        assert threads()
        taken = [0, *stream]
        assert taken == made == list(range(20))
    assert not threads()


def test_no_more_is_made_than_asked() -> None:
    made = []
    with ahead(made.append(i) or i for i in range(20)) as stream:  # type: ignore[func-returns-value]
        for _ in range(3):
            next(stream)
    assert len(made) <= 3 + DEPTH


def test_the_thread_ends_when_the_user_fails() -> None:
    with pytest.raises(KeyError), ahead(iter(range(20))) as stream:
        next(stream)
        raise KeyError
    assert not threads()


def test_an_error_in_the_making_is_raised_where_the_item_would_be() -> None:
    with ahead(1 // (2 - i) for i in range(4)) as stream:
        assert [next(stream), next(stream)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(stream)
    assert not threads()
