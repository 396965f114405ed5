"""What a warm lane adds to a pretraining, and where the start of a lane goes."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import Any
from unittest import mock

from dp4tl_ray.plan import Plan, make_plan
from dp4tl_ray.runners.board import Board, Entry, tasks_of
from dp4tl_ray.runners.cluster import run_on_ray
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.specs.load import load_study
from dp4tl_ray.specs.records import Manifest
from dp4tl_ray.specs.study import Runtime, Study
from dp4tl_ray.store import Store, open_store
from tests.benchmarks.figure import Figure, figure

NUM_PRETRAININGS = 8
NUM_STARTS = 3
ONE_CELL = ["methods=[random_classes]", "pruning_ratios=[0.8]", "targets=[held_out_letters]"]


@dataclass(frozen=True)
class Ran:
    """A plan that was run from an empty store."""

    board: Board
    manifests: dict[str, Manifest]
    """Digest -> what the step left."""
    started: float
    """By the monotonic clock, which all processes of a machine share."""
    wall: float

    def entries(self) -> list[Entry]:
        """Return the steps in the order in which they were handed out."""
        return sorted(self.board.entries.values(), key=lambda entry: entry.taken_at)

    @property
    def first_take(self) -> float:
        """Seconds from the start until a lane took a step."""
        return self.entries()[0].taken_at - self.started

    @property
    def last_finish(self) -> float:
        """Seconds from the start until the last step was reported done."""
        return max(e.taken_at + e.seconds for e in self.board.entries.values()) - self.started


def embedded_study(changes: Sequence[str]) -> Study:
    """Return the lossless study at equal epochs, changed."""
    study = load_study(Path("experiments/embedded_lossless.yaml"), list(changes))
    epochs = next(p for p in study.networks if p.budget.epochs)
    return study.model_copy(update={"pretraining": (epochs,)})


def run_plan(plan: Plan, runtime: Runtime, on_ray: bool) -> Ran:
    """Run a plan with a trial per cell, on Ray or in this process.

    Raises:
        RuntimeError: A step failed.
    """
    with tempfile.TemporaryDirectory() as folder, Display("bench") as display:
        board, store = Board(plan, (), tasks_of(plan)), open_store(folder)
        started = time.monotonic()
        if on_ray:
            board, _ = run_on_ray(board, store, runtime, display)
        else:
            from dp4tl_ray.runners.local import run_local  # needs torch, which a driver does not

            run_local(board, store, runtime, display)
        wall = time.monotonic() - started
        if errors := board.errors():
            raise RuntimeError(next(iter(errors.values())))
        return Ran(board, _manifests(plan, store), started, wall)


def _manifests(plan: Plan, store: Store) -> dict[str, Manifest]:
    found = {key: store.find(step) for key, step in plan.steps.items()}
    return {key: artifact.manifest for key, artifact in found.items() if artifact is not None}


@contextlib.contextmanager
def timed(*targets: str) -> Iterator[dict[str, tuple[float, float]]]:
    """Note when some functions, named as for `mock.patch`, were first called and returned.

    Gives target -> both moments by the monotonic clock.
    """
    moments: dict[str, tuple[float, float]] = {}

    def watched(target: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            started = time.monotonic()
            try:
                return function(*args, **options)
            finally:
                moments.setdefault(target, (started, time.monotonic()))

        return call

    with contextlib.ExitStack() as stack:
        for target in targets:
            stack.enter_context(mock.patch(target, watched(target, resolve_name(target))))
        yield moments


def resident_memory(pid: int | str = "self", peak: bool = False) -> float:
    """Return the resident memory of a process, in bytes."""
    name = "VmHWM" if peak else "VmRSS"
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def lane_overhead() -> Iterator[Figure]:
    """Compare the same pretrainings in a warm lane of one worker and in this process.

    Per pretraining: from being handed out to its artifact being reported done; medians over all but
    the first, which warms up.
    """
    study = embedded_study(
        [*ONE_CELL, f"seeds={list(range(NUM_PRETRAININGS))}", "runtime={lanes: 1}"]
    )
    plan = make_plan(study)
    here, lane = (run_plan(plan, study.runtime, on_ray) for on_ray in (False, True))
    local, ray = (
        [entry.seconds for entry in ran.entries() if entry.step.stage == "pretrain"]
        for ran in (here, lane)
    )
    yield figure("seconds_per_pretraining_in_a_warm_lane", median(ray[1:]), median(local[1:]), "s")
    yield figure("overhead_per_pretraining", median(ray[1:]) - median(local[1:]), 1.0, "s")
    yield figure("sweep_wall_time_with_start", lane.wall, here.wall, "s")


RAY_IS_UP = "dp4tl_ray.runners.cluster._run"
"""Called between the start and the end of Ray."""
OPEN_DESK = "dp4tl_ray.runners.cluster.open_desk"
PREFLIGHT = "dp4tl_ray.runners.preflight.check_nodes"
LANE, LANE_LOOP = "dp4tl_ray.runners.fleet.Lane", "dp4tl_ray.runners.lane.lane_loop"
LANES_END = "dp4tl_ray.runners.fleet.Fleet.end"


def lane_start() -> Iterator[Figure]:
    """Time the parts of a start of Ray and of one lane, one after the other, and of the end.

    Each against the whole start, in fresh drivers. For comparison, what one process takes to import
    what a worker imports; a start has two such processes one after the other, Train's controller
    and the worker.
    """
    starts = [in_a_process("tests.benchmarks.overhead") for _ in range(NUM_STARTS)]
    parts = {name: median(start[name] for start in starts) for name in starts[0]}
    imports = median(_import_seconds("ray.train.torch") for _ in range(NUM_STARTS))
    for name, seconds in parts.items():
        yield figure(f"lane_start_{name}", seconds, parts["all"], "s of the start")
    yield figure("import_of_torch_and_ray_train", imports, parts["all"], "s of the start")


def in_a_process(module: str, *args: str) -> dict[str, float]:
    """Run a module in a process of its own; returns the JSON that it prints last."""
    done = subprocess.run([sys.executable, "-m", module, *args], stdout=subprocess.PIPE, check=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def _parts_of_a_start() -> dict[str, float]:
    """Run one cell in one lane; returns name -> seconds."""
    from dp4tl_ray.runners.lane import lane_loop

    study = embedded_study([*ONE_CELL, "seeds=[0]", "runtime={lanes: 1}"])
    with tempfile.TemporaryDirectory() as folder:
        entered = Path(folder) / "entered"

        # a local function travels by value: the worker need not import the benchmarks
        def stamped(config: dict[str, Any]) -> None:
            entered.write_text(str(time.monotonic()))
            lane_loop(config)

        watched = (RAY_IS_UP, OPEN_DESK, PREFLIGHT, LANE, LANES_END)
        with mock.patch(LANE_LOOP, stamped), timed(*watched) as at:
            ran = run_plan(make_plan(study), study.runtime, on_ray=True)
        in_loop = float(entered.read_text())
    return {
        "ray": at[RAY_IS_UP][0] - ran.started,
        "import_of_tune": at[OPEN_DESK][0] - at[RAY_IS_UP][0],
        "desk_and_preflight": at[PREFLIGHT][1] - at[OPEN_DESK][0],
        "import_of_train": at[LANE][1] - at[PREFLIGHT][1],
        "train_until_the_loop": in_loop - at[LANE][1],
        "loop_until_the_first_step": ran.first_take + ran.started - in_loop,
        "all": ran.first_take,
        "end_of_lanes": at[LANES_END][1] - at[LANES_END][0],
        "end_of_ray": ran.started + ran.wall - at[RAY_IS_UP][1],
        "from_last_step_to_end": ran.wall - ran.last_finish,
    }


def _import_seconds(module: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(_parts_of_a_start()))
