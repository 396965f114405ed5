"""What happens to the steps of a board, one event after the other, for whoever follows a study."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Progress = dict[str, float | int | str]


@dataclass(frozen=True)
class News:
    """One event."""

    key: str
    """Digest of the step."""
    what: Literal["progress", "ran", "found", "failed"]
    """found: its artifact was in the store, where another driver may just have put it."""
    progress: Progress = field(default_factory=dict)
    error: str = ""
    """Why it failed."""


class Journal:
    """Keeps events until they have been read; what nobody follows is not written down."""

    def __init__(self) -> None:
        self.events: list[News] = []
        self.forgotten = 0

    def add(self, news: News) -> None:
        """Write an event down."""
        self.events.append(news)

    def since(self, heard: int) -> list[News]:
        """Return all but the first `heard` events ever, and forget those.

        An answer that is lost on its way can be asked for again.
        """
        del self.events[: heard - self.forgotten]
        self.forgotten = heard
        return list(self.events)


class Follower:
    """Passes the events of a board on, each once.

    Args:
        listen: Called with them; must return at once, for it holds up those who look after lanes.
    """

    def __init__(self, listen: Callable[[Sequence[News]], None]) -> None:
        self.listen, self.heard = listen, 0

    def hear(self, since: Callable[[int], list[News]]) -> None:
        """Ask for what is new, and pass it on."""
        news = since(self.heard)
        self.heard += len(news)
        if news:
            self.listen(news)
