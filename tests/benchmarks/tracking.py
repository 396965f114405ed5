"""What tracking costs a study, and whether the process that does it grows."""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from unittest import mock

from dp4tl_ray.specs.study import Study
from dp4tl_ray.store import open_store
from dp4tl_ray.sweep import plan_study, run_study
from dp4tl_ray.tracking.client import Client
from dp4tl_ray.tracking.messages import Answer, Curve, End, Entry, Row, Setup, Tracked
from tests.benchmarks.figure import Figure, figure
from tests.benchmarks.overhead import resident_memory
from tests.conftest import study_data, supervised, write_folder
from tests.processes import descendants

CELLS, ROUNDS = 50, 3
PRETRAIN_EPOCHS = 100
"""Some three seconds each, as little as the smallest pretrainings of a study. All transfers come
after them and take hundredths of a second here, less than it takes to end their runs: what the
study waits for is the mirror in the end."""
LATENCY = 0.04
"""Seconds from a question to its answer, as from a server some thousand kilometres away."""
RUNS, EARLY, LATE, EPOCHS = 220, 50, 200, 10
"""Memory is compared while as many runs are under way."""


def tracking_cost() -> Iterator[Figure]:
    """Compare a study of 50 cells online, offline and disabled; then 200 cells in one mirror."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _server() as url,
        mock.patch.dict(os.environ, {**_environment(folder), "WANDB_BASE_URL": url}),
    ):
        pictures = {
            "source": str(write_folder(Path(folder, "source"), range(6), 24, seed=0)),
            "target": str(write_folder(Path(folder, "target"), range(1, 4), 30, seed=1)),
        }
        modes = ("disabled", "offline", "online")
        seconds: dict[str, list[float]] = {mode: [] for mode in modes}
        processor: dict[str, list[float]] = {mode: [] for mode in modes}
        for n in range(ROUNDS):
            for mode in modes:
                before, store = _processor_seconds(), Path(folder, f"{mode}{n}")
                seconds[mode].append(_study_seconds(mode, pictures, store))
                processor[mode].append(_processor_seconds() - before)
        plain = median(seconds["disabled"])
        for mode in ("offline", "online"):
            tracked, pairs = (
                median(seconds[mode]),
                zip(seconds[mode], seconds["disabled"], strict=True),
            )
            ratios = ", ".join(f"{ours / theirs:.3f}" for ours, theirs in pairs)
            unit = f"s for {CELLS} cells vs tracking disabled (by round: {ratios})"
            yield figure(f"study_{mode}", tracked, plain, unit)
            unit = "s of wall time per cell vs the limit"
            yield figure(f"overhead_{mode}", (tracked - plain) / CELLS, 0.5, unit)
            unit = "s of a processor for mirror and client vs the study's wall time"
            yield figure(f"processor_{mode}", median(processor[mode]), plain, unit)
        yield from _mirror(Path(folder, "mirror"))


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """Start the loopback server in a process of its own; gives its address."""
    command = [sys.executable, "-m", "tests.loopback_wandb.server", str(LATENCY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def _environment(folder: str) -> dict[str, str]:
    return {
        "WANDB_API_KEY": "x" * 40,
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONFIG_DIR": f"{folder}/config",
        "WANDB_CACHE_DIR": f"{folder}/cache",
    }


def _processor_seconds() -> float:
    """Return what processes took that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _study_seconds(mode: str, pictures: dict[str, str], store: Path) -> float:
    """Run 50 cells in this process, 25 of them with pretrainings of their own."""
    data = study_data(
        pictures,
        methods=["random_classes"],
        pruning_ratios=[0.5],
        pretraining=[supervised(budget={"epochs": PRETRAIN_EPOCHS})],
        transfers=["linear_probe", "knn"],
        seeds=list(range(CELLS // 2)),
        tracking={"wandb": {"mode": mode}},
    )
    study = Study.model_validate(data)
    started = time.perf_counter()
    outcome = run_study(study, plan_study(study), open_store(str(store)), local=True)
    taken = time.perf_counter() - started
    assert len(outcome.results) == CELLS and not outcome.errors
    return taken


def _mirror(folder: Path) -> Iterator[Figure]:
    """Track cells as fast as one mirror can."""
    folder.mkdir()
    tracked: list[tuple[float, float]] = []

    def listen(answer: Answer) -> None:
        if isinstance(answer, Tracked):
            tracked.append((time.perf_counter(), _resident(client.process.pid)))

    with (folder / "log").open("wb") as log:
        client = Client(Setup("online", "bench", None, "bench", folder), log, listen)
    client.wait()
    started = time.perf_counter()
    for n in range(RUNS):
        curves = {f"step{n}": Curve("pretrain", "epoch")}
        client.send(Entry(f"cell{n}", f"cell{n}", "finetune", ("a",), {"seed": n}, curves))
        for epoch in range(EPOCHS):
            client.send(Row(f"step{n}", {"epoch": epoch, "loss": 1 / (epoch + 1)}))
        client.send(End(f"cell{n}", "done", False, {"accuracy": 0.5, "num_kept": n}))
    assert client.end() and len(tracked) == RUNS
    (_, early), (late_at, late) = tracked[EARLY - 1], tracked[LATE - 1]
    unit = "s of the mirror per cell vs the limit"
    yield figure("mirror_per_cell", (late_at - started) / LATE, 0.5, unit)
    unit = f"MiB of mirror and client after {LATE} cells vs after {EARLY}"
    yield figure("mirror_memory", late / 2**20, early / 2**20, unit)


def _resident(pid: int) -> float:
    """Return the memory of a process and of what it started."""
    return sum(map(resident_memory, [pid, *descendants(pid)]))
