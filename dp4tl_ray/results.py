"""Manifests -> lines of results.jsonl: every number that is reported anywhere is in one of them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dp4tl_ray.atomic import write_text
from dp4tl_ray.plan import Cell, Plan
from dp4tl_ray.specs.adversarial import PGDRobustness, relative_cost, robust_key
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.method import for_one_target
from dp4tl_ray.specs.pretraining import Pretrained
from dp4tl_ray.specs.records import Hyperparameters, Manifest, Metrics, Result, RobustAccuracy
from dp4tl_ray.specs.steps import SurrogateStep
from dp4tl_ray.specs.study import Study
from dp4tl_ray.specs.training import Training
from dp4tl_ray.store import Artifact, Store

log = logging.getLogger("dp4tl")

PREDICTIONS, ATTACKED = "test_predictions.npy", "attacked_predictions.npy"


def collect(plan: Plan, store: Store, errors: Mapping[str, str]) -> list[Result]:
    """Return a result for every cell whose transfer is done, and for every cell that failed.

    Args:
        plan: Cells and their steps.
        store: Where the artifacts are.
        errors: Digest -> reason of the steps that failed.
    """
    done = store.finished(plan.steps.values())  # one look for all of them
    ended = [cell for cell in plan.cells if cell.steps["finetune"] in done | errors.keys()]
    lines = (result_of(plan, store, cell, errors.get(cell.steps["finetune"], "")) for cell in ended)
    return [line for line in lines if line is not None]


def result_of(plan: Plan, store: Store, cell: Cell, error: str) -> Result | None:
    """Return the line of one cell, if its transfer is done or has failed."""
    found = {role: store.find(plan.steps[key]) for role, key in cell.steps.items()}
    artifacts = {role: artifact for role, artifact in found.items() if artifact is not None}
    if "finetune" in artifacts or error:
        return _result(plan, store, cell, artifacts, error)
    return None


def failures(plan: Plan, store: Store) -> dict[str, str]:
    """Return digest -> reason of the steps that failed when last tried, or need one that did."""
    errors: dict[str, str] = {}
    done = store.finished(plan.steps.values())
    noted = store.failures(step for key, step in plan.steps.items() if key not in done)
    for key, step in plan.steps.items():
        if key not in done:
            inherited = (errors[used] for used in step.inputs.values() if used in errors)
            if error := noted.get(key) or next(inherited, ""):
                errors[key] = error
    return errors


def _result(
    plan: Plan, store: Store, cell: Cell, artifacts: Mapping[str, Artifact], error: str
) -> Result:
    manifests = {role: artifact.manifest for role, artifact in artifacts.items()}
    recipe = cell.pretraining if isinstance(cell.pretraining, Training) else None
    pretrain = manifests.get("pretrain")
    transfer = manifests.get("finetune")
    done = transfer is not None
    subset = plan.closure(cell.steps["prune"]) if "prune" in cell.steps else frozenset[str]()
    surrogate = {key for key in subset if plan.steps[key].stage == "surrogate"}
    # all that choosing took; for `counterfactual` that is many pretrainings
    scoring = {key for key in subset - surrogate if plan.steps[key].stage != "data"}
    return Result(
        **axes_of(plan.study, cell),
        optimizer_steps=int(_metric(pretrain, "optimizer_steps")),
        examples_seen=int(_metric(pretrain, "examples_seen")),
        step_cost=relative_cost(cell.adversarial),
        transfer_hyperparameters=_hyperparameters(transfer),
        surrogate_seed=_pinned(plan, surrogate),
        metrics=Metrics(
            accuracy=_metric(transfer, "accuracy"),
            mean_class_accuracy=_metric(transfer, "mean_class_accuracy"),
            worst_group_accuracy=_optional(transfer, "worst_group_accuracy"),
            robust=_robust(plan, transfer),
        )
        if done
        else None,
        val_accuracy=_optional(transfer, "val_accuracy"),
        surrogate_seconds=_seconds(plan, store, surrogate),
        score_seconds=_seconds(plan, store, scoring),
        pretrain_seconds=pretrain.seconds if pretrain else 0.0,
        transfer_seconds=transfer.seconds if transfer else 0.0,
        device_seconds=pretrain.seconds * pretrain.num_workers if pretrain else 0.0,
        device=pretrain.device if pretrain else "",
        precision=recipe.precision if recipe else "",
        num_workers=pretrain.num_workers if pretrain else 0,
        alarms=_alarms(plan, store, manifests, surrogate),
        status="done" if done else "failed",
        error="" if done else error,
        surrogate_digest=next(iter(surrogate), ""),
        pretrain_digest=cell.steps.get("pretrain", ""),
        predictions_digest=_checksum(transfer, PREDICTIONS),
        attacked_digest=_checksum(transfer, ATTACKED),
        **_subset(manifests, recipe is not None),
    )


def axes_of(study: Study, cell: Cell) -> dict[str, Any]:
    """Return what a result says about the place of its cell in the study."""
    pretraining = cell.pretraining
    return {
        "study": study.name,
        "source": label(study.source),
        "target": label(cell.target),
        "method": label(cell.method) if cell.method else "none",
        "own_method": label(for_one_target(cell.method)) if cell.method else "none",
        "pruning_ratio": cell.pruning_ratio,
        "objective": pretraining.objective,
        "pretraining": label(pretraining),
        "adversarial": label(cell.adversarial),
        "network": label(cell.network) if cell.network else "",
        "budget": _budget(pretraining if isinstance(pretraining, Training) else None),
        "transfer": label(cell.transfer),
        "seed": cell.seed,
    }


def _checksum(manifest: Manifest | None, name: str) -> str:
    return manifest.files[name].sha256 if manifest and name in manifest.files else ""


def _robust(plan: Plan, transfer: Manifest | None) -> tuple[RobustAccuracy, ...]:
    """Read the accuracies under attack; none of a transfer that cannot be attacked."""
    return tuple(
        RobustAccuracy(
            attack=check.attack,
            norm=check.norm,
            eps=eps,
            steps=check.steps if isinstance(check, PGDRobustness) else None,
            accuracy=accuracy,
        )
        for check in plan.study.robustness
        for eps in sorted(check.eps)
        if (accuracy := _optional(transfer, robust_key(check, eps))) is not None
    )


def _hyperparameters(transfer: Manifest | None) -> Hyperparameters:
    recorded = transfer.metrics if transfer else {}
    known = {name: recorded[name] for name in Hyperparameters.model_fields if name in recorded}
    return Hyperparameters.model_validate(known)


def _pinned(plan: Plan, surrogates: Iterable[str]) -> int | None:
    """Return the seed that all repetitions score by; null where each has a surrogate of its own."""
    for key in surrogates:
        spec = plan.steps[key].spec
        assert isinstance(spec, SurrogateStep)
        if plan.study.surrogate_seed is not None or isinstance(spec.surrogate, Pretrained):
            return spec.seed
    return None


def _alarms(
    plan: Plan, store: Store, manifests: Mapping[str, Manifest], surrogates: Iterable[str]
) -> tuple[str, ...]:
    """Collect what steps that ended well have to say against themselves."""
    named = {
        "source": "source",
        "target": "target",
        "pretraining": "pretrain",
        "transfer": "finetune",
    }
    trained = {name: manifests.get(role) for name, role in named.items()}
    for key in sorted(surrogates):
        artifact = store.find(plan.steps[key])
        trained["surrogate"] = artifact.manifest if artifact else None
    found = ((name, m.metrics.get("alarm")) for name, m in trained.items() if m is not None)
    return tuple(f"{name} {alarm}" for name, alarm in found if alarm)


def _subset(manifests: Mapping[str, Manifest], trained: bool) -> dict[str, Any]:
    """Describe the kept examples: what pruning left, the whole source, or nothing."""
    source, prune = manifests.get("source"), manifests.get("prune")
    num_source = int(_metric(source, "num_examples"))
    if prune is not None:
        return {
            "num_source": num_source,
            "num_kept": int(_metric(prune, "num_kept")),
            "num_classes_kept": int(_metric(prune, "num_classes_kept")),
            "class_ratio": _optional(prune, "class_ratio"),
            "unvoted_share": _optional(prune, "unvoted_share"),
            "subset_digest": prune.files["kept_indices.npy"].sha256,
        }
    return {
        "num_source": num_source,
        "num_kept": num_source if trained else 0,
        "num_classes_kept": int(_metric(source, "num_classes")) if trained else 0,
        "class_ratio": 0.0 if trained else None,
        "unvoted_share": None,
        "subset_digest": "",
    }


def _budget(recipe: Training | None) -> str:
    if recipe is None:
        return ""
    name, value = next((n, v) for n, v in recipe.budget if v is not None)
    return f"{name}={value}"


def _metric(manifest: Manifest | None, name: str) -> float:
    value = manifest.metrics.get(name) if manifest else None
    return float(value) if value is not None else 0.0


def _optional(manifest: Manifest | None, name: str) -> float | None:
    value = manifest.metrics.get(name) if manifest else None
    return None if value is None else float(value)


def _seconds(plan: Plan, store: Store, steps: Iterable[str]) -> float:
    """Add up the wall time of those steps that are done."""
    found = (store.find(plan.steps[key]) for key in sorted(steps))
    return sum(artifact.manifest.seconds for artifact in found if artifact is not None)


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write one JSON object per line, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(result.model_dump_json() + "\n" for result in results))


def read_results(path: Path) -> list[Result]:
    """Read what `write_results` wrote."""
    return [
        Result.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()
    ]


class Predictions:
    """Per-example correctness of results, read from the store that they came from."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.by_digest: dict[str, Artifact] = {}
        transfers = [plan.steps[cell.steps["finetune"]] for cell in plan.cells]
        done = store.finished(transfers)
        for step in transfers:
            if step.digest in done and (artifact := store.find(step)) is not None:
                for name in {PREDICTIONS, ATTACKED} & artifact.manifest.files.keys():
                    self.by_digest[artifact.manifest.files[name].sha256] = artifact

    def __call__(self, result: Result) -> npt.NDArray[np.bool_]:
        """Return whether each test example was classified correctly, (N,)."""
        artifact = self.by_digest[result.predictions_digest]
        return _correct(artifact, artifact.array("test_predictions"))

    def under_attack(self, result: Result, n: int) -> npt.NDArray[np.bool_]:
        """Return whether each attacked test example was so under the n-th attack, (M,)."""
        artifact = self.by_digest[result.attacked_digest]
        predicted = artifact.array("attacked_predictions")[n]
        chosen: npt.NDArray[np.bool_] = np.asarray(predicted) >= 0  # the others have no class
        return _correct(artifact, predicted)[chosen]


def _correct(artifact: Artifact, predicted: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    correct: npt.NDArray[np.bool_] = np.asarray(predicted) == artifact.array("test_labels")
    return correct
