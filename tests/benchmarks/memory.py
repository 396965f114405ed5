"""Whether the memory of a lane grows with the steps that it takes."""

import tempfile
from collections.abc import Iterator

import torch

from dp4tl_ray.plan import Plan, make_plan
from dp4tl_ray.runners.board import Board, tasks_of
from dp4tl_ray.runners.step import run_step
from dp4tl_ray.specs.study import Study
from dp4tl_ray.store import open_store
from dp4tl_ray.training.worker import Worker
from tests.benchmarks.figure import Figure, figure
from tests.benchmarks.overhead import resident_memory
from tests.conftest import supervised

EARLY, LATE = 50, 200


def lane_memory() -> Iterator[Figure]:
    """Compare the resident memory of this process after 200 tiny pretrainings and after 50."""
    plan = _plan()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    resident = list[float]()
    with tempfile.TemporaryDirectory() as folder:
        board, store = Board(plan, (), tasks_of(plan)), open_store(folder)
        for key, step in plan.steps.items():
            if step.stage == "pretrain" or step.name == "glyphs_and_textures":
                run_step(key, plan.steps, store, Worker(), board)
            if step.stage == "pretrain":
                resident.append(resident_memory())
    torch.set_num_threads(threads)
    if errors := board.errors():
        raise RuntimeError(next(iter(errors.values())))
    early, late = (resident[count - 1] / 2**20 for count in (EARLY, LATE))
    yield figure("lane_memory_after_200_steps", late, early, "MiB vs after 50")


def _plan() -> Plan:
    """Plan pretrainings of two networks, in turn, on a small source."""
    small = {"dataset": "glyphs_and_textures", "images_per_class": 2}
    networks = [{"arch": "resnet9", "width": width} for width in (4, 6)]
    brief = {"budget": {"epochs": 1}, "batch_size": 72, "batch_norm": {"group_size": 72}}
    study = {
        "name": "bench",
        "source": small,
        "targets": ["held_out_letters"],
        "methods": ["random_classes"],
        "pruning_ratios": [0.0],
        "pretraining": [supervised(network=n, **brief) for n in networks],
        "seeds": list(range(LATE // len(networks))),
    }
    return make_plan(Study.model_validate(study))
