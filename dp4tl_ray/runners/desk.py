"""The board as an actor on the head, which every lane and every trial can reach."""

import uuid
from collections.abc import Collection
from typing import Any

from dp4tl_ray.runners.board import Board, Summary
from dp4tl_ray.runners.journal import News, Progress


def open_desk(board: Board) -> tuple[Any, str]:
    """Put a board into an actor that any process of this job finds by its name.

    It takes no CPU, so that it fits on a head that has none.

    Returns:
        The actor and its name.
    """
    import ray

    name = f"desk-{uuid.uuid4().hex[:8]}"
    actor = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(DeskActor)
    return actor.options(name=name).remote(board), name


def alive_nodes() -> dict[str, dict[str, float]]:
    """Return id -> resources of the nodes that are alive."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


class DeskActor:
    """The board behind Ray calls."""

    def __init__(self, board: Board) -> None:
        import ray

        self._board, self._plan = board, ray.put(board.plan)
        self._asked: set[str] = set()

    def plan(self) -> Any:
        """Return a reference to the plan, which is large and never changes."""
        return self._plan

    def take(
        self, lane: str, workers: int, single: bool, nodes: Collection[str]
    ) -> list[str] | None:
        """Give a lane its next work."""
        self._asked.add(lane)
        lost = False
        if self._board.held_by(lane):  # it died in the middle, perhaps with its node
            lost = not self._board.crews[lane].nodes <= alive_nodes().keys()
        return self._board.take(lane, workers, single, nodes, preempted=lost)

    def note(self, what: str, *args: Any) -> Any:
        """Call finish, fail, blame, postpone, put_back, progress, want, unwant, release, close."""
        return getattr(self._board, what)(*args)

    def release_lost(self) -> None:
        """Give what lanes held on nodes that are gone to the others."""
        self._board.release_lost(alive_nodes().keys())

    def expect(self, more: bool) -> None:
        """Say whether more may be wanted later."""
        self._board.expecting = more

    def status(self, cell: str, keys: Collection[str]) -> tuple[bool, str, Progress]:
        """Tell how a cell is doing."""
        return self._board.status(cell, keys)

    def errors(self) -> dict[str, str]:
        """Return digest -> reason of the failed steps."""
        return self._board.errors()

    def summary(self) -> Summary:
        """Return what a display shows."""
        return self._board.summary()

    def news(self, heard: int) -> list[News]:
        """Return what happened after the first `heard` events."""
        return self._board.news(heard)

    def asked(self) -> set[str]:
        """Return the lanes that have started to work."""
        return self._asked

    def board(self) -> Board:
        """Return the board as it is now."""
        return self._board


class RemoteDesk:
    """A lane's view of the actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def _note(self, what: str, *args: Any) -> Any:
        import ray

        return ray.get(self.actor.note.remote(what, *args))

    def finish(self, key: str, ran: bool = True) -> None:
        """Note that a step's artifact is in the store."""
        self._note("finish", key, ran)

    def fail(self, key: str, error: str) -> None:
        """Give a step up."""
        self._note("fail", key, error)

    def blame(self, key: str, error: str) -> None:
        """Remember why this lane is about to crash."""
        self._note("blame", key, error)

    def postpone(self, key: str) -> None:
        """Put a step back because another driver computes it."""
        self._note("postpone", key)

    def put_back(self, key: str) -> None:
        """Put a step back that was halted."""
        self._note("put_back", key)

    def progress(self, key: str, progress: Progress) -> bool:
        """Note how far a step is; returns whether somebody still waits for it."""
        return bool(self._note("progress", key, progress))
