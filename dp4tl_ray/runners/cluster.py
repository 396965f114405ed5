"""Run a plan on Ray: Tune decides which cells run, Train does the work, the store joins them.

One Tune trial is one cell: a light function on the head that waits for its steps. Lanes do the
work: a lane is ONE Train run whose workers take step after step from the board until there are
none, because starting a Train run costs half a minute and a warm lane nothing. No trial ever waits
inside Train, which would leak placement groups.
"""

import logging
import shutil
import threading
import uuid
from pathlib import Path
from typing import Any

from dp4tl_ray.runners.admission import InfeasibleError
from dp4tl_ray.runners.board import Board, More
from dp4tl_ray.runners.desk import open_desk
from dp4tl_ray.runners.fleet import Fleet
from dp4tl_ray.runners.journal import Follower
from dp4tl_ray.runners.lane import POLL_SECONDS
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.runners.session import quiet, ray_session
from dp4tl_ray.specs.records import Result
from dp4tl_ray.specs.study import Runtime
from dp4tl_ray.store import Store

MAX_TRIALS = 16
"""Trials that wait at a time: each is a process on the head, and the lanes do not need them."""


def run_on_ray(
    board: Board,
    store: Store,
    runtime: Runtime,
    display: Display,
    more: More | None = None,
    scheduler: Any = None,
    follower: Follower | None = None,
) -> tuple[Board, list[Result]]:
    """Run every step of a board on Ray.

    Uses the cluster that RAY_ADDRESS names, else starts Ray on this machine and ends it again.

    Args:
        board: What is to do.
        store: Where artifacts are and go.
        runtime: How wide to run.
        display: Shows the progress.
        more: Asked for cells to add as others end.
        scheduler: A scheduler of Ray Tune, which may stop cells; null stops none.
        follower: Told what happens to the steps.

    Returns:
        The board as it ended, and the lines of Tune's `ResultGrid`.

    Raises:
        InfeasibleError: The lanes do not fit; said with the arithmetic, before any work.
    """
    run_folder = store.root / "ray" / uuid.uuid4().hex[:8]
    run_folder.mkdir(parents=True)
    try:
        with quiet(run_folder / "ray.log"), ray_session():
            ended = _run(board, store, runtime, display, run_folder, more, scheduler, follower)
    except (KeyboardInterrupt, InfeasibleError):
        shutil.rmtree(run_folder, ignore_errors=True)
        raise  # after any other error the log stays, for whoever has to find out
    shutil.rmtree(run_folder, ignore_errors=True)
    return ended


def _run(
    board: Board,
    store: Store,
    runtime: Runtime,
    display: Display,
    run_folder: Path,
    more: More | None,
    scheduler: Any,
    follower: Follower | None,
) -> tuple[Board, list[Result]]:
    """Start board and lanes, run the trials, and wait for the lanes to end."""
    import ray

    from dp4tl_ray.runners.preflight import check_nodes
    from dp4tl_ray.runners.trials import run_trials

    board.expecting = more is not None
    desk, name = open_desk(board)
    fleet = Fleet(desk, store.uri, runtime, run_folder, len(board.open))
    if problems := check_nodes(store.uri, gpus=fleet.cuda):
        raise InfeasibleError("\n".join(problems))
    width = fleet.formation.lanes * runtime.pretrain_workers + fleet.formation.single_lanes
    at_a_time = min(max(4, 2 * width), MAX_TRIALS)
    stop, working = threading.Event(), threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(fleet, display, stop, working, follower), daemon=True
    )
    watcher.start()
    try:
        fleet.ask_for_nodes()
        # lanes and trials start processes that import much: on a small machine the trials, which
        # only wait for the lanes, would hold them up
        working.wait()
        lines = run_trials(board, desk, name, store.uri, at_a_time, run_folder, more, scheduler)
        watcher.join()  # whatever became of the trials, the lanes have finished the board
    except BaseException:
        stop.set()
        fleet.end(seconds=0)
        raise
    finally:
        stop.set()
        watcher.join()
    fleet.end(seconds=60)
    ended: Board = ray.get(desk.board.remote())
    if follower is not None:
        follower.hear(ended.news)
    return ended, lines


def _watch(
    fleet: Fleet,
    display: Display,
    stop: threading.Event,
    working: threading.Event,
    follower: Follower | None,
) -> None:
    """Look after the lanes and draw the board until nothing is left to do."""
    import ray

    while not stop.wait(POLL_SECONDS):
        try:
            summary = fleet.tick()
            if summary is None:
                break
            display.update(summary, len(fleet.lanes), fleet.note)
            if follower is not None:
                follower.hear(lambda heard: ray.get(fleet.desk.news.remote(heard), timeout=30))
            if summary.running or summary.over:
                working.set()
        except ray.exceptions.GetTimeoutError:
            continue  # a busy machine; the lanes are still to be watched
        except Exception:
            logging.getLogger("dp4tl").exception("the lanes are no longer watched")
            break  # Ray is going down; the driver says why
    working.set()
