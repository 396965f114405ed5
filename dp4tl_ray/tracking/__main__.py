"""The process of the mirror: takes messages by standard input, answers by standard output."""

import contextlib
import os
import pickle
import sys
import threading
from collections.abc import Iterator

from dp4tl_ray.tracking.messages import Answer, Message, Setup
from dp4tl_ray.tracking.mirror import Mirror


def main() -> None:
    """Mirror what comes in, until it ends."""
    answers, answering = os.fdopen(os.dup(1), "wb"), threading.Lock()
    os.dup2(2, 1)  # whatever is printed is no answer

    def answer(what: Answer) -> None:
        # should the driver be gone, what it said still counts
        with answering, contextlib.suppress(BrokenPipeError):
            pickle.dump(what, answers)
            answers.flush()

    messages = _messages()
    setup = next(messages)
    assert isinstance(setup, Setup)
    mirror = Mirror(setup, answer)
    answer(mirror.prepare())
    for message in messages:
        try:
            mirror.take(message)
        except Exception as error:  # wandb raises many kinds; the next run may do better
            mirror.fail(error)
    mirror.close()


def _messages() -> Iterator[Message]:
    with contextlib.suppress(EOFError):
        while True:
            yield pickle.load(sys.stdin.buffer)


if __name__ == "__main__":
    main()
