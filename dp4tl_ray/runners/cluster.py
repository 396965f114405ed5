"""Run a plan on Ray: Tune decides which cells run, Train does the work, the store joins them.

One Tune trial is one pretraining with its transfers: a light function on the head that waits for
its steps. Lanes do the work: a lane is ONE Train run whose workers take step after step from the
board until there are none, because starting a Train run costs half a minute and a warm lane
nothing. No trial ever waits inside Train, which would leak placement groups.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from dp4tl_ray.plan import Plan
from dp4tl_ray.runners.admission import InfeasibleError, lanes_that_fit
from dp4tl_ray.runners.board import Board
from dp4tl_ray.runners.lane import IDLE_RESTARTS, POLL_SECONDS, Lane, start_board
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.specs.study import Runtime
from dp4tl_ray.store import Store

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is an interruption, not a result
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Environment of Ray, unless the user has set it otherwise."""


def run_on_ray(board: Board, store: Store, runtime: Runtime, display: Display) -> Board:
    """Run every step of a board on Ray; returns the board as it ended.

    Uses the cluster that RAY_ADDRESS names, else starts Ray on this machine and ends it again.

    Raises:
        InfeasibleError: The lanes do not fit; said with the arithmetic, before any work.
    """
    run_folder = store.root / "ray" / uuid.uuid4().hex[:8]
    run_folder.mkdir(parents=True)
    try:
        with _quiet(run_folder / "ray.log"), _ray():
            ended = _run(board, store, runtime, display, run_folder)
    except (KeyboardInterrupt, InfeasibleError):
        shutil.rmtree(run_folder, ignore_errors=True)
        raise  # after any other error the log stays, for whoever has to find out
    shutil.rmtree(run_folder, ignore_errors=True)
    return ended


def _run(board: Board, store: Store, runtime: Runtime, display: Display, run_folder: Path) -> Board:
    """Start board and lanes, run the trials, and wait for the lanes to end."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_lanes, resources = lanes_that_fit(runtime, nodes, may_grow="RAY_ADDRESS" in os.environ)
    desk = start_board(board)
    # every step may end its lane a few times before the board gives it up
    restarts = IDLE_RESTARTS + board.max_attempts * board.num_open
    lanes = [
        Lane(f"lane{index}", desk, store, runtime, resources, run_folder, restarts)
        for index in range(min(num_lanes, board.num_open))
    ]
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(desk, lanes, display, stop), daemon=True)
    watcher.start()
    try:
        _wait_for_lane(desk, lanes)
        _tune(board, desk, 2 * len(lanes), run_folder)
        watcher.join()  # whatever became of the trials, the lanes have finished the board
    except BaseException:
        _end_lanes(lanes)
        raise
    finally:
        stop.set()
        watcher.join()
    for lane in lanes:
        lane.thread.join(timeout=60)
    ended: Board = ray.get(desk.board.remote())
    return ended


# -- Ray itself ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """Connect to RAY_ADDRESS, or start Ray here for as long as the block runs."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        # nobody takes this machine away with a warning, and the watcher is one more slow start
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if address == "local" and "RAY_AUTH_MODE" not in os.environ:
        # a token of this run's own: nobody else on this machine may talk to it, and no file is left
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in place
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Divert what Ray prints and logs in this process to a file."""
    with path.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        handlers = _replace_handlers(file)
        try:
            yield
        finally:
            for handler, stream in handlers:
                handler.setStream(stream)


def _replace_handlers(file: TextIO) -> list[tuple["logging.StreamHandler[TextIO]", TextIO]]:
    """Point Ray's log handlers at a file; returns what to put back."""
    changed = []
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in (
                sys.__stdout__,
                sys.__stderr__,
            ):
                changed.append((handler, handler.stream))
                handler.setStream(file)
    return changed


