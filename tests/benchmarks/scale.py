"""Board, desk, fleet, trials and driver under many lanes and cells, on a cluster of fake GPUs.

Only the lanes are played: by actors that sleep and leave small artifacts, because Train runs for
64 GPUs do not fit on one machine.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from dp4tl_ray.plan import Plan, PlannedStep, make_plan
from dp4tl_ray.runners.board import Board, tasks_of
from dp4tl_ray.runners.cluster import run_on_ray
from dp4tl_ray.runners.desk import RemoteDesk
from dp4tl_ray.runners.lane import POLL_SECONDS
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.runners.status import StatusFile
from dp4tl_ray.specs.study import Runtime, Study
from dp4tl_ray.store import Store, open_store
from tests.benchmarks.bound import critical_path
from tests.benchmarks.figure import Figure, figure
from tests.benchmarks.overhead import in_a_process, resident_memory

NODES, GPUS_PER_NODE = 8, 8
FEW, MANY = 100, 1_000
"""Cells."""
CELLS_PER_SEED = 10
RUNTIME = Runtime(device="cpu", worker_resources={"GPU": 1.0})
SECONDS = {"pretrain": 1.0, "surrogate": 0.5}
OTHER_SECONDS = 0.2

Told = dict[str, float]


def scale() -> Iterator[Figure]:
    """Compare what a cell costs a study of 1,000 cells with what it costs one of 100."""
    few, many = _on_a_cluster(NODES, (FEW, MANY))
    each = {name: (many[name] / MANY, few[name] / FEW) for name in many}
    further = {name: (many[name] - few[name]) / (MANY - FEW) for name in many}
    for name, unit in {
        "driver_cpu_seconds": "s per cell",
        "desk_cpu_seconds": "s per cell",
        "wall_seconds_beyond_sleep": "s per cell",
        "ray_folder_kib": "KiB per cell",
    }.items():
        yield figure(name, *each[name], f"{unit}, 1,000 vs 100 cells")
        yield figure(f"{name}_of_further_cells", further[name], each[name][1], f"{unit} vs at 100")
    for name in ("driver_mib", "desk_mib"):
        yield figure(name, many[name], few[name], "MiB at peak, 1,000 vs 100 cells")
    yield figure("lanes_at_work", many["lanes"], few["lanes"], "lanes, 1,000 vs 100 cells")


def _on_a_cluster(num_nodes: int, sizes: Sequence[int]) -> list[Told]:
    """Run studies of some sizes, each with a driver of its own, on a cluster that all share."""
    with mock.patch.dict(os.environ, {"RAY_AUTH_MODE": "disabled"}):
        from ray.cluster_utils import Cluster

        # no port: another Ray on this machine may have taken the usual one
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": None}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(num_nodes):
                cluster.add_node(num_cpus=GPUS_PER_NODE, num_gpus=GPUS_PER_NODE)
            os.environ["RAY_ADDRESS"] = cluster.address
            return [_in_a_driver(num_cells) for num_cells in sizes]
        finally:
            cluster.shutdown()


def _in_a_driver(num_cells: int) -> Told:
    with tempfile.TemporaryDirectory() as folder:
        return in_a_process("tests.benchmarks.scale", str(num_cells), folder)


# -- the driver ------------------------------------------------------------------------------------


def drive(num_cells: int, folder: str) -> Told:
    """Run a study of sleeping steps on the cluster at RAY_ADDRESS; returns what it cost.

    The driver's cost is counted from the first step that a lane has taken, when the trials begin.
    """
    plan, store = _plan(num_cells), open_store(folder)
    told: Told = {}
    with (
        mock.patch("dp4tl_ray.runners.fleet.Lane", SleepingLane),
        mock.patch("dp4tl_ray.runners.trials.run_trials", _counted(told)),
        Display("bench", StatusFile(Path(folder) / "status.json", store.publish)) as display,
    ):
        board, lines = run_on_ray(Board(plan, (), tasks_of(plan)), store, RUNTIME, display)
    if len(lines) != num_cells or board.errors():
        raise RuntimeError(f"{len(lines)} of {num_cells} cells ended: {board.errors()}")
    slept = {key: sleep_seconds(step) for key, step in plan.steps.items()}
    lanes = {entry.lane for entry in board.entries.values()}
    least = max(sum(slept.values()) / len(lanes), critical_path(plan, slept))
    entries = board.entries.values()
    wall = max(e.taken_at + e.seconds for e in entries) - min(e.taken_at for e in entries)
    return told | {
        "wall_seconds_beyond_sleep": wall - least,
        "lanes": len(lanes),
        "driver_mib": resident_memory(peak=True) / 2**20,
    }


def _counted(told: Told) -> Any:
    """Return `run_trials`, which notes what it and the lanes' watcher cost the driver."""
    from dp4tl_ray.runners.trials import run_trials

    def run(*args: Any) -> Any:
        _, desk, _, _, _, folder, *_ = args
        before = time.process_time()
        lines = run_trials(*args)
        told["driver_cpu_seconds"] = time.process_time() - before
        told["ray_folder_kib"] = sum(p.stat().st_size for p in folder.rglob("*")) / 2**10
        pid = _pid(desk)
        told["desk_mib"] = resident_memory(pid, peak=True) / 2**20
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        told["desk_cpu_seconds"] = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        return lines

    return run


