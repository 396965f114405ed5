"""Run a study and print what came of it as JSON, for tests that need more than an exit code.

python -m tests.drive STUDY STORE [METHOD]: cells of METHOD are stopped at their first epoch by a
scheduler of Ray Tune.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from dp4tl_ray.runners.board import Board, tasks_of
from dp4tl_ray.runners.cluster import run_on_ray
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.specs.load import load_study
from dp4tl_ray.store import open_store
from dp4tl_ray.sweep import plan_study, report_study


class StopMethod(FIFOScheduler):  # type: ignore[misc]
    """Stops the trials of one method when they first hear from their lane."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = trial.config["method"] == self.method and not result["ended"]
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE  # type: ignore[no-any-return]


def main(path: str, uri: str, method: str = "") -> None:
    study, store = load_study(Path(path), []), open_store(uri)
    plan = plan_study(study)
    board = Board(plan, store.finished(plan.steps.values()), tasks_of(plan))
    with Display(study.name) as display:
        scheduler = StopMethod(method) if method else None
        board, grid = run_on_ray(board, store, study.runtime, display, scheduler=scheduler)
    results, _ = report_study(study, plan, store, board.errors())
    done = {key for key, entry in board.entries.items() if entry.state == "done"}
    lines = [sorted(line.model_dump_json() for line in lines) for lines in (results, grid)]
    print(json.dumps({
        "equal": lines[0] == lines[1],
        "results": len(results),
        "grid": len(grid),
        "errors": board.errors(),
        "done": sorted(f"{plan.steps[key].stage} {plan.steps[key].name}" for key in done),
    }))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