def _wait_for_lane(desk: Any, lanes: list[Lane]) -> None:
    """Let the first lane start before the trials do.

    Both start processes that import much; on a small machine the trials, which only wait for the
    lane, would hold it up.
    """
    import ray

    while any(lane.thread.is_alive() for lane in lanes) and not ray.get(desk.asked.remote()):
        time.sleep(POLL_SECONDS)


def _end_lanes(lanes: list[Lane]) -> None:
    """End the Train runs of an interrupted study, so that their threads leave Ray before it ends.

    A thread that is inside Ray while it shuts down takes the whole process with it, message and
    exit code included. Train runs its controllers on the driver's machine.
    """
    import ray
    from ray.util.state import list_actors

    job = ray.get_runtime_context().get_job_id()
    mine = [("class_name", "=", "TrainController"), ("state", "=", "ALIVE"), ("job_id", "=", job)]
    with contextlib.suppress(Exception):  # Ray may be what has failed
        for actor in list_actors(filters=mine, detail=True):
            os.kill(actor.pid, signal.SIGKILL)
        for lane in lanes:
            lane.thread.join(timeout=10)


def _watch(desk: Any, lanes: list[Lane], display: Display, stop: threading.Event) -> None:
    """Draw the board until all lanes have ended; what a dead lane held goes to the others."""
    import ray

    alive = list(lanes)
    while not stop.wait(POLL_SECONDS):
        try:
            display.update(ray.get(desk.summary.remote(), timeout=30))
            for lane in [lane for lane in alive if not lane.thread.is_alive()]:
                ray.get(desk.release.remote(lane.name), timeout=30)
                alive.remove(lane)
            if not alive:
                errors = "; ".join(lane.error for lane in lanes if lane.error)
                ray.get(desk.close.remote(errors or "every lane has ended"), timeout=30)
                return
        except ray.exceptions.GetTimeoutError:
            continue  # a busy machine; the lanes are still to be watched
        except Exception:
            return  # Ray is going down; the driver says why


# -- cells -----------------------------------------------------------------------------------------


def cells_of(plan: Plan) -> dict[str, list[str]]:
    """Group the last steps by the pretraining that they rest on: one cell each."""
    if not plan.cells:  # a run that stops before results: its last steps, each on its own
        return {key: [key] for key, users in plan.users.items() if not users}
    cells: dict[str, list[str]] = {}
    for cell in plan.cells:
        keys = cells.setdefault(cell.steps.get("pretrain", "raw_pixels"), [])
        keys += [key for key in (cell.steps["finetune"],) if key not in keys]
    return cells


def _tune(board: Board, desk: Any, at_a_time: int, folder: Path) -> None:
    """Run the sweep: one light trial per cell that is not finished."""
    from ray import tune

    cells = [
        {"name": board.plan.steps[key].name if key in board.plan.steps else key, "steps": steps}
        for key, steps in cells_of(board.plan).items()
        if any(board.entries[step].state != "done" for step in steps)
    ]
    trainable = tune.with_resources(wait_for_cell, {"CPU": 0, "node:__internal_head__": 0.001})
    tune.Tuner(
        trainable,
        param_space={"cell": tune.grid_search(cells), "desk": desk},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_a_time, reuse_actors=True),
        run_config=tune.RunConfig(
            name="cells",
            storage_path=str(folder),
            verbose=0,
            # a trial only waits: one whose process was shot waits again
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    ).fit()


def wait_for_cell(config: dict[str, Any]) -> None:
    """Trial: wait until the steps of one cell have ended, passing their progress to Tune."""
    import ray
    from ray import tune

    keys, latest = config["cell"]["steps"], dict[str, Any]()
    while True:
        ended, error, progress = ray.get(config["desk"].status.remote(keys))
        if progress and progress != latest:
            latest = progress
            tune.report({**progress, "ended": False})
        if ended:
            break
        time.sleep(POLL_SECONDS)
    tune.report({"ended": True, "failed": bool(error), "error": error})
