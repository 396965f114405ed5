"""Weights & Biases: a mirror of results.jsonl, one run per cell. The only import of wandb."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dp4tl_ray.specs.base import digest
from dp4tl_ray.specs.records import Result
from dp4tl_ray.specs.study import Wandb

log = logging.getLogger("dp4tl")

AXES = (
    "source", "target", "method", "pruning_ratio", "objective", "pretraining", "adversarial",
    "network", "budget", "transfer", "seed",
)  # fmt: skip
"""Fields of a result that a dashboard sweeps over."""


def track(results: Iterable[Result], spec: Wandb, folder: Path) -> int:
    """Write one run per result that has none yet; returns how many were written.

    A run's id is the identity of its result, so that a rerun of the study adds only what is new.
    Weights & Biases being unreachable never loses or stops a study: results.jsonl is the truth.

    Args:
        results: Lines of results.jsonl.
        spec: Mode, project and entity.
        folder: Where offline runs are written, in a subfolder `wandb`.
    """
    if spec.mode == "disabled":
        return 0
    new = {run_id(r): r for r in results}
    tracked = folder / "wandb" / "tracked.txt"
    known = set(tracked.read_text().split()) if tracked.exists() else set()
    new = {key: r for key, r in new.items() if f"{spec.mode}:{key}" not in known}
    if not new:
        return 0
    try:
        return _write(new, spec, folder, tracked)
    except Exception as error:  # wandb raises many kinds; none of them may cost a result
        log.warning("Weights & Biases (%s) failed: %s; results.jsonl is whole", spec.mode, error)
        return 0


def run_id(result: Result) -> str:
    """Identify a result: a changed outcome is a new run, a rerun is the same one."""
    return digest(
        result.model_dump(mode="json", include={*AXES, "study", "status", "predictions_digest"})
    )[:16]


def _write(new: Mapping[str, Result], spec: Wandb, folder: Path, tracked: Path) -> int:
    import wandb

    tracked.parent.mkdir(parents=True, exist_ok=True)
    for key, result in new.items():
        run = wandb.init(
            id=key,
            name=f"{result.method}-r{result.pruning_ratio:g}-{result.target}-s{result.seed}",
            project=spec.project,
            entity=spec.entity,
            group=result.study,
            job_type="finetune",
            config=_config(result),
            dir=folder,
            mode=spec.mode,
            resume="allow" if spec.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False
            ),
        )
        run.summary.update(_summary(result))
        run.finish(exit_code=0 if result.status == "done" else 1)
        with tracked.open("a") as file:
            file.write(f"{spec.mode}:{key}\n")
    wandb.teardown()
    return len(new)


def _config(result: Result) -> dict[str, Any]:
    return result.model_dump(mode="json", include=set(AXES))


def _summary(result: Result) -> dict[str, Any]:
    record = result.model_dump(mode="json", exclude={*AXES, "study", "metrics"})
    return {**record, **(result.metrics.model_dump() if result.metrics else {})}
