"""The command line: verbs, no science. Whatever changes a number stands in a study file."""

import argparse
import contextlib
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp4tl_ray.plan import Plan
    from dp4tl_ray.specs.study import Study
    from dp4tl_ray.store import Store

EPILOG = """\
the usual way:
  dp4tl plan experiments/quickstart.yaml        what would run, and what is shared
  dp4tl run experiments/quickstart.yaml         run it on Ray; a rerun runs only what is missing
  dp4tl status experiments/quickstart.yaml      how it is doing, from any machine
  dp4tl report experiments/quickstart.yaml      tables and pictures again, from the store
  dp4tl export experiments/quickstart.yaml --format csv ...    a kept subset, for other code

on a cluster:
  ray up cluster.yaml
  ray submit cluster.yaml dp4tl_ray/submit.py experiments/quickstart.yaml --store /mnt/shared/store
"""


SCHEMA_NAMES = ("study", "manifest", "result", "export")
EXPORT_FORMATS = ("npy", "txt", "csv", "imagefolder-symlinks", "ffcv-indices", "hf", "dp4tl")
EXPORT_EPILOG = """\
formats, and the file that each writes beside manifest.json:
  npy                   kept.npy: indices into the source's dataset, int64, ascending
  txt                   kept.txt: ids, one per line, most wanted first
  csv                   kept.csv: index, id, class_index, class_name, score, rank (0 is the first)
  imagefolder-symlinks  train/CLASS/...: links to the pictures, where each is a file
  ffcv-indices          kept.indices: a tensor for ffcv.loader.Loader(indices=...)
  hf                    kept.jsonl: the columns of csv, for datasets.load_dataset("json", ...)
  dp4tl                 kept.json: for `methods: [{method: given, path: .../kept.json}]`

An index counts what the source's dataset lists, before `exclude` and `corrupt: skip` leave some
out: of image_folder and imagenet in the order of torchvision's ImageFolder on the training folder,
of cifar10 and cifar100 in torchvision's, of huggingface and parquet by rows, of custom as its
loader lists them; a .beton must have been written in that order. The others are sorted by name,
as nowhere else: they have no npy and no ffcv-indices, and an empty index in csv and hf.

  dp4tl export STUDY --method label_mapping --ratio 0.5 --target pets --format npy --out kept
"""
READ_ONLY = {"status", "report", "export"}
"""Verbs that only look at what is in a store, which has to be there."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dp4tl",
        description="Dataset pruning for transfer learning: find the part of a source dataset that "
        "your targets need, pretrain on that part, and see what it cost.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    study = argparse.ArgumentParser(add_help=False)
    study.add_argument(
        "study", type=Path, metavar="STUDY", help="study file, such as experiments/quickstart.yaml"
    )
    study.add_argument(
        "--store", default="./store", metavar="URI",
        help="folder of all artifacts, shared by all machines (default: ./store)",
    )  # fmt: skip
    study.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a field, checked like the file; VALUE is YAML: --set seeds='[0, 1]' "
        "--set pretraining.0.budget.epochs=3",
    )  # fmt: skip
    plan = verbs.add_parser(
        "plan", parents=[study], help="show what would run, before anything does",
        description="Count the steps of a study per stage: naive (a grid without sharing), unique "
        "(what this study needs), done (already in the store), to run.",
    )  # fmt: skip
    plan.add_argument("--json", action="store_true", help="print stages and steps as JSON")
    run = verbs.add_parser(
        "run", parents=[study], help="run what is missing, then report",
        description="Run a study. Finished steps are found in the store and never run again, so "
        "that a rerun continues and a larger study runs only what is new. Exit code 0: all done; "
        "1: cells failed; 2: bad input, nothing was run; 130: interrupted, rerun to continue.",
    )  # fmt: skip
    run.add_argument("--local", action="store_true", help="run in this process, without Ray")
    run.add_argument(
        "--until", choices=("score", "prune", "pretrain", "finetune"), default="finetune",
        help="stop after this stage; prune leaves the lists of kept examples",
    )  # fmt: skip
    run.add_argument(
        "--only", nargs="+", default=[], metavar="AXIS=VALUE",
        help="run only the cells there, as an agent of a sweep does: --only seed=0 "
        "method=label_mapping; all that are done are reported",
    )  # fmt: skip
    verbs.add_parser(
        "report", parents=[study], help="write tables and pictures from the store",
        description="Write results.jsonl, results.csv, results.md and pictures (accuracy over "
        "ratio, or a matrix of losses from ten methods on; adversarial variants over ratio and "
        "over cost) from what is done; runs nothing.",
    )  # fmt: skip
    status = verbs.add_parser(
        "status", parents=[study], help="show how a running study is doing",
        description="Show, from any machine that sees the store, what of a study is done, what "
        "runs and for how long still, what has failed, and who holds the lease of which step.",
    )  # fmt: skip
    status.add_argument("--json", action="store_true", help="print it as JSON")
    choices = verbs.add_parser(
        "triage", parents=[study], help="compare what the methods keep, before any pretraining",
        description="Run a study up to the lists of kept examples and compare them: do halves of "
        "the target agree, do seeds, and how far are the target's images from what is kept? "
        "Writes triage.md to the study's folder.",
    )  # fmt: skip
    choices.add_argument("--local", action="store_true", help="run in this process, without Ray")
    _add_export(verbs, study)
    _add_data_verbs(verbs.add_parser("data", help="pack, check, show or warm the datasets"), study)
    sweep = verbs.add_parser(
        "wandb-sweep", parents=[study], help="write a study as a sweep of Weights & Biases",
        description="Write wandb_sweep.yaml to the study's folder: the axes as parameters, and the "
        "command that runs one cell, for agents of Weights & Biases to take cells from.",
    )  # fmt: skip
    sweep.add_argument("--local", action="store_true", help="agents run cells without Ray")
    schema = verbs.add_parser("schema", help="print the JSON Schema of a file format")
    schema.add_argument("name", nargs="?", choices=SCHEMA_NAMES, default="study")
    schema.add_argument(
        "--write", type=Path, metavar="FOLDER", help="write all of them to a folder"
    )
    names = verbs.add_parser("list", help="list what there is to choose from, with its fields")
    kinds = ("methods", "selectors", "objectives", "adversarial", "networks", "transfers")
    names.add_argument("what", choices=(*kinds, "robustness", "datasets", "encodings"))
    return parser


def _add_export(verbs: Any, study: argparse.ArgumentParser) -> None:
    export = verbs.add_parser(
        "export", parents=[study], help="write a kept subset, for any other training code",
        description="Write the examples that a method keeps at a ratio for a target, with a "
        "manifest. Needs no more than `dp4tl run STUDY --until prune`. What the study has but one "
        "of may be left out.",
        epilog=EXPORT_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    export.add_argument(
        "--method", metavar="NAME", help="as in results, or label_mapping where one alone is it"
    )
    export.add_argument("--ratio", metavar="R", help="pruning ratio: the share that is removed")
    export.add_argument(
        "--target", metavar="NAME",
        help="as in results or, here alone, its dataset or the last part of its path",
    )  # fmt: skip
    export.add_argument("--seed", metavar="N", help="of the study's seeds (default: the first)")
    export.add_argument("--format", required=True, choices=EXPORT_FORMATS)
    export.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="folder to write, which must not hold anything else (default: one in the store, "
        "beside the study's report)",
    )  # fmt: skip


def _add_data_verbs(data: argparse.ArgumentParser, study: argparse.ArgumentParser) -> None:
    data.description = "What is to be done about a study's datasets, before it runs."
    verbs = data.add_subparsers(dest="what", required=True, metavar="VERB")
    pack = verbs.add_parser(
        "pack", parents=[study], help="pack them into the store, by all machines",
        description="Decode every picture once and pack it, raw or as JPEG, as `stored` of each "
        "dataset says: where there are many shards, by Ray tasks on all machines that share the "
        "store. `run` does the same by one worker. Shards that are whole are not packed again.",
    )  # fmt: skip
    pack.add_argument("--local", action="store_true", help="pack in this process, by all its cores")
    check = verbs.add_parser(
        "check", parents=[study], help="find what is unreadable, doubled or in source and test",
        description="Decode every picture; count classes and splits; list what cannot be read, is "
        "there more than once, or is odd, and the pictures of the source that look like test "
        "pictures of a target. Writes data_check.md, and lists of ids that `exclude` of a dataset "
        "takes, to the study's folder. Exit code 1: something cannot be read.",
    )  # fmt: skip
    check.add_argument(
        "--against", metavar="TARGET", help="look for test pictures of this target only"
    )
    verbs.add_parser(
        "show", parents=[study], help="draw a sheet of their pictures",
        description="Draw sample pictures of the source and of every target, as the network sees "
        "them, to samples.png in the study's folder.",
    )  # fmt: skip
    verbs.add_parser(
        "warm", parents=[study], help="read what will be read into this machine's memory",
        description="Read the packed pictures that the study's subsets keep once, in the order of "
        "the disk: trainings on this machine share them in its page cache. Shards in object "
        "storage are fetched.",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(argv)
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
    from dp4tl_ray.store import StoreError, open_store

    if verb == "plan":
        with contextlib.suppress(StoreError):
            return open_store(uri, write=False)
    return open_store(uri, write=verb not in READ_ONLY)


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
    if absent:
        print("\n" + "\n".join(absent))
    return 0


def _run(study: "Study", store: "Store", local: bool, until: str, point: list[str]) -> int:
    from dp4tl_ray.runners.status import duration
    from dp4tl_ray.sweep import plan_study, run_study, weights_used

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
    from dp4tl_ray.sweep import plan_study, triage_study

    table, errors, path = triage_study(study, store, local)
    print(table)
    for error in sorted(errors):
        print(f"failed: {error}", file=sys.stderr)
    _print_alarms(plan_study(study, "prune"), store)
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
            store.publish_folder(folder)
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

    outcome, lines = pack_study(study, plan_study(study, "data"), store, local)
    print("".join(f"{line}\n" for line in lines), end="")
    for error in sorted(set(outcome.errors.values())):
        print(f"failed: {error}", file=sys.stderr)
    _print_alarms(plan_study(study, "data"), store)
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
