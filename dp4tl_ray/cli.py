"""The command line: verbs, no science. Whatever changes a number stands in a study file."""

import argparse
import json
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

from dp4tl_ray.arguments import command_line

if TYPE_CHECKING:
    from dp4tl_ray.plan import Plan
    from dp4tl_ray.specs.study import Study
    from dp4tl_ray.store import Store

READ_ONLY = {"plan", "status", "report", "export"}
"""Verbs that only look at what is in a store."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = command_line().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        match args.verb:
            case "schema":
                return _schema(args)
            case "list":
                return _list(args.what)
            case _:
                return _with_study(args)
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, run it again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _with_study(args: argparse.Namespace) -> int:
    """Read and check everything that was written, then do what the verb says."""
    from dp4tl_ray.data.pictures import DatasetError
    from dp4tl_ray.export.choose import ExportError
    from dp4tl_ray.runners.admission import InfeasibleError
    from dp4tl_ray.scoring.elsewhere import ScorerError
    from dp4tl_ray.specs.load import StudyError, load_study
    from dp4tl_ray.store import StoreError

    try:
        study = load_study(args.study, args.overrides)
        store = _open(args.store, args.verb)
        match args.verb:
            case "plan":
                return _plan(study, store, args.json)
            case "data":
                return _data(study, store, args)
            case "report":
                return _report(study, store)
            case "status":
                return _status(study, store, args.json)
            case "triage":
                return _triage(study, store, args.local)
            case "wandb-sweep":
                return _wandb_sweep(study, store, args)
            case "wandb-workspace":
                return _wandb_workspace(study, store)
            case "export":
                return _export(study, store, args)
            case _:
                return _run(study, store, args.local, args.until, args.only)
    except (
        StudyError,
        StoreError,
        DatasetError,
        ScorerError,
        InfeasibleError,
        ExportError,
    ) as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:  # a full or failing disk; the store itself is whole
        print(f"{error}; what is finished is kept, run it again to continue", file=sys.stderr)
        return 1


def _open(uri: str, verb: str) -> "Store":
    """Open the store as a verb needs it; one that is not there yet can be planned for."""
    from dp4tl_ray.store import open_store

    return open_store(uri, write=verb not in READ_ONLY, missing_ok=verb == "plan")


def _plan(study: "Study", store: "Store", as_json: bool) -> int:
    from dp4tl_ray.sweep import counts, plan_study

    absent = list[str]()
    plan = plan_study(study, absent=absent, store=store)
    done = store.finished(plan.steps.values())
    stages = counts(plan, done)
    if as_json:
        steps = [
            {
                "stage": step.stage,
                "name": step.name,
                "digest": key,
                "inputs": dict(step.inputs),
                "done": key in done,
            }
            for key, step in plan.steps.items()
        ]
        facts = {"study": study.name, "stages": stages, "steps": steps, "absent": absent}
        print(json.dumps(facts, indent=1))
        return 0
    print(f"{study.name}: {len(plan.cells)} results\n")
    print(f"{'stage':<12}{'naive':>8}{'unique':>8}{'done':>8}{'to run':>8}")
    for stage, n in stages.items():
        to_run = n["unique"] - n["done"]
        print(f"{stage:<12}{n['naive']:>8}{n['unique']:>8}{n['done']:>8}{to_run:>8}")
    if study.search == "lossless":
        print("\nsearch: lossless chooses among them, and runs what it needs")
    if absent:
        print("\n" + "\n".join(absent))
    return 0


def _run(study: "Study", store: "Store", local: bool, until: str, point: list[str]) -> int:
    from dp4tl_ray.runners.status import duration
    from dp4tl_ray.specs.load import StudyError
    from dp4tl_ray.sweep import plan_study, run_study, weights_used

    if point and until != "finetune":
        raise StudyError(
            f"--only chooses among the results, which --until {until} does not come to: leave one "
            "of them out"
        )
    plan = plan_study(study, until)  # type: ignore[arg-type]
    outcome = run_study(study, plan, store, local, point)
    print(
        f"{study.name}: {outcome.ran} steps run, {outcome.reused} reused, "
        f"{len(outcome.errors)} failed, in {duration(outcome.seconds)}"
    )
    for error in sorted(set(outcome.errors.values())):
        print(f"failed: {error}", file=sys.stderr)
    print("".join(f"{line}\n" for line in weights_used(plan, store)), end="")
    _print_alarms(plan, store)
    if until == "prune":
        for step in plan.steps.values():
            if step.stage == "prune" and (artifact := store.find(step)):
                print(artifact.file("kept_indices.npy"))
    elif outcome.results:
        print(f"report: {outcome.folder / 'results.md'}")
        if study.search == "lossless":
            print(f"largest lossless ratios: {outcome.folder / 'search.md'}")
    if outcome.tracked:
        print(outcome.tracked)
    return 1 if outcome.errors else 0


def _report(study: "Study", store: "Store") -> int:
    from dp4tl_ray.sweep import plan_study, report_study, weights_used

    absent = list[str]()
    plan = plan_study(study, absent=absent, store=store)
    results, folder = report_study(study, plan, store)
    print(f"{study.name}: {len(results)} results are done; report: {folder / 'results.md'}")
    print("".join(f"{line}\n" for line in (*weights_used(plan, store), *absent)), end="")
    _print_alarms(plan, store)
    return 0


def _print_alarms(plan: "Plan", store: "Store") -> None:
    from dp4tl_ray.sweep import alarms

    for alarm in alarms(plan, store):
        print(f"alarm: {alarm}", file=sys.stderr)


def _status(study: "Study", store: "Store", as_json: bool) -> int:
    from dp4tl_ray.runners.status import status_of, status_text
    from dp4tl_ray.sweep import plan_study

    status = status_of(plan_study(study, absent=[], store=store), store)
    print(json.dumps(status, indent=1) if as_json else status_text(status))
    return 0


def _triage(study: "Study", store: "Store", local: bool) -> int:
    from dp4tl_ray.sweep import plan_study, triage_study, until_stage

    plan = plan_study(study)
    table, errors, path = triage_study(study, plan, store, local)
    print(table)
    for error in sorted(errors):
        print(f"failed: {error}", file=sys.stderr)
    _print_alarms(until_stage(plan, "prune"), store)
    print(f"triage: {path}")
    return 1 if errors else 0


def _data(study: "Study", store: "Store", args: argparse.Namespace) -> int:
    folder = store.study_folder(study.name)
    match args.what:
        case "pack":
            return _pack(study, store, args.local)
        case "check":
            from dp4tl_ray.checkup import check_study

            report, sound = check_study(study, folder, args.against)
            store.publish(folder / "data_check.md")
            print(f"{report}\nreport: {folder / 'data_check.md'}")
            return 0 if sound else 1
        case "show":
            from dp4tl_ray.samples import write_samples

            print(write_samples(study, folder))
        case "warm":
            from dp4tl_ray.sweep import plan_study
            from dp4tl_ray.warm import warm_study

            plan = plan_study(study, absent=[], store=store)  # the packed pictures are enough
            for name, pictures, size in warm_study(plan, store):
                print(f"{name}: {pictures:,} pictures, {size / 2**20:,.1f} MiB")
    return 0


def _pack(study: "Study", store: "Store", local: bool) -> int:
    from dp4tl_ray.runners.status import duration
    from dp4tl_ray.sweep import pack_study, plan_study

    plan = plan_study(study, "data")
    outcome, lines = pack_study(study, plan, store, local)
    print("".join(f"{line}\n" for line in lines), end="")
    for error in sorted(set(outcome.errors.values())):
        print(f"failed: {error}", file=sys.stderr)
    _print_alarms(plan, store)
    print(f"{study.name}: {outcome.ran} packed in {duration(outcome.seconds)}")
    return 1 if outcome.errors else 0


def _wandb_sweep(study: "Study", store: "Store", args: argparse.Namespace) -> int:
    from dp4tl_ray.tracking.sweep_file import write_sweep

    options = [*(f"--set={text}" for text in args.overrides), *(["--local"] if args.local else [])]
    path = write_sweep(study, store, args.study.absolute(), options)
    print(f"sweep: {path}")
    wandb = study.tracking.wandb
    where = f"--project {wandb.project}" + (f" --entity {wandb.entity}" if wandb.entity else "")
    print(f"create it: wandb sweep {where} {path}\nthen, on each machine: wandb agent ID")
    return 0


def _wandb_workspace(study: "Study", store: "Store") -> int:
    from dp4tl_ray.requirements import check_package

    check_package("wandb-workspace", "wandb_workspaces", "workspaces")
    from dp4tl_ray.tracking.workspace import WorkspaceError, save_workspace

    try:
        print(f"workspace: {save_workspace(study, store)}")
    except WorkspaceError as error:
        print(f"Weights & Biases: {error}", file=sys.stderr)
        return 1
    return 0


def _export(study: "Study", store: "Store", args: argparse.Namespace) -> int:
    from dp4tl_ray.export.subset import export_subset
    from dp4tl_ray.sweep import plan_study

    absent = list[str]()
    plan = plan_study(study, absent=absent, store=store)
    asked = {option: getattr(args, option) for option in ("method", "ratio", "target", "seed")}
    words = ["dp4tl", "run", str(args.study), f"--store={store.uri}", "--until=prune"]
    command = shlex.join([*words, *(f"--set={text}" for text in args.overrides)])
    command = "\n".join([command, *absent])
    export, folder = export_subset(plan, store, asked, args.format, args.out, command)
    print(
        f"{export.method_label} at {export.pruning_ratio:g} for {export.target}, seed "
        f"{export.seed}: {export.num_kept} of {export.num_source} examples, of "
        f"{export.num_classes_kept} classes\n{folder}\nuse: {export.use}"
    )
    return 0


def _schema(args: argparse.Namespace) -> int:
    from dp4tl_ray.specs.schema import SCHEMAS, schema_text

    if args.write is None:
        print(schema_text(args.name), end="")
        return 0
    args.write.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS:
        path = args.write / f"{name}.schema.json"
        path.write_text(schema_text(name), encoding="utf-8")
        print(path)
    return 0


def _list(what: str) -> int:
    from dp4tl_ray.specs.catalogue import catalogue

    print(catalogue(what), end="")
    return 0
