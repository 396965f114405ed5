"""The paper's claim at its simplest: pretraining on a fifth of the source against all of it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from dp4tl_ray.specs.load import load_study
from dp4tl_ray.store import open_store
from dp4tl_ray.sweep import plan_study, run_study
from tests.benchmarks.figure import Figure, figure


def pretraining_speedup() -> Iterator[Figure]:
    """Time whole pretraining steps, building and saving included, of the lossless study."""
    study = load_study(
        Path("experiments/embedded_lossless.yaml"),
        ["methods=[random_classes]", "pruning_ratios=[0.0, 0.8]", "targets=[held_out_letters]",
         "seeds=[0, 1, 2]"],
    )  # fmt: skip
    epochs = next(p for p in study.networks if p.budget.epochs)
    study = study.model_copy(update={"pretraining": (epochs,)})
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_study(study, plan_study(study), open_store(folder), local=True)
    seconds = {
        ratio: median(r.pretrain_seconds for r in outcome.results if r.pruning_ratio == ratio)
        for ratio in (0.0, 0.8)
    }
    # ours: how much faster; reference: the physical limit
    yield figure("pretraining_speedup_at_0.8", seconds[0.0] / seconds[0.8], 5.0, "x")
