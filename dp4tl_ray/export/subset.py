"""Write the subset that a prune step kept, with a manifest, all or nothing."""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dp4tl_ray.export.choose import ExportError, choose
from dp4tl_ray.export.formats import ASCENDING, Kept, write_format
from dp4tl_ray.plan import Cell, Plan
from dp4tl_ray.scoring.inputs import Ints
from dp4tl_ray.scoring.select import order_of_examples
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.method import combined, is_target_aware
from dp4tl_ray.specs.records import Export, ExportFormat, File
from dp4tl_ray.specs.selector import AnySelector, WholeUnits
from dp4tl_ray.specs.steps import DataStep, PruneStep
from dp4tl_ray.stages.bench import free_memory
from dp4tl_ray.stages.listing import excluded_ids, skipped_ids
from dp4tl_ray.stages.score import embedding, load_scores
from dp4tl_ray.store import MANIFEST, Artifact, Store, sha256_of
from dp4tl_ray.training.worker import seed_for

INDICES = "kept_indices.npy"


def export_subset(
    plan: Plan,
    store: Store,
    asked: Mapping[str, str | None],
    form: ExportFormat,
    out: Path | None,
    command: str,
) -> tuple[Export, Path]:
    """Write the kept examples of one prune step, with a manifest, all or nothing.

    What is written once is left as it is: the same export again changes nothing, another one into
    the same folder is refused.

    Args:
        plan: Of the study, with cells.
        store: Where the prune step is.
        asked: method, ratio, target and seed, as they were written; null for what was left out.
        form: Format.
        out: Folder to write; null takes one in the study's folder.
        command: What makes the subset, should it not be there.

    Returns:
        What the manifest says, and where it is.

    Raises:
        ExportError: Nothing or several are meant, the subset is not done, or the folder is taken.
    """
    cell = choose(plan, asked)
    prune = plan.steps[cell.steps["prune"]]
    if out is None:
        name = Path(store.name(prune)).name
        out = store.study_folder(plan.study.name) / "exports" / f"{name}-{form}"
    out = out.absolute()
    kept = load_subset(plan, store, cell, command)
    part = out.with_name(f".{out.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ExportError(f"--out {out}: cannot be written: {error.strerror}") from error
    try:
        names, use = write_format(kept, form, part, out)
        files = {n: File(sha256=sha256_of(part / n), size=(part / n).stat().st_size) for n in names}
        export = _record(plan, store, cell, kept, form, files, use)
        (part / MANIFEST).write_text(export.model_dump_json(indent=1), encoding="utf-8")
        _place(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return export, out


def load_subset(plan: Plan, store: Store, cell: Cell, command: str) -> Kept:
    """Read the kept examples of a cell, in the order in which the selector wanted them.

    Raises:
        ExportError: They are not chosen yet; `command` does.
    """
    prune = plan.steps[cell.steps["prune"]]
    found = {role: store.find(plan.steps[key]) for role, key in prune.inputs.items()}
    pruned = store.find(prune)
    inputs = {role: artifact for role, artifact in found.items() if artifact is not None}
    if pruned is None or len(inputs) < len(found):
        raise ExportError(f"{prune.stage} {prune.name} is not done yet; this does it:\n  {command}")
    spec, source = prune.spec, inputs["source"]
    data = plan.steps[cell.steps["source"]].spec
    assert isinstance(spec, PruneStep) and isinstance(data, DataStep)
    scores = load_scores(inputs["score"])
    return Kept(
        rows=_in_order(spec, pruned, inputs),
        listed_rows=np.asarray(source.array("listed_rows")),
        ids=source.json("ids"),
        labels=np.asarray(source.array("labels")),
        class_names=source.json("class_names"),
        scores=scores.score_U[scores.unit_of_N],
        source=data.dataset,
    )


def _in_order(spec: PruneStep, pruned: Artifact, inputs: Mapping[str, Artifact]) -> Ints:
    """Return the kept rows, most wanted first, (n,).

    The prune step leaves a set; its order is computed again from the same inputs and draw.
    """
    order = order_of_examples(
        spec.select,
        load_scores(inputs["score"]),
        np.asarray(inputs["source"].array("labels")),
        embedding(inputs.get("source_embedding")),
        np.random.default_rng(seed_for(spec.seed, "select")),
        free_memory() / 2,
    )
    return order[np.isin(order, np.asarray(pruned.array("kept_indices")))]


def _record(
    plan: Plan,
    store: Store,
    cell: Cell,
    kept: Kept,
    form: ExportFormat,
    files: dict[str, File],
    use: str,
) -> Export:
    prune, source = plan.steps[cell.steps["prune"]], plan.steps[cell.steps["source"]].spec
    pruned, data = store.find(prune), store.find(plan.steps[cell.steps["source"]])
    assert pruned is not None and data is not None
    assert cell.method is not None and isinstance(source, DataStep)
    excluded = excluded_ids(data)
    return Export.model_validate(
        {
            "study": plan.study.name,
            "source": source.dataset,
            "source_fingerprint": source.fingerprint,
            "num_source": len(kept.labels),
            "num_skipped": len(skipped_ids(data)),
            "num_excluded": None if excluded is None else len(excluded),
            "index": kept.indexed,
            "target": _target(cell),
            "method": cell.method,
            "method_label": label(cell.method),
            "pruning_ratio": cell.pruning_ratio,
            "seed": cell.seed,
            "num_kept": len(kept.rows),
            "num_classes_kept": len(np.unique(kept.labels[kept.rows])),
            "subset_digest": pruned.manifest.files[INDICES].sha256,
            **{f"{role}_digest": cell.steps[role] for role in ("source", "score", "prune")},
            "format": form,
            "order": _order_text(cell.method.select, form),
            "files": files,
            "use": use,
        }
    )


def _target(cell: Cell) -> str:
    """Name the target that a subset was chosen for."""
    assert cell.method is not None
    if not is_target_aware(cell.method):
        return "any"
    return label(cell.target) if combined(cell.method) is None else "all"


def _order_text(rule: AnySelector, form: ExportFormat) -> str:
    """Say in which order the examples are listed."""
    if form in ASCENDING:
        return "that of the source; --format npy, csv, txt, hf and dp4tl list the most wanted first"
    if isinstance(rule, WholeUnits):
        return (
            "most wanted first: units by their score, examples within a unit as the method has "
            "them; a first part of the list ends within a unit, which whole_units itself does not"
        )
    return (
        f"most wanted first, as select: {rule.rule} takes them: a first part of the list is what a "
        "larger ratio keeps"
    )


def _place(part: Path, out: Path) -> None:
    """Put a folder in its place, unless the same is there already.

    Raises:
        ExportError: Something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        os.replace(part, out)
        return
    try:
        there = (out / MANIFEST).read_text(encoding="utf-8")
        export = Export.model_validate_json(there)
    except (OSError, ValueError):
        raise ExportError(f"--out {out}: is there already, and no export: take another") from None
    if there != (part / MANIFEST).read_text(encoding="utf-8"):
        raise ExportError(
            f"--out {out}: holds another export ({export.method_label} at "
            f"{export.pruning_ratio:g} for {export.target}, seed {export.seed}, as "
            f"{export.format}, of study {export.study}): take another folder, or remove it"
        )
    for name, file in export.files.items():
        if not (out / name).is_file() or sha256_of(out / name) != file.sha256:
            raise ExportError(f"--out {out}: holds this export, but {name} was changed: remove it")
