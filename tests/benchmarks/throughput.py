"""Training through Ray Train against the same steps without Ray, and on two workers."""

from collections.abc import Iterator
from statistics import median

from dp4tl_ray.plan import Plan, make_plan
from dp4tl_ray.specs.study import Runtime
from tests.benchmarks.figure import Figure, figure
from tests.benchmarks.overhead import embedded_study, run_plan

WIDTH, BATCH_SIZE, EPOCHS = 32, 256, 16
"""A ResNet-9 on 8,640 images of 16 x 16, in bf16: half a minute on one core."""
SEEDS = (0, 1)
SETUPS = {"bare": (1, False), "lane_of_1": (1, True), "lane_of_2": (2, True)}
"""Name -> workers, of one thread each, and whether they are Ray's."""


def train_throughput() -> Iterator[Figure]:
    """Compare images per second, from the first batch to the last, checkpoints included.

    Each setup runs all seeds in one warm process, and a second time in reversed order.
    """
    plan = _plan()
    rates: dict[str, list[float]] = {name: [] for name in SETUPS}
    for name in (*SETUPS, *reversed(SETUPS)):
        workers, on_ray = SETUPS[name]
        runtime = Runtime(pretrain_workers=workers, lanes=1, threads_per_worker=1)
        rates[name] += _images_per_second(plan, runtime, on_ray)
    bare, one, two = (median(rates[name]) for name in SETUPS)
    unit = f"images/s, resnet9 of width {WIDTH}, batch {BATCH_SIZE}, one thread per worker"
    yield figure("lane_of_1_against_bare", one, bare, unit)
    yield figure("lane_of_2_against_lane_of_1", two, one, unit)
    for name, rate in rates.items():
        yield figure(f"spread_{name}", max(rate), min(rate), unit)


def _plan() -> Plan:
    """Plan one pretraining on the whole source per seed, and its short transfer."""
    study = embedded_study(
        ["methods=[random_classes]", "pruning_ratios=[0.0]", "targets=[held_out_letters]",
         f"seeds={list(SEEDS)}"]
    )  # fmt: skip
    (recipe,) = study.networks
    larger = recipe.model_copy(
        update={
            "network": recipe.network.model_copy(update={"width": WIDTH}),
            "batch_size": BATCH_SIZE,
            "budget": recipe.budget.model_copy(update={"epochs": EPOCHS}),
        }
    )
    return make_plan(study.model_copy(update={"pretraining": (larger,)}))


def _images_per_second(plan: Plan, runtime: Runtime, on_ray: bool) -> list[float]:
    metrics = [
        manifest.metrics
        for manifest in run_plan(plan, runtime, on_ray).manifests.values()
        if manifest.stage == "pretrain"
    ]
    return [float(m["examples_seen"] or 0) / float(m["fit_seconds"] or 0) for m in metrics]
