"""All cheap scores of a source as large as ImageNet, from memory-mapped files."""

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.selection import Scores
from dp4tl_ray.scoring.examples import score_examples
from dp4tl_ray.scoring.inputs import Clusters, Embedding, ScorerInputs
from dp4tl_ray.scoring.select import select
from dp4tl_ray.scoring.units import score_units
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.example_methods import (
    AUM,
    EL2N,
    TDDS,
    AnyExampleMethod,
    DynUnc,
    Forgetting,
    GraNd,
    Moderate,
    NormSim,
    Prototypes,
    RandomExamples,
    Uncertainty,
)
from dp4tl_ray.specs.selector import Top
from dp4tl_ray.specs.unit_methods import LabelAwareMapping, LabelMapping
from dp4tl_ray.training.recorder import Dynamics
from tests.benchmarks.figure import Figure, figure

N, C, D, T, EPOCHS, K = 1_281_167, 1_000, 512, 2_944, 16, 1_000
CHEAP: tuple[AnyExampleMethod, ...] = (
    RandomExamples(),
    EL2N(),
    GraNd(),
    Uncertainty(measure="entropy"),
    Uncertainty(measure="margin"),
    Uncertainty(measure="least_confidence"),
    Forgetting(),
    AUM(),
    DynUnc(),
    TDDS(),
    Moderate(),
    Prototypes(),
    NormSim(norm="2"),
)
"""One pass each over features, logits or histories; what compares pairs is not cheap."""


def cheap_scores() -> Iterator[Figure]:
    """Time each cheap method, in seconds against a budget of 120 for all, with the peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = _inputs(Path(folder))
        total, peak, score = 0.0, 0.0, np.zeros(N)
        for method in CHEAP:
            with Peak() as memory:
                started = time.perf_counter()
                score, _ = score_examples(method, inputs)
                seconds = time.perf_counter() - started
            total, peak = total + seconds, max(peak, memory.bytes)
            yield figure(f"score_{label(method)}", seconds, 120, "s of 120 for all")
        started = time.perf_counter()
        for unit_method in (LabelMapping(), LabelMapping(temperature=1), LabelAwareMapping()):
            score_units(unit_method, inputs)
        total += time.perf_counter() - started
        yield figure("all_cheap_scores", total, 120, "s")
        yield figure("peak_memory_above_the_mapping", peak / 2**30, 2, "GiB")
        started = time.perf_counter()
        scores = Scores(score, np.zeros(N), np.arange(N), np.zeros(N))
        for ratio in np.arange(10) / 10:
            select(
                Top(), scores, float(ratio), inputs.labels, None, np.random.default_rng(0), 2**31
            )
        yield figure("ten_ratios_from_one_score", time.perf_counter() - started, 5, "s")


class Peak:
    """Largest growth of the process's own memory while the block runs, sampled; without files."""

    def __enter__(self) -> "Peak":
        self.start, self.bytes, self.done = _own_memory(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.bytes = max(self.bytes, _own_memory() - self.start)


def _own_memory() -> float:
    """Return the anonymous memory of this process."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
    return float(line.split()[1]) * 1024


def _inputs(folder: Path) -> ScorerInputs:
    """Write a source in float16 and open it again; blocks repeat, which no method can tell."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) % C
    means = np.abs(rng.normal(size=(C, D))).astype(np.float32)
    features = _file(folder / "features.npy", D, means[:, :] + _noise(rng, (C, D)))
    logits = _file(folder / "logits.npy", C, 8 * np.eye(C, dtype=np.float32) + _noise(rng, (C, C)))
    margin = _noise(rng, (EPOCHS, N))
    target_labels = np.arange(T) % 37
    target = Embedding(
        means[target_labels] + _noise(rng, (T, D)), _noise(rng, (T, C)), target_labels
    )
    return ScorerInputs(
        labels=labels,
        num_classes=C,
        seed=0,
        source=Embedding(features, logits, labels),
        target=target,
        clusters=Clusters(means, np.arange(N) % K),
        dynamics=Dynamics(margin > 0, margin, np.exp(-np.abs(margin)), np.abs(margin[1:])),
    )


def _noise(rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    return rng.standard_normal(shape, np.float32)


def _file(path: Path, width: int, block: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Fill (N, width) with a block of rows, class after class, each a little different."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(N, width))
    for start in range(0, N, len(block)):
        rows = array[start : start + len(block)]
        rows[:] = (block * (1 + start / N))[: len(rows)]
    array.flush()
    del array
    mapped: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")
    return mapped
