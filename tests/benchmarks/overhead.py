"""What a warm lane adds to a pretraining, and what starting Ray and a lane costs."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from dp4tl_ray.plan import make_plan
from dp4tl_ray.runners.board import Board
from dp4tl_ray.runners.cluster import run_on_ray
from dp4tl_ray.runners.local import run_local
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.specs.load import load_study
from dp4tl_ray.store import Store
from tests.benchmarks.figure import Figure, figure

NUM_PRETRAININGS = 8


def lane_overhead() -> Iterator[Figure]:
    """Compare the same pretrainings in a warm lane of one worker and in this process.

    Per pretraining: from being handed out to its artifact being reported done; medians over all but
    the first, which warms up.
    """
    study = load_study(
        Path("experiments/embedded_lossless.yaml"),
        ["methods=[random_classes]", "pruning_ratios=[0.8]", "targets=[held_out_letters]",
         f"seeds={list(range(NUM_PRETRAININGS))}", "runtime={lanes: 1}"],
    )  # fmt: skip
    epochs = next(p for p in study.networks if p.budget.epochs)
    plan = make_plan(study.model_copy(update={"pretraining": (epochs,)}))
    boards, walls = [], []
    for run in (run_local, run_on_ray):
        with tempfile.TemporaryDirectory() as folder, Display("bench") as display:
            started = time.perf_counter()
            board = Board(plan, ())
            ended = run(board, Store(Path(folder)), study.runtime, display)
            walls.append(time.perf_counter() - started)
            boards.append(ended or board)
    local, ray = (_pretrain_seconds(board) for board in boards)
    yield figure("seconds_per_pretraining_in_a_warm_lane", median(ray[1:]), median(local[1:]), "s")
    yield figure("overhead_per_pretraining", median(ray[1:]) - median(local[1:]), 1.0, "s")
    yield figure("sweep_wall_time_with_start", walls[1], walls[0], "s")


def _pretrain_seconds(board: Board) -> list[float]:
    entries = [e for e in board.entries.values() if e.step.stage == "pretrain"]
    return [e.seconds for e in sorted(entries, key=lambda e: e.taken_at)]
