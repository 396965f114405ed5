"""What a run of Weights & Biases is called and holds: one per cell, one per surrogate."""

from typing import Any

from dp4tl_ray.plan import Cell, Plan
from dp4tl_ray.results import axes_of
from dp4tl_ray.specs.base import digest, pixels_text
from dp4tl_ray.specs.records import Manifest, Result
from dp4tl_ray.specs.steps import SurrogateStep
from dp4tl_ray.specs.training import Training
from dp4tl_ray.tracking.messages import COUNT, Curve, Entry

ROLES = {"pretrain": "epoch", "finetune": COUNT}
"""What the reports of the steps of a cell are drawn over: finetuning tries many rates, whose epochs
begin at 1 each."""
LONGEST_TAG = 64


def run_id(study: str, key: str) -> str:
    """Identify a run by its study and its last step: a rerun of the study resumes it."""
    return digest({"study": study, "step": key})[:16]


def cell_entry(plan: Plan, cell: Cell) -> Entry:
    """Describe the run of a cell before anything has happened in it.

    The axes are flat, so that sweep dashboards find them; everything else is nested.
    """
    axes = axes_of(plan.study, cell)
    parts = [axes["method"], f"r{cell.pruning_ratio:g}", cell.target.dataset, f"s{cell.seed}"]
    if axes["adversarial"] != "none":
        parts.insert(2, axes["adversarial"])
    sharing = [c for c in plan.cells if c.steps.get("pretrain") == cell.steps.get("pretrain")]
    spec = {
        "source": plan.study.source,
        "surrogate": plan.study.surrogate_of(cell.method) if cell.method else None,
        "target": cell.target,
        "method": cell.method,
        "pretraining": cell.pretraining,
        "network": cell.network,
        "adversarial": cell.adversarial,
        "transfer": cell.transfer,
    }
    return Entry(
        id=run_id(plan.study.name, cell.steps["finetune"]),
        name="-".join(parts),
        job_type="finetune",
        tags=_tags(axes["method"], cell.target.dataset, axes["objective"], axes["adversarial"]),
        config={
            **axes,
            "spec": {
                name: part.model_dump(mode="json")
                for name, part in spec.items()
                if part is not None
            },
            "steps": dict(cell.steps),
            "cells_of_this_pretraining": len(sharing) if "pretrain" in cell.steps else 0,
        },
        curves={
            cell.steps[role]: Curve(role, x) for role, x in ROLES.items() if role in cell.steps
        },
    )


def surrogate_entry(plan: Plan, key: str) -> Entry | None:
    """Describe the run of a surrogate; null for weights from elsewhere, which nobody trains."""
    step = plan.steps[key]
    assert isinstance(step.spec, SurrogateStep)
    if not isinstance(step.spec.surrogate, Training):
        return None
    return Entry(
        id=run_id(plan.study.name, key),
        name=f"surrogate-{step.name}",
        job_type="surrogate",
        tags=_tags("surrogate"),
        config={"study": plan.study.name, "spec": step.spec.model_dump(mode="json"), "step": key},
        curves={key: Curve("surrogate", "epoch")},
        in_sweep=False,
    )


def _tags(*tags: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags if tag not in ("", "none")))


def summary_of(result: Result, plan: Plan, cell: Cell) -> dict[str, Any]:
    """Return what a line of results.jsonl says beyond its axes, with its accuracies in front."""
    record = result.model_dump(mode="json", exclude={*axes_of(plan.study, cell), "metrics"})
    return {**accuracies(result), **record}


def accuracies(result: Result) -> dict[str, float]:
    """Return the accuracies of a result by name, those under attack among them."""
    if result.metrics is None:
        return {}
    named = {
        "accuracy": result.metrics.accuracy,
        "mean_class_accuracy": result.metrics.mean_class_accuracy,
    }
    if result.metrics.worst_group_accuracy is not None:
        named["worst_group_accuracy"] = result.metrics.worst_group_accuracy
    for check in result.metrics.robust:
        named[robust_name(check.attack, check.norm, check.steps, check.eps)] = check.accuracy
    return named


def robust_name(attack: str, norm: str, steps: int | None, eps: float) -> str:
    """Name an accuracy under attack; the attack is not to be taken for a section by its slash."""
    facts = (attack, norm, steps, pixels_text(eps).replace("/", " of "))
    return f"robust_accuracy/{' '.join(str(fact) for fact in facts if fact is not None)}"


def manifest_summary(manifest: Manifest) -> dict[str, Any]:
    """Return what a step that has no line of results left."""
    return {**manifest.metrics, "seconds": manifest.seconds, "device": manifest.device}


def outcome_of(result: Result) -> str:
    """Tell outcomes of a cell apart."""
    return f"{result.status} {result.predictions_digest[:16]}".strip()
