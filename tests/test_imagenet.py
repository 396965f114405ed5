"""The paper-scale studies, run to the end on a tiny copy of ImageNet in its real layout.

They are the files as they are, with the data root and what is in OVERRIDES set from outside.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from ruamel.yaml import YAML

from dp4tl_ray.cli import main
from dp4tl_ray.plan import Plan
from dp4tl_ray.results import read_results
from dp4tl_ray.specs.adversarial import relative_cost
from dp4tl_ray.specs.data import ImageNet, OnDisk
from dp4tl_ray.specs.load import load_study
from dp4tl_ray.specs.pretraining import Pretrained
from dp4tl_ray.specs.schema import schema_text
from dp4tl_ray.specs.steps import PretrainStep, PruneStep
from dp4tl_ray.specs.training import Recipe, Training
from dp4tl_ray.sweep import plan_study
from tests.data.copies import COOP, coop
from tests.data.loading import load_images

CLASSES, PER_CLASS = 1000, 2
TARGETS = ("OxfordPets", "DescribableTextures", "OxfordFlowers", "StanfordCars", "SUN397")

Overrides = dict[str, Any]


def split_file(name: str) -> str:
    """Return where CoOp's split of a target is, below the data root."""
    return f"{COOP[name][0]}/split_zhou_{name}.json"


EVERYWHERE: Overrides = {
    "seeds": [0],
    "pruning_ratios": [0.0, 0.8],
    "transfers.0.l2": [1.0, 10.0],
    "runtime.threads_per_worker": 1,
}
"""Budgets: fewer seeds, ratios and strengths to choose from. Networks, batches and batch-norm
groups must shrink too (see `training`), because a ResNet-50 at 160 pixels takes a CPU minutes.
Image sizes, objectives, schedules, augmentations, methods, targets and workers are the files'."""


def training(where: str, steps: int) -> Overrides:
    """Make one of a study's trainings a matter of a second."""
    return {
        f"{where}.network": {
            "arch": "vit", "patch_size": 16, "width": 16, "depth": 1, "num_heads": 1
        },
        f"{where}.budget": {"examples_seen": 16 * steps},
        f"{where}.batch_size": 16,
        f"{where}.batch_norm.group_size": 2,
    }  # fmt: skip


OVERRIDES: dict[str, Overrides] = {
    "imagenet_label_mapping": {
        **training("surrogate", 2),
        **training("pretraining.0", 1),
        "surrogate.resolution": None,  # a transformer takes images of one size
        "pretraining.0.resolution": None,
        "transfers.1.epochs": 1,
        "transfers.1.lrs": [0.01],
    },
    "imagenet_feature_mapping_moco": {
        **training("surrogate", 2),
        **training("pretraining.0", 1),
        **training("pretraining.1", 2),
        # a quarter of what is kept of the tiny copy
        "surrogate.queue_size": 64,
        "pretraining.0.queue_size": 64,
        "pretraining.1.queue_size": 64,
    },
    "imagenet_label_mapping_vit": {
        **training("surrogate", 2),
        **training("pretraining.0", 1),
    },
    "imagenet_adversarial": {
        **training("surrogate", 2),
        **training("pretraining.0", 1),
        # two targets and variants: every adversarial training attacks 256 images at its end
        "targets": [
            {"dataset": "coop", "path": split_file(name), "image_size": 160} for name in TARGETS[:2]
        ],
        "adversarial": ["none", "dp4tl_asis"],
        "transfers.1.epochs": 1,
        "transfers.1.lrs": [0.01],
        "robustness.0.eps": ["1/255"],
        "robustness.1.eps": [0.5],
        # beyond what anything withstands, because Square takes 5,000 passes where it fails
        "robustness.2.eps": [0.9],
        "robustness.2.num_images": 2,
    },
}


def study_file(name: str) -> Path:
    return Path("experiments") / f"{name}.yaml"


def settings(name: str, data_root: Path) -> list[str]:
    changes = {"data_root": str(data_root), **EVERYWHERE, **OVERRIDES[name]}
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def dp4tl(verb: str, name: str, store: Path, changes: list[str], *options: str) -> int:
    """Run a command in this process; returns its exit code."""
    words = [word for change in changes for word in ("--set", change)]
    return main([verb, str(study_file(name)), "--store", str(store), *options, *words])