def _pid(actor: Any) -> int:
    """Return the process of an actor of this machine."""
    import ray
    from ray.util.state import get_actor

    address = ray.get_runtime_context().gcs_address
    return int(get_actor(actor._actor_id.hex(), address=address).pid)


def _plan(num_cells: int) -> Plan:
    study = {
        "name": "bench",
        "source": "glyphs_and_textures",
        "targets": ["held_out_letters", "held_out_textures"],
        "methods": ["label_mapping", "random_classes"],
        "pruning_ratios": [0.0, 0.5, 0.8],
        "pretraining": ["supervised"],
        "seeds": list(range(num_cells // CELLS_PER_SEED)),
    }
    plan = make_plan(Study.model_validate(study))
    assert len(plan.cells) == num_cells
    return plan


# -- played lanes ----------------------------------------------------------------------------------


def sleep_seconds(step: PlannedStep) -> float:
    """Return how long a step sleeps."""
    return SECONDS.get(step.stage, OTHER_SECONDS)


class SleepingLane:
    """An actor in place of a Train run; like `Lane` to the fleet."""

    def __init__(
        self,
        name: str,
        desk: Any,
        store: str,
        runtime: Runtime,
        single: bool,
        worker: dict[str, float],
        folder: Path | str,
        max_restarts: int,
    ) -> None:
        import ray

        self.name, self.single, self.workers, self.error = name, single, 1, ""
        sleeper = ray.remote(num_cpus=worker["CPU"], num_gpus=worker["GPU"])(Sleeper)
        self.actor = sleeper.remote()
        ended = self.actor.run.remote(name, desk, store)
        self.thread = threading.Thread(target=ray.wait, args=([ended],), daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.thread.is_alive()


class Sleeper:
    """Takes step after step as `lane_loop` does, sleeps, and leaves what a cell's line needs."""

    def run(self, lane: str, actor: Any, uri: str) -> None:
        """Sleep through steps until there are none."""
        import ray

        desk, store, pause = RemoteDesk(actor), open_store(uri), 0.01
        steps = ray.get(ray.get(actor.plan.remote())).steps
        node = ray.get_runtime_context().get_node_id()
        while (keys := ray.get(actor.take.remote(lane, 1, False, [node]))) is not None:
            for key in keys:
                desk.progress(key, {"epoch": 1, "step": 1, "steps": 2, "loss": 1.0})
                time.sleep(sleep_seconds(steps[key]))
                leave_artifact(steps[key], store)
                desk.finish(key)
            if not keys:
                time.sleep(pause)
            pause = 0.01 if keys else min(2 * pause, POLL_SECONDS)


def leave_artifact(step: PlannedStep, store: Store) -> None:
    """Finish a step with small files and facts that serve any stage."""
    with store.lease(step) as lease:
        bench = store.workbench(step, lease)
        bench.array("kept_indices", np.arange(8))
        bench.array("test_predictions", np.arange(8))
        counts = dict.fromkeys(("num_examples", "num_classes", "num_kept", "num_classes_kept"), 8)
        shares = dict.fromkeys(("accuracy", "mean_class_accuracy", "val_accuracy"), 0.5)
        facts = {"seconds": 1.0, "device": "none", "num_workers": 1, "versions": {}}
        store.finish(step, bench, lease, {**facts, "metrics": counts | shares})


if __name__ == "__main__":
    # what Ray pickles by its name must not be found in __main__
    from tests.benchmarks import scale as module

    print(json.dumps(module.drive(int(sys.argv[1]), sys.argv[2])))
