"""Run a study from its spec to its report: plan, compute what is missing, collect, mirror, draw."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dp4tl_ray.algorithms.bisection import SEARCH_CONFIDENCE
from dp4tl_ray.algorithms.lossless import CONFIDENCE
from dp4tl_ray.atomic import write_text
from dp4tl_ray.contents import Contents, remember, remembered
from dp4tl_ray.lease import LeaseHeldError
from dp4tl_ray.plan import Plan, make_plan
from dp4tl_ray.requirements import check_packages, check_queues, check_shots, check_sizes
from dp4tl_ray.results import Predictions, collect, failures, write_results
from dp4tl_ray.runners.board import Board, More, Tasks, tasks_of
from dp4tl_ray.runners.journal import Follower, Journal
from dp4tl_ray.runners.progress import Display
from dp4tl_ray.runners.status import StatusFile
from dp4tl_ray.scoring.given import check_lists
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.pretraining import Pretrained
from dp4tl_ray.specs.records import Result
from dp4tl_ray.specs.steps import STAGES, DataStep, Stage
from dp4tl_ray.specs.study import Study
from dp4tl_ray.store import Artifact, FolderStore, Store, StoreError
from dp4tl_ray.tracking.sweep_file import only
from dp4tl_ray.tracking.tracker import Tracker


@dataclass(frozen=True)
class Outcome:
    """What a run of a study did."""

    results: list[Result]
    """Lines of results.jsonl."""
    ran: int
    """Steps computed now."""
    reused: int
    """Steps found in the store."""
    errors: dict[str, str]
    """Digest -> reason of the steps that failed."""
    seconds: float
    folder: Path
    """Where results and report are."""
    tracked: str = ""
    """What was mirrored where, for people."""


def plan_study(
    study: Study,
    until: Stage = "finetune",
    absent: list[str] | None = None,
    store: Store | None = None,
) -> Plan:
    """Plan a study with the present content of its datasets.

    Args:
        study: What is asked for.
        until: Last stage of the plan.
        absent: Receives a line for each folder of pictures that is not here, and what cannot be
            checked for want of it. Such a plan tells how much would run, but cannot be run: its
            digests are none of a store. Without this list an absent folder is an error.
        store: Where an absent folder may be known from, as it was when the study was run; with
            its fingerprint nothing is missing for looking at what is done.

    Raises:
        DatasetError: A folder of pictures is missing or empty.
        ScorerError: A plug-in is not installed, or a file of scores, examples or weights not there.
        StudyError: The source is too small for a queue, a batch, a clustering or a list of examples
            at a ratio, a target for its shots, or a package is not installed.
    """
    if absent is None:
        check_packages(study)
    known = remembered(store, study.name) if store else {}
    plan = make_plan(study, Contents(known, absent))
    check_queues(study, absent)
    check_sizes(plan, absent)
    check_shots(study, absent)
    check_lists(study, absent)
    return until_stage(plan, until)


def until_stage(plan: Plan, until: Stage) -> Plan:
    """Return the part of a plan up to a stage; without its last one there are no cells."""
    last = STAGES.index(until)
    ends = {k for c in plan.cells for k in c.steps.values()}
    wanted = frozenset[str]().union(
        *(plan.closure(key) for key in ends if STAGES.index(plan.steps[key].stage) <= last)
    )
    if len(wanted) == len(plan.steps):
        return plan
    return Plan(plan.study, {k: s for k, s in plan.steps.items() if k in wanted}, [], plan.naive)


def counts(plan: Plan, done: set[str]) -> dict[Stage, dict[str, int]]:
    """Count per stage what a naive grid would run, what this plan needs, and what is done."""
    unique, ready = plan.unique(), Counter(plan.steps[key].stage for key in done)
    return {
        stage: {"naive": plan.naive[stage], "unique": unique[stage], "done": ready[stage]}
        for stage in STAGES
        if unique[stage]
    }


def alarms(plan: Plan, store: Store) -> list[str]:
    """Collect what trainings that ended well have to say against themselves."""
    done = store.finished(plan.steps.values())
    found = (store.find(step) for key, step in plan.steps.items() if key in done)
    told = ((a.manifest, a.manifest.metrics.get("alarm")) for a in found if a is not None)
    return sorted(f"{m.stage} {m.name} {alarm}" for m, alarm in told if alarm)


def weights_used(plan: Plan, store: Store) -> list[str]:
    """Say where weights from elsewhere came from, and under which licence."""
    lines = set[str]()
    for step in plan.steps.values():
        recipe = getattr(step.spec, "surrogate", None) or getattr(step.spec, "pretraining", None)
        if isinstance(recipe, Pretrained) and (artifact := store.find(step)) is not None:
            facts = artifact.manifest.metrics
            lines.add(f"weights: {facts['weights']}; licence: {facts['licence']}")
    return sorted(lines)


def run_study(
    study: Study, plan: Plan, store: Store, local: bool, point: Sequence[str] = ()
) -> Outcome:
    """Compute what the store lacks, then write results.jsonl, the report, and the mirror.

    Args:
        study: What is asked for.
        plan: Its steps.
        store: Where artifacts are and go.
        local: Run in this process, without Ray.
        point: Texts axis=value that the cells to run are at; the report is of all that are done.
    """
    part = only(plan, point) if point else plan
    started = time.perf_counter()
    done = store.finished(part.steps.values())
    remember(plan, store)
    tracker = None
    if part.cells and study.tracking.wandb.mode != "disabled":
        tracker = Tracker(part, store, study.tracking.wandb)
    folder, results = store.study_folder(study.name), list[Result]()
    with tracker or contextlib.nullcontext():
        board = _run(study, part, store, done, local, tracker, searches=not point)
        if plan.cells:
            errors = failures(plan, store) | board.errors() if point else board.errors()
            results, folder = report_study(study, plan, store, errors)
        if tracker is not None:
            tracker.report(results, folder)
    return Outcome(
        results,
        board.ran,
        len(done),
        board.errors(),
        time.perf_counter() - started,
        folder,
        tracker.text() if tracker is not None else "",
    )


def _run(
    study: Study,
    plan: Plan,
    store: Store,
    done: set[str],
    local: bool,
    tracker: Tracker | None,
    searches: bool,
) -> Board:
    """Run what is not done; returns the board as it ended."""
    runtime = study.runtime
    more = _search(study, plan, store) if searches else None
    board = Board(
        plan,
        done,
        more({}) if more else tasks_of(plan),
        max_attempts=runtime.max_failures + 1,
        max_preemptions=runtime.max_preemptions,
    )
    if board.finished:
        return board
    follower = None
    if tracker is not None:
        board.journal, follower = Journal(), Follower(tracker.hear)
    status = StatusFile(store.study_folder(study.name) / "status.json", store.publish)
    with Display(study.name, status) as display:
        if local:
            from dp4tl_ray.runners.local import run_local

            run_local(board, store, runtime, display, more, follower)
        else:
            from dp4tl_ray.runners.cluster import run_on_ray

            board, _ = run_on_ray(board, store, runtime, display, more, follower=follower)
            display.update(board.summary())
    return board


def _search(study: Study, plan: Plan, store: Store) -> More | None:
    """Return what chooses the cells of a study that is no grid."""
    if study.search == "grid" or not plan.cells:
        return None
    from dp4tl_ray.search import LosslessSearch

    search = LosslessSearch(plan, study.report.margin)
    names = {steps[0]: name for name, steps in tasks_of(plan).items()}

    def more(errors: Mapping[str, str]) -> Tasks:
        cells = search.ask(collect(plan, store, errors), Predictions(plan, store))
        keys = (cell.steps["finetune"] for cell in cells)
        return {names[key]: [key] for key in keys}

    return more


def report_study(
    study: Study, plan: Plan, store: Store, errors: Mapping[str, str] | None = None
) -> tuple[list[Result], Path]:
    """Write results.jsonl and the report from what is done; returns the results and the folder.

    Without the errors of a run, the failures that runs left in the store are reported.
    """
    from dp4tl_ray.report import write_report  # draws with matplotlib: not for `plan`

    folder = store.study_folder(study.name)
    results = collect(plan, store, failures(plan, store) if errors is None else errors)
    write_results(results, folder / "results.jsonl")
    predictions, margin = Predictions(plan, store), study.report.margin
    confidence = CONFIDENCE if study.search == "grid" else SEARCH_CONFIDENCE
    under_attack = predictions.under_attack
    files = [folder / "results.jsonl"]
    files += write_report(results, folder, margin, predictions, confidence, under_attack)
    if study.search == "lossless":
        from dp4tl_ray.search import LosslessSearch, verdict_table

        text = verdict_table(LosslessSearch(plan, margin).verdicts(results, predictions))
        write_text(folder / "search.md", text)
        files.append(folder / "search.md")
    for file in files:
        store.publish(file)
    return results, folder


def pack_study(study: Study, plan: Plan, store: Store, local: bool) -> tuple[Outcome, list[str]]:
    """Pack the datasets of a study that are not in the store yet.

    Args:
        study: What names them.
        plan: Its data steps.
        store: Where they go.
        local: Pack in this process, not on Ray.

    Returns:
        What was done, and a line for each dataset.
    """
    started = time.perf_counter()
    done = store.finished(plan.steps.values())
    missing = [step for key, step in plan.steps.items() if key not in done]
    if missing and not local and isinstance(store, FolderStore):
        from dp4tl_ray.runners.packing import pack_on_ray

        try:
            pack_on_ray(missing, store)
        except LeaseHeldError as error:
            raise StoreError(f"another driver packs them now; it holds {error}") from error
    # what is left is done by the data steps themselves; elsewhere than in a folder, all of it
    threads = study.runtime.model_copy(update={"threads_per_worker": os.cpu_count() or 1})
    wide = study.model_copy(update={"runtime": threads})
    outcome = run_study(wide, plan, store, local=True)
    found = (store.find(step) for step in plan.steps.values())
    lines = [_packed(artifact) for artifact in found if artifact is not None]
    return replace(outcome, seconds=time.perf_counter() - started), lines


def _packed(data: Artifact) -> str:
    manifest = data.manifest
    size = sum(file.size for file in manifest.files.values())
    spec, facts = manifest.spec, manifest.metrics
    assert isinstance(spec, DataStep)
    name = f"{spec.role} {label(spec.dataset)}"
    counts = f"{facts['num_examples']:,} pictures of {facts['num_classes']:,} classes"
    return f"{name}: {counts}, {size / 2**20:,.1f} MiB"


def triage_study(study: Study, plan: Plan, store: Store, local: bool) -> tuple[str, set[str], Path]:
    """Choose the kept examples of a study, and compare them; writes triage.md.

    Args:
        study: What is asked for.
        plan: All of its steps.
        store: Where they are and go.
        local: Run in this process, without Ray.

    Returns:
        The table, the reasons of steps that failed, and where the table is.
    """
    from dp4tl_ray.triage import triage, triage_table  # needs torch: not for `plan`

    outcome = run_study(study, until_stage(plan, "prune"), store, local)
    chosen = [
        cell
        for cell in plan.cells
        if "prune" in cell.steps and store.find(plan.steps[cell.steps["prune"]]) is not None
    ]
    table = triage_table(triage(Plan(study, plan.steps, chosen), store))
    path = store.study_folder(study.name) / "triage.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table)
    store.publish(path)
    return table, set(outcome.errors.values()), path