def write_picture(path: Path, rng: np.random.Generator) -> None:
    width, height = rng.integers(12, 24, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    coarse.resize((int(width), int(height))).save(path, "JPEG")


@pytest.fixture(scope="session")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root: train/<wnid>/<wnid>_<number>.JPEG of 1,000 classes, and CoOp's targets."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for index in range(CLASSES):
        wnid = f"n{1440764 + 13649 * index:08d}"
        folder = root / "imagenet" / "train" / wnid
        folder.mkdir(parents=True)
        for number in rng.choice(30000, PER_CLASS, replace=False):
            write_picture(folder / f"{wnid}_{number}.JPEG", rng)
    classes = ("american bulldog", "Audi TT (2011)", "sea_anemone")
    for target in TARGETS:
        coop(root, target, rng, classes, counts=(6, 3, 3))
        for path in sorted((root / COOP[target][0]).rglob("*.jpg"))[::4]:
            Image.open(path).convert("L").save(path)
    return root


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the three studies: two of them read the same pictures."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_study_of_imagenet_runs_to_the_end(name: str, tiny_imagenet: Path, store: Path) -> None:
    changes = settings(name, tiny_imagenet)
    assert dp4tl("run", name, store, changes, "--local") == 0
    lines = store / "studies" / name / "results.jsonl"
    validator = Draft202012Validator(json.loads(schema_text("result")))
    for line in lines.read_text().splitlines():
        validator.validate(json.loads(line))
    results = read_results(lines)
    assert len(results) == len(plan_study(load_study(study_file(name), changes)).cells)
    assert {result.status for result in results} == {"done"}
    everything = CLASSES * PER_CLASS
    assert {r.num_source for r in results} == {everything}
    pruned = [r for r in results if r.pruning_ratio > 0]
    assert pruned and {r.num_kept for r in pruned} == {everything // 5}
    whole_classes = [r for r in pruned if r.method in ("label_mapping", "random_classes")]
    assert {r.num_classes_kept for r in whole_classes} <= {CLASSES // 5}


@pytest.mark.parametrize("name", OVERRIDES)
def test_the_cost_in_a_files_head_is_that_of_its_plan(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [f"data_root={tmp_path}"]
    assert dp4tl("plan", name, tmp_path / "store", here, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    absent = list[str]()
    plan = plan_study(load_study(study_file(name), here), absent=absent)
    datasets = [plan.study.source, *plan.study.targets]
    for dataset, line in zip(datasets, printed["absent"], strict=False):
        assert isinstance(dataset, OnDisk)
        assert line.startswith(f"{tmp_path / dataset.path} is not here")
    assert printed["absent"] == absent
    unchecked = [line for line in absent if ".queue_size: " in line and "not checked" in line]
    assert len(unchecked) == len(absent) - len(datasets) == 3 * name.endswith("moco")
    assert len(printed["steps"]) == len(plan.steps)
    assert not any(step["done"] for step in printed["steps"])

    text = study_file(name).read_text()
    stated = re.search(r"# Cost: (\d+) pretrainings, ([\d.]+) times the full source", text)
    assert stated is not None
    shares = [share_kept(plan, key) for key in trainings(plan)]
    assert int(stated[1]) == len(shares)
    assert float(stated[2]) == pytest.approx(sum(shares), abs=0.05)


def trainings(plan: Plan) -> list[str]:
    return [
        key
        for key, step in plan.steps.items()
        if isinstance(step.spec, PretrainStep) and isinstance(step.spec.pretraining, Training)
    ]


def share_kept(plan: Plan, key: str) -> float:
    """Return how much of a standard training on the full source a pretraining costs."""
    step = plan.steps[key]
    assert isinstance(step.spec, PretrainStep)
    recipe = step.spec.pretraining
    assert isinstance(recipe, Training)
    cost = relative_cost(recipe.adversarial) if isinstance(recipe, Recipe) else 1.0
    if recipe.budget.epochs is None or "prune" not in step.inputs:
        return cost
    prune = plan.steps[step.inputs["prune"]].spec
    assert isinstance(prune, PruneStep)
    return cost * (1 - prune.pruning_ratio)


@pytest.mark.parametrize("name", OVERRIDES)
def test_without_its_data_a_study_is_not_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "store"
    assert dp4tl("run", name, folder, [f"data_root={tmp_path}"]) == 2
    assert f"{tmp_path / 'imagenet' / 'train'} is not a folder" in capsys.readouterr().err
    assert not list(folder.glob("*/*/*"))


def test_what_there_is_of_the_data_is_not_called_absent(
    tiny_imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "imagenet").symlink_to(tiny_imagenet / "imagenet")
    here = [f"data_root={tmp_path}"]
    name = "imagenet_feature_mapping_moco"
    # the source is here, so its queue is checked: 32,768 keys for 2,000 pictures
    assert dp4tl("plan", name, tmp_path / "store", here) == 2
    assert "32768 is more than a quarter" in capsys.readouterr().err
    assert dp4tl("plan", "imagenet_label_mapping", tmp_path / "store", here) == 2
    assert "batch_size 512 is more than the " in capsys.readouterr().err
    here += ["surrogate.batch_size=128", "pretraining[0].batch_size=128"]
    here += ["runtime={pretrain_workers: 1}"]
    assert dp4tl("plan", "imagenet_label_mapping", tmp_path / "store", here) == 0
    absent = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert [line.split(" is not here")[0] for line in absent] == [
        str(tmp_path / split_file(target)) for target in TARGETS[:4]
    ]


def test_the_surrogate_that_needs_no_training_can_be_put_in() -> None:
    text = study_file("imagenet_label_mapping").read_text()
    block = [line[2:] for line in text.splitlines() if re.match(r"# (surrogate:|  \w+: )", line)]
    surrogate = YAML(typ="safe").load("\n".join(block))["surrogate"]
    study = load_study(study_file("imagenet_label_mapping"), [f"surrogate={json.dumps(surrogate)}"])
    assert isinstance(study.surrogate, Pretrained)


def test_imagenets_classes_are_read_in_the_order_of_their_wnids(tiny_imagenet: Path) -> None:
    spec = ImageNet(path=str(tiny_imagenet / "imagenet"), image_size=8, channels=1)
    data = load_images(spec, "source")
    assert len(data.class_names) == CLASSES and list(data.class_names) == sorted(data.class_names)
    assert np.bincount(data.labels).tolist() == [PER_CLASS] * CLASSES
    assert all(
        re.fullmatch(rf"train/{data.class_names[label]}/{data.class_names[label]}_\d+\.JPEG", name)
        for name, label in zip(data.ids, data.labels, strict=True)
    )
