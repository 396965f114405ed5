"""The sweep as Ray Tune sees it: one light trial per cell, which waits for its steps on the head.

A trial never touches a network and never waits inside Train. It passes the epochs of the lane that
works for it to Tune, and ends with its line of results, so that Tune's `ResultGrid` is
results.jsonl. A trial that a scheduler stops lets go of its cell; a step that no other cell waits
for is then halted.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from dp4tl_ray.plan import Plan
from dp4tl_ray.results import axes_of, result_of
from dp4tl_ray.runners.board import Board, More, Tasks, tasks_of
from dp4tl_ray.runners.lane import POLL_SECONDS
from dp4tl_ray.specs.records import Result
from dp4tl_ray.store import Store, open_store

AXES = ("target", "method", "pruning_ratio", "pretraining", "adversarial", "transfer", "seed")
TRIAL_RETRIES = 3
"""A trial only waits: one whose process was shot waits again."""


def run_trials(
    board: Board,
    desk: Any,
    desk_name: str,
    store: str,
    at_a_time: int,
    folder: Path | str,
    more: More | None = None,
    scheduler: Any = None,
) -> list[Result]:
    """Run the sweep: a trial for every cell that is not finished.

    Args:
        board: As it is before any work.
        desk: The same as an actor.
        desk_name: Its name.
        store: URI of the store.
        at_a_time: Trials that wait at a time.
        folder: Where Tune keeps its own files.
        more: Asked for cells to add as others end; null runs what is on the board.
        scheduler: A scheduler of Tune, which may stop trials.

    Returns:
        The lines of `ResultGrid`, one per cell that ended.
    """
    tasks = {
        name: steps
        for name, steps in tasks_of(board.plan).items()
        if name in board.cells and not board.open.isdisjoint(steps)
    }
    # trials attach to steps that are on the board already, in the order in which lanes take those
    queue = sorted(tasks, key=lambda name: min(board.turn[key] for key in tasks[name]))
    searcher = CellSearcher(board.plan, desk, desk_name, store, queue, more)
    trainable = tune.with_resources(wait_for_cell, {"CPU": 0, "node:__internal_head__": 0.001})
    grid = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=at_a_time,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="cells",
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RETRIES),
            callbacks=[LetGo(desk)],
        ),
    ).fit()
    return [
        Result.model_validate_json(result.metrics["result"])
        for result in grid
        if result.metrics and result.metrics.get("result")
    ]


class CellSearcher(Searcher):  # type: ignore[misc]
    """Suggests one cell after the other: those of the grid, or those that a search asks for."""

    def __init__(
        self,
        plan: Plan,
        desk: Any,
        desk_name: str,
        store: str,
        queue: Sequence[str],
        more: More | None,
    ) -> None:
        super().__init__(metric="accuracy", mode="max")
        self.plan, self.desk, self.more = plan, desk, more
        self.common = {"desk": desk_name, "store": store}
        self.queue, self.known = deque(queue), set(queue)
        self.live: set[str] = set()
        self.news = True
        """Whether a cell has ended since the search was asked."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next cell; null while it depends on those that run."""
        if not self.queue and self.more is not None and self.news:
            self._ask(self.more)
        if not self.queue:
            if not self.live:
                self._tell("expect", False)
            return None if self.live else Searcher.FINISHED
        name = self.queue.popleft()
        self.live.add(trial_id)
        return {"cell": name, **self.common, **place_of(self.plan, name)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note that a cell has ended."""
        self.live.discard(trial_id)
        self.news = True

    def _ask(self, more: More) -> None:
        """Put the cells on the board that the search needs now."""
        for name, steps in more(self._tell("errors")).items():
            if name not in self.known:
                self._tell("note", "want", name, steps)
                self.queue.append(name)
                self.known.add(name)
        self.news = False

    def _tell(self, method: str, *args: Any) -> Any:
        import ray

        return ray.get(getattr(self.desk, method).remote(*args))

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: a rerun finds what is done in the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


def place_of(plan: Plan, name: str) -> dict[str, Any]:
    """Return a cell's place on the axes of the sweep, for people who look at Tune's tables."""
    if not plan.cells:
        return {"step": plan.steps[name].name}
    axes = axes_of(plan.study, plan.cells[int(name.removeprefix("cell"))])
    return {axis: axes[axis] for axis in AXES}


class LetGo(tune.Callback):  # type: ignore[misc]
    """Lets go of the cells of trials that ended before their steps did."""

    def __init__(self, desk: Any) -> None:
        self.desk = desk

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Tell the board that a stopped trial waits no longer."""
        import ray

        if not trial.last_result.get("ended"):
            ray.get(self.desk.note.remote("unwant", trial.config["cell"]))


@lru_cache(maxsize=1)
def _plan_of(desk_name: str) -> tuple[Plan, Tasks]:
    """Fetch the plan and its tasks once per process: an actor serves one trial after the other."""
    import ray

    plan: Plan = ray.get(ray.get(ray.get_actor(desk_name).plan.remote()))
    return plan, tasks_of(plan)


@lru_cache(maxsize=1)
def _store_at(uri: str) -> Store:
    """Open the store once per process: it remembers which artifacts it has verified."""
    return open_store(uri, write=False)


def wait_for_cell(config: Mapping[str, Any]) -> None:
    """Trial: wait until the steps of one cell have ended, passing their progress to Tune."""
    import ray

    desk, name = ray.get_actor(config["desk"]), config["cell"]
    plan, tasks = _plan_of(config["desk"])
    steps, latest, pause = tasks[name], dict[str, Any](), 0.02
    while True:
        ended, error, progress = ray.get(desk.status.remote(name, steps))
        if ended:
            break
        if progress and progress != latest:
            latest = progress
            tune.report({**progress, "ended": False})
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS)
    report: dict[str, Any] = {"ended": True, "failed": bool(error), "error": error}
    if plan.cells:
        cell = plan.cells[int(name.removeprefix("cell"))]
        result = result_of(plan, _store_at(config["store"]), cell, error)
        if result is not None:
            report |= result.metrics.model_dump() if result.metrics else {}
            report["result"] = result.model_dump_json()
    tune.report(report)
