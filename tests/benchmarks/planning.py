"""The plan: what sharing saves, and what planning costs."""

import time
from collections.abc import Iterator
from typing import Any

from dp4tl_ray.plan import make_plan
from dp4tl_ray.specs.study import Study
from tests.benchmarks.figure import Figure, figure
from tests.test_plan import AGNOSTIC, AWARE


def _study(methods: list[Any], num_targets: int, num_seeds: int) -> Study:
    return Study.model_validate(
        {
            "name": "bench",
            "source": "glyphs_and_textures",
            "targets": [
                {"dataset": "held_out_letters", "shots": n + 1} for n in range(num_targets)
            ],
            "methods": methods,
            "pruning_ratios": [i / 10 for i in range(10)],
            "pretraining": ["supervised"],
            "seeds": list(range(num_seeds)),
        }
    )


def sharing() -> Iterator[Figure]:
    """Count the pretrainings of 6 methods x 10 ratios x 8 targets, shared against naive."""
    plan = make_plan(_study(AGNOSTIC + AWARE, 8, 1))
    yield figure(
        "pretrainings_shared", plan.unique()["pretrain"], plan.naive["pretrain"], "pretrainings"
    )


def plan_size() -> Iterator[Figure]:
    """Time planning 10,000 cells against 1,000."""
    seconds = []
    for num_seeds in (50, 5):
        study = _study(AGNOSTIC[:2] + AWARE, 5, num_seeds)
        started = time.perf_counter()
        make_plan(study)
        seconds.append(time.perf_counter() - started)
    yield figure("plan_10000_cells_against_1000", seconds[0], seconds[1], "s")
