"""The summary run of a study: its results as a table, curves, histograms and pictures."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from dp4tl_ray.plan import Plan
from dp4tl_ray.specs.base import digest, label
from dp4tl_ray.specs.records import Result
from dp4tl_ray.store import Store
from dp4tl_ray.tracking.entries import accuracies, run_id
from dp4tl_ray.tracking.messages import Entry, Histogram, Lines, Overview

BINS = 64
MAX_HISTOGRAMS = 48
LONGEST = 60
"""Characters of the name of a chart; the client's own limit counts more than them."""


def overview(plan: Plan, store: Store, results: Sequence[Result], folder: Path) -> Overview:
    """Describe the summary run.

    Args:
        plan: Of the study.
        store: Where the scores are.
        results: Lines of results.jsonl.
        folder: Where the report's pictures are.
    """
    study = plan.study
    entry = Entry(
        id=run_id(study.name, "summary"),
        name=f"{study.name}-summary",
        job_type="summary",
        tags=("summary",),
        config={"study": study.model_dump(mode="json", exclude={"tracking"})},
        in_sweep=False,
    )
    lines = [{**_flat(result), **accuracies(result)} for result in results]
    columns = tuple(dict.fromkeys(name for line in lines for name in line))
    rows = tuple(tuple(line.get(name) for name in columns) for line in lines)
    pictures = tuple(sorted(folder.glob("*.png")))
    state = [r.model_dump(mode="json") for r in results]
    return Overview(
        entry, digest(state)[:16], columns, rows, curves(results), histograms(plan, store), pictures
    )


def _flat(result: Result) -> dict[str, str | float | int | None]:
    """Return the plain fields of a result."""
    record = result.model_dump(mode="json", exclude={"metrics"})
    return {name: str(v) if isinstance(v, dict | list) else v for name, v in record.items()}


def curves(results: Sequence[Result]) -> dict[str, Lines]:
    """Return accuracy over ratio, a mean over seeds, for every target and way to pretrain.

    Every curve begins at the full source.
    """
    cells: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for r in results:
        if r.metrics is not None and r.budget:
            parts = (r.target, r.pretraining, r.adversarial, r.transfer)
            cells[title_of(*parts)][r.method][r.pruning_ratio].append(r.metrics.accuracy)
    found: dict[str, Lines] = {}
    for title, methods in cells.items():
        full = methods.pop("none", {})
        lines = {name: sorted({**full, **points}.items()) for name, points in methods.items()}
        xs = [[ratio for ratio, _ in line] for line in lines.values()]
        ys = [[fmean(values) for _, values in line] for line in lines.values()]
        if lines:
            found[title] = xs, ys, [*lines]
    return found


def title_of(*parts: str) -> str:
    """Name a chart by some labels, without their details where it would be too long."""
    full = " ".join(part for part in parts if part != "none")
    if len(full) <= LONGEST:
        return full
    names = (part.partition("(")[0] for part in parts if part != "none")
    return f"{' '.join(names)[:LONGEST]} {digest(full)[:4]}"


def histograms(plan: Plan, store: Store) -> dict[str, Histogram]:
    """Return how the scores are spread, for every method and target, of the first seed."""
    found: dict[str, Histogram] = {}
    for cell in plan.cells:
        if cell.method is None or cell.seed != plan.study.seeds[0] or len(found) >= MAX_HISTOGRAMS:
            continue
        name = title_of(label(cell.method), label(cell.target))
        if name not in found and (artifact := store.find(plan.steps[cell.steps["score"]])):
            scores = np.asarray(artifact.array("score_U"), np.float64)
            counts, edges = np.histogram(scores[np.isfinite(scores)], BINS)
            found[name] = counts.tolist(), edges.tolist()
    return found
