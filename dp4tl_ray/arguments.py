"""The words of the command line, and the help on them."""

import argparse
from pathlib import Path
from typing import Any

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
  npy                   kept.npy: indices into the source's dataset, int64, most wanted first
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


def command_line() -> argparse.ArgumentParser:
    """Return what reads the command line."""
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
        "--only", nargs="+", action="extend", default=[], metavar="AXIS=VALUE",
        help="run only the cells there, as an agent of a sweep does: --only seed=0 "
        "method=label_mapping; of several values of an axis all; what is done is reported",
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
    verbs.add_parser(
        "wandb-workspace", parents=[study], help="save a view of a study in Weights & Biases",
        description="Save a view of the study's runs: what decides accuracy, and losses by method. "
        "Saved again it is brought up to date; sections that you have added stay. Needs "
        "dp4tl_ray[workspaces], and a server that answers.",
    )  # fmt: skip
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
        "pack", parents=[study], help="pack them into the store",
        description="Decode every picture once and pack it, raw or as JPEG, as `stored` of each "
        "dataset says: where there are many shards, by Ray tasks on all machines that share the "
        "store's folder, where whole shards are not packed again. Into object storage one machine "
        "packs, as `run` does.",
    )  # fmt: skip
    pack.add_argument("--local", action="store_true", help="pack in this process, by all its cores")
    check = verbs.add_parser(
        "check", parents=[study], help="find what is unreadable, doubled or in source and test",
        description="Decode every picture; count classes and splits; list what cannot be read, is "
        "odd, or is there more than once: pixel by pixel, or rescaled, compressed or mirrored; and "
        "the pictures of the source that look like test pictures of a target. Of copies across "
        "splits, those outside test are listed; whether what looks alike is a copy is for you to "
        "judge. Writes data_check.md, and lists of ids that `exclude` of a dataset takes, to the "
        "study's folder. Exit code 1: something cannot be read.",
    )  # fmt: skip
    check.add_argument(
        "--against",
        metavar="TARGET",
        help="check the source, and the targets of this dataset or label",
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
