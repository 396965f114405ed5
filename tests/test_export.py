"""Exports: what is written is what was kept, others read it, and nothing is overwritten."""

import csv
import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from ruamel.yaml import YAML
from torchvision.datasets import ImageFolder as TorchvisionFolder

from dp4tl_ray.arguments import EXPORT_FORMATS
from dp4tl_ray.data.decode import decoded
from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.data.pictures import Pictures as Listed
from dp4tl_ray.export import formats, subset
from dp4tl_ray.export.choose import ExportError
from dp4tl_ray.export.formats import Kept, write_format
from dp4tl_ray.export.subset import export_subset
from dp4tl_ray.plan import Cell, Plan
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.data import (
    CoOp,
    Custom,
    Dataset,
    GlyphsAndTextures,
    HuggingFace,
    ImageFolder,
    ImageNet,
    Parquet,
    TorchvisionDataset,
    Waterbirds,
    WebDataset,
)
from dp4tl_ray.specs.records import Export, ExportFormat
from dp4tl_ray.specs.study import Study
from dp4tl_ray.store import Store, open_store, sha256_of
from dp4tl_ray.sweep import alarms, plan_study, run_study
from tests.conftest import folder, supervised, tiny_study, write_folder
from tests.data.copies import TORCHVISION, imagenet, write_classes
from tests.data.loading import load_images

Pictures = dict[str, str]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
METHODS: list[Any] = [
    "random_classes",
    "label_mapping",
    {"method": "label_mapping", "select": "whole_units"},
    {"method": "label_mapping", "temperature": 1, "select": {"rule": "quota", "alpha": 0.5}},
    {"method": "label_mapping", "combine": "mean", "within": "el2n"},
    {"method": "el2n", "select": "ccs"},
    {"method": "el2n", "select": "d2"},
    {"method": "uncertainty", "select": "stratified"},
    {"method": "uncertainty", "select": "gumbel"},
]
RATIOS = [0.25, 0.5, 0.8]
LABELS = [label(m) for m in tiny_study({"source": "s", "target": "t"}, methods=METHODS).methods]


@dataclass(frozen=True)
class World:
    """A study whose subsets are chosen, and nothing more."""

    plan: Plan
    store: Store
    source: str

    def cell(self, method: str, ratio: float, seed: int = 1) -> Cell:
        return next(
            c
            for c in self.plan.cells
            if c.method and label(c.method) == method and (c.pruning_ratio, c.seed) == (ratio, seed)
        )

    def kept(self, cell: Cell) -> list[int]:
        """The kept rows, as the prune step left them."""
        artifact = self.store.find(self.plan.steps[cell.steps["prune"]])
        assert artifact is not None
        rows: list[int] = artifact.array("kept_indices").tolist()
        return rows

    def export(
        self, out: Path, method: str, ratio: float, form: ExportFormat = "csv", **asked: str
    ) -> tuple[Export, Path]:
        wanted = {"method": method, "ratio": str(ratio), "seed": "1", "target": None, **asked}
        if wanted["target"] is None:
            wanted["target"] = label(self.plan.study.targets[0])
        return export_subset(self.plan, self.store, wanted, form, out, "dp4tl run")


@pytest.fixture(scope="module")
def world(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> World:
    targets = [folder(pictures["target"], shots=n) for n in (3, 4)]
    small = tiny_study(
        pictures,
        targets=targets,
        methods=METHODS,
        pruning_ratios=[0.0, *RATIOS],
        pretraining=[supervised()],
        seeds=[0, 1],
    )
    store = open_store(str(tmp_path_factory.mktemp("store")))
    outcome = run_study(small, plan_study(small, "prune"), store, local=True)
    assert not outcome.errors
    return World(plan_study(small), store, pictures["source"])


def table(path: Path) -> list[dict[str, str]]:
    with (path / "kept.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(form: ExportFormat, path: Path, source: str) -> list[int]:
    """The rows that an export lists, read without the package, in the order of its file."""
    samples = TorchvisionFolder(source).samples
    ids = [os.path.relpath(file, source) for file, _ in samples]
    match form:
        case "npy":
            array = np.load(path / "kept.npy")
            assert array.dtype == np.int64
            return [int(row) for row in array]
        case "txt":
            return [ids.index(name) for name in (path / "kept.txt").read_text().splitlines()]
        case "csv":
            return [ids.index(row["id"]) for row in table(path)]
        case "imagefolder-symlinks":
            linked = TorchvisionFolder(str(path / "train"))
            return [ids.index(os.path.relpath(os.readlink(f), source)) for f, _ in linked.samples]
        case "ffcv-indices":
            tensor = torch.load(path / "kept.indices", weights_only=True)
            assert tensor.dtype == torch.int64
            rows: list[int] = tensor.tolist()
            return rows
        case "hf":
            lines = (path / "kept.jsonl").read_text().splitlines()
            return [json.loads(line)["index"] for line in lines]
        case "dp4tl":
            return [ids.index(name) for name in json.loads((path / "kept.json").read_text())["ids"]]


def test_the_command_offers_every_format() -> None:
    assert EXPORT_FORMATS == FORMATS


@pytest.mark.parametrize("form", FORMATS)
def test_a_subset_is_the_kept_examples_in_every_format(
    world: World, tmp_path: Path, form: ExportFormat
) -> None:
    kept = world.kept(world.cell("label_mapping", 0.5))
    export, path = world.export(tmp_path / "out", "label_mapping", 0.5, form)
    assert len(kept) == 72 and path == tmp_path / "out"
    rows = read(form, path, world.source)
    ascending = form in ("ffcv-indices", "imagefolder-symlinks")
    assert (rows if ascending else sorted(rows)) == kept
    assert export == Export.model_validate_json((path / "manifest.json").read_text())
    for name, file in export.files.items():
        assert sha256_of(path / name) == file.sha256
        assert (path / name).stat().st_size == file.size
    written = {p.name for p in path.iterdir()} - {"manifest.json", "train"}
    assert written == set(export.files)
    assert all(name in export.use for name in export.files) or form == "imagefolder-symlinks"


@pytest.mark.parametrize("method", LABELS)
def test_the_first_of_a_list_are_what_a_larger_ratio_keeps(
    world: World, tmp_path: Path, method: str
) -> None:
    export, path = world.export(tmp_path / "out", method, 0.25)
    rows = [int(row["index"]) for row in table(path)]
    assert len(rows) == 108 or method == "label_mapping(select=whole_units)"
    assert sorted(rows) == world.kept(world.cell(method, 0.25))
    for ratio in RATIOS[1:]:
        kept = world.kept(world.cell(method, ratio))
        assert sorted(rows[: len(kept)]) == kept
    assert ("ends within a unit" in export.order) == ("whole_units" in method)


def test_a_row_says_what_an_example_is(world: World, tmp_path: Path) -> None:
    _, path = world.export(tmp_path / "out", "label_mapping", 0.5)
    samples, rows = TorchvisionFolder(world.source), table(path)
    for rank, row in enumerate(rows):
        file, k = samples.samples[int(row["index"])]
        assert (os.path.relpath(file, world.source), k) == (row["id"], int(row["class_index"]))
        assert samples.classes[k] == row["class_name"] and int(row["rank"]) == rank
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    votes = {row["class_name"]: float(row["score"]) for row in rows}
    assert all(vote.is_integer() for vote in votes.values()) and sum(votes.values()) <= 3 * 3


def test_links_are_a_dataset_of_the_kept_classes(world: World, tmp_path: Path) -> None:
    export, path = world.export(tmp_path / "out", "random_classes", 0.5, "imagefolder-symlinks")
    kept = world.kept(world.cell("random_classes", 0.5))
    pictures = TorchvisionFolder(str(path / "train"))
    assert len(pictures.classes) == export.num_classes_kept < 6
    spec = ImageFolder(path=str(path), image_size=16, channels=1)
    again = load_images(spec, "source")
    whole = load_images(spec.model_copy(update={"path": world.source}), "source")
    assert np.array_equal(again.images, whole.images[kept])
    links = (path / "links.tsv").read_text().splitlines()
    assert len(links) == 72
    for line in links:
        link, target = line.split("\t")
        assert os.readlink(path / link) == target and os.path.isabs(target)


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_links_keep_names_within_classes_of_any_name(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, prefix: str
) -> None:
    names = (
        ["train/a.png", "train/b/train/a.png", "x/a.png"] if prefix else ["c/a.png", "c/c/a.png"]
    )
    classes = sorted({name.split("/")[0] for name in names})
    for name in names:
        (tmp_path / prefix / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / prefix / name)
    labels = np.array([classes.index(name.split("/")[0]) for name in names])
    kept = Kept(
        rows=np.arange(len(names)),
        listed_rows=np.arange(len(names)),
        ids=[prefix + name for name in names],
        labels=labels,
        class_names=classes,
        scores=np.zeros(len(names)),
        source=ImageFolder(path=str(tmp_path)),
    )
    out = tmp_path_factory.mktemp("out")
    write_format(kept, "imagefolder-symlinks", out, out)
    assert [(out / "train" / name).resolve() for name in names] == [
        (tmp_path / prefix / name).resolve() for name in names
    ]


@pytest.mark.parametrize(
    ("ids", "classes", "links"),
    [
        # one class of several folders: the folder becomes a part of the name
        (
            ["x/b_c-2.png", "x/b_c.png", "x_b/c.png"],
            ["k", "k", "k"],
            ["k/x_b_c-2.png", "k/x_b_c.png", "k/x_b_c-3.png"],
        ),
        # two classes that would be one, once a class is a folder
        (["1/p.png", "1/q.png"], ["a/b", "a_b"], ["a_b/1_p.png", "a_b-2/1_q.png"]),
        # names that a loader made up; none of them leads elsewhere
        (["/mine/0.png", "../0.png", "/"], ["k", "k", "k"], ["k/mine_0.png", "k/0.png", "k/_"]),
        (["/mine/0.png", "/mine/../0.png"], ["k", "k"], ["mine/0.png", "mine/0-2.png"]),
    ],
)
def test_links_merge_no_pictures_and_no_classes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ids: list[str],
    classes: list[str],
    links: list[str],
) -> None:
    class_names, n = sorted({*classes}), len(ids)
    labels = np.array([class_names.index(name) for name in classes])
    files = [f"/pictures/{row}" for row in range(n)]
    listed = Listed(
        ids, labels, np.zeros(n, np.int8), (*class_names,),
        read=files.__getitem__, files=files, one_file_each=True,  # type: ignore[arg-type]
    )  # fmt: skip
    monkeypatch.setattr(formats, "open_pictures", lambda *_: listed)
    every, source = np.arange(n), ImageFolder(path="/pictures")
    kept = Kept(every, every, ids, labels, class_names, np.zeros(n), source)
    write_format(kept, "imagefolder-symlinks", tmp_path, tmp_path)
    found = {path: os.readlink(path) for path in tmp_path.rglob("*") if path.is_symlink()}
    assert found == {tmp_path / "train" / link: f for link, f in zip(links, files, strict=True)}


KEPT = Kept(
    rows=np.array([2, 0]),
    listed_rows=np.array([1, 3, 4]),
    ids=["a", 'b,"c', "d\u00e9"],
    labels=np.array([0, 1, 1]),
    class_names=["x", "y"],
    scores=np.array([-np.inf, 2.0, np.inf]),
    source=GlyphsAndTextures(),
)


def test_json_knows_no_infinite_scores(tmp_path: Path) -> None:
    write_format(KEPT, "hf", tmp_path, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [None, None]
    assert [(line["id"], line["rank"]) for line in lines] == [("d\u00e9", 0), ("a", 1)]


def test_links_to_what_is_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError,
        match="of glyphs_and_textures have no files; allowed: txt, csv, hf, dp4tl, npy, ffcv-ind",
    ):
        write_format(KEPT, "imagefolder-symlinks", tmp_path, tmp_path)
    other = replace(KEPT, source=ImageFolder(path=str(write_folder(tmp_path, range(2), 2, 0))))
    with pytest.raises(ExportError, match=r"has no a any more"):
        write_format(other, "imagefolder-symlinks", tmp_path, tmp_path)


def test_links_to_imagenet_are_in_folders_of_wnids(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wnids = {"n01440764": ("tench",), "n01443537": ("goldfish",)}
    imagenet(tmp_path, np.random.default_rng(0), wnids)
    source = ImageNet(path=str(tmp_path))
    pictures = open_pictures(source, "source")
    kept = whole(source)
    out = tmp_path_factory.mktemp("out")
    write_format(kept, "imagefolder-symlinks", out, out)
    links = sorted(path for path in out.rglob("*") if path.is_symlink())
    assert [str(link.relative_to(out)) for link in links] == sorted(pictures.ids)
    assert all(link.resolve() == (tmp_path / link.relative_to(out)).resolve() for link in links)


# -- what an index counts --------------------------------------------------------------------------


def whole(source: Dataset) -> Kept:
    """Everything that a source lists."""
    pictures = open_pictures(source, "source")
    every, class_names = np.arange(len(pictures)), [*pictures.class_names]
    scores = np.zeros(len(pictures))
    return Kept(every, every, [*pictures.ids], pictures.labels, class_names, scores, source)


@pytest.mark.parametrize("name", ["folder", "split folder", "imagenet", "cifar10", "cifar100"])
def test_an_index_counts_the_items_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # copies are not what torchvision knows the checksums of
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    rng, source = np.random.default_rng(0), dict[str, Any](path=str(tmp_path))
    match name:
        case "folder" | "split folder":
            below = tmp_path / ("train" if name == "split folder" else "")
            write_classes(below, ("b", "a", "B c"), 3, rng)
            spec: Dataset = ImageFolder(**source)
        case "imagenet":
            imagenet(tmp_path, rng, {"n01443537": ("goldfish",), "n01440764": ("tench",)})
            spec = ImageNet(**source)
        case _:
            TORCHVISION[name](tmp_path, rng)
            spec = TorchvisionDataset(dataset=name, **source)  # type: ignore[arg-type]
    kept, pictures = whole(spec), open_pictures(spec, "source")
    assert kept.indexed is not None
    theirs = eval(kept.indexed, {"torchvision": torchvision})
    assert len(theirs) == len(pictures) > 6
    for row, (picture, k) in enumerate(theirs):
        assert k == pictures.labels[row]
        assert np.array_equal(np.asarray(picture), decoded(pictures.read(row), 3))


def test_an_index_counts_the_rows_of_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for n, name in enumerate(("train-1", "a/train-0", "test-0", "train-0")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        ids = [f"{n} {row}" for row in range(3)]
        rows = {"image": [b""] * 3, "label": ["x", "y", "x"], "id": ids}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet", row_group_size=2)
    kept = whole(Parquet(path=str(tmp_path), id="id"))
    assert kept.indexed is not None and kept.indexed.endswith("the order of sorted pathlib paths")
    files = sorted(file for file in tmp_path.rglob("*.parquet") if "train" in file.name)
    table = importlib.import_module("pyarrow.dataset").dataset([*map(str, files)]).to_table()
    assert table["id"].to_pylist() == kept.ids


def test_an_index_counts_the_rows_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [b"x"] * 5, "label": ["d", "a", "c", "a", "b"]}
    splits = {name: datasets.Dataset.from_dict(rows) for name in ("test", "train")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "d"))
    kept = whole(HuggingFace(path=str(tmp_path / "d")))
    assert kept.indexed == f"split train of {tmp_path / 'd'}"
    assert [kept.class_names[k] for k in kept.labels] == rows["label"]


def test_an_index_of_a_custom_dataset_counts_what_its_loader_lists() -> None:
    mine = replace(KEPT, source=Custom(path="/mine", loader="listed"))
    assert mine.indexed == "the training pictures of /mine as loader listed lists them"
    assert KEPT.indexed == "glyphs_and_textures of dp4tl_ray"


SORTED: list[Dataset] = [
    *(
        TorchvisionDataset(dataset=name, path="/x")
        for name in get_args(TorchvisionDataset.model_fields["dataset"].annotation)
        if not name.startswith("cifar")
    ),
    CoOp(path="/x"),
    Waterbirds(path="/x"),
    WebDataset(path="/x"),
]


@pytest.mark.parametrize("source", SORTED, ids=lambda source: source.dataset)
def test_what_is_sorted_by_name_has_ids_and_no_indices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Dataset
) -> None:
    kept = replace(KEPT, source=source)
    for form in FORMATS[:1] + FORMATS[4:5]:
        with pytest.raises(
            ExportError,
            match=f"{form} has indices alone, and the pictures of {source.dataset} are sorted .* "
            "carry ids: txt, csv, hf, dp4tl, and imagefolder-symlinks",
        ):
            write_format(kept, form, tmp_path, tmp_path)
    assert not any(tmp_path.iterdir())
    write_format(kept, "csv", tmp_path, tmp_path)
    assert [(row["index"], row["id"]) for row in table(tmp_path)] == [("", "d\u00e9"), ("", "a")]
    _, use = write_format(kept, "hf", tmp_path, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [None, None]
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = datasets.Dataset.from_dict({"id": ["d\u00e9", "b", "a"]})
    assert eval(use, {"dataset": dataset, "datasets": datasets})["id"][:] == ["d\u00e9", "a"]


BROKEN = ("stripes0/000.png", "stripes2/007.png", "stripes5/023.png")
UNWANTED = ("stripes0/001.png", "stripes3/000.png", "stripes5/022.png")


@dataclass(frozen=True)
class Thinned:
    """A source of which some was left out, and a subset of the rest."""

    study: Callable[..., Study]
    plan: Plan
    store: Store
    source: str
    num_skipped: int
    num_excluded: int

    def chosen(self, plan: Plan) -> tuple[list[int], list[str]]:
        """Rows and ids that the one prune step of a plan keeps."""
        steps = next(cell.steps for cell in plan.cells if "prune" in cell.steps)
        data, pruned = (self.store.find(plan.steps[steps[r]]) for r in ("source", "prune"))
        assert data is not None and pruned is not None
        rows, ids = pruned.array("kept_indices").tolist(), data.json("ids")
        return rows, [ids[row] for row in rows]

    def export(self, form: ExportFormat, out: Path) -> tuple[Export, Path]:
        asked = dict.fromkeys(("method", "ratio", "seed", "target"))
        return export_subset(self.plan, self.store, asked, form, out, "")

    def given(self, path: Path) -> tuple[Plan, set[str]]:
        """Choose again, as a list says; returns the plan and the errors."""
        again = self.study(methods=[{"method": "given", "path": str(path)}])
        outcome = run_study(again, plan_study(again, "prune"), self.store, local=True)
        return plan_study(again), {*outcome.errors.values()}


@pytest.fixture(scope="module", params=["skip", "exclude", "both"])
def thinned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Thinned:
    root, what = tmp_path_factory.mktemp("thinned"), request.param
    paths = {
        "source": str(write_folder(root / "source", range(6), 24, seed=0)),
        "target": str(write_folder(root / "target", range(1, 4), 30, seed=1)),
    }
    changes: dict[str, Any] = {}
    if what != "exclude":
        changes["corrupt"] = "skip"
        for name in BROKEN:
            file = root / "source" / name
            file.write_bytes(file.read_bytes()[:60])
    if what != "skip":
        changes["exclude"] = str(root / "unwanted.txt")
        (root / "unwanted.txt").write_text("".join(f"{name}\n" for name in UNWANTED))

    def study(**others: Any) -> Study:
        return tiny_study(
            paths,
            source=folder(paths["source"], **changes),
            pruning_ratios=[0.5],
            pretraining=[supervised()],
            **others,
        )

    store, asked = open_store(str(root / "store")), study(methods=["random_examples"])
    assert not run_study(asked, plan_study(asked, "prune"), store, local=True).errors
    skipped, excluded = 3 * (what != "exclude"), 3 * (what != "skip")
    return Thinned(study, plan_study(asked), store, paths["source"], skipped, excluded)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_is_of_the_whole_dataset_whatever_was_left_out(
    thinned: Thinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: ExportFormat
) -> None:
    export, path = thinned.export(form, tmp_path / "out")
    _, wanted = thinned.chosen(thinned.plan)
    there = TorchvisionFolder(thinned.source)
    names = [os.path.relpath(file, thinned.source) for file, _ in there.samples]
    assert len(wanted) == (69 if thinned.num_skipped + thinned.num_excluded == 6 else 70)
    assert sorted(names[row] for row in read(form, path, thinned.source)) == wanted
    assert (export.num_skipped, export.num_excluded) == (thinned.num_skipped, thinned.num_excluded)
    assert export.num_source == 144 - thinned.num_skipped - thinned.num_excluded
    assert export.index == f"torchvision.datasets.ImageFolder({thinned.source!r})"
    monkeypatch.chdir(path)
    match form:
        case "npy":
            dataset = eval(str(export.index), {"torchvision": torchvision})
            found = eval(export.use, {"torch": torch, "numpy": np, "dataset": dataset})
            listed = [names[row] for row in read(form, path, thinned.source)]
            for (picture, k), name in zip(found, listed, strict=True):
                with Image.open(Path(thinned.source, name)) as file:
                    assert np.array_equal(np.asarray(picture.convert("L")), np.asarray(file))
                assert there.classes[k] == name.split("/")[0]
        case "hf":
            datasets = pytest.importorskip("datasets")
            monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
            dataset = datasets.Dataset.from_dict({"id": names})
            found = eval(export.use, {"datasets": datasets, "dataset": dataset})
            assert found["id"][:] == wanted
        case "csv":
            assert all(names[int(row["index"])] == row["id"] for row in table(path))


@pytest.mark.parametrize("name", ["kept.npy", "kept.csv", "kept.txt", "kept.json", "index.csv"])
def test_a_thinned_subset_comes_back_as_it_was(thinned: Thinned, tmp_path: Path, name: str) -> None:
    form = {"kept.json": "dp4tl", "index.csv": "csv"}.get(name, name.removeprefix("kept."))
    export, path = thinned.export(form, tmp_path / "out")  # type: ignore[arg-type]
    if name == "index.csv":
        lines = "".join(f"{row['index']}\n" for row in table(path))
        (path / name).write_text(f"index\n{lines}")
    if form == "dp4tl":
        [method] = YAML(typ="safe", pure=True).load(export.use)["methods"]
        assert method == {"method": "given", "path": str(path / name)}
    plan, errors = thinned.given(path / name)
    assert not errors and thinned.chosen(plan) == thinned.chosen(thinned.plan)
    assert not [line for line in alarms(plan, thinned.store) if line.startswith("score")]


@pytest.mark.parametrize("name", ["all.npy", "all.txt"])
def test_what_a_list_names_and_was_left_out_is_an_alarm(
    thinned: Thinned, tmp_path: Path, name: str
) -> None:
    samples = TorchvisionFolder(thinned.source).samples
    names = [os.path.relpath(file, thinned.source) for file, _ in samples]
    path, left_out = tmp_path / name, thinned.num_skipped + thinned.num_excluded
    if name == "all.npy":
        np.save(path, np.arange(144))
    else:
        path.write_text("\n".join(names))
    plan, errors = thinned.given(path)
    gone = {*BROKEN[: thinned.num_skipped], *UNWANTED[: thinned.num_excluded]}
    there = [one for one in names if one not in gone]
    assert not errors and thinned.chosen(plan)[1] == there[: round(0.5 * len(there))]
    [alarm] = [line for line in alarms(plan, thinned.store) if line.startswith("score")]
    assert f"{left_out} of the 144 examples that {path} lists were left out" in alarm
    if name == "all.npy":
        np.save(path, np.arange(145))
    else:
        path.write_text("\n".join([*names, "other.png"]))
    _, errors = thinned.given(path)
    assert errors and all("is of another dataset: " in error for error in errors)


def test_what_was_excluded_is_not_counted_where_its_list_is_gone(
    thinned: Thinned, tmp_path: Path
) -> None:
    unwanted = Path(thinned.source).parent / "unwanted.txt"
    hidden = unwanted.rename(tmp_path / "hidden") if thinned.num_excluded else None
    try:
        export, _ = thinned.export("npy", tmp_path / "out")
    finally:
        if hidden:
            hidden.rename(unwanted)
    assert export.num_excluded == (None if hidden else 0)
    assert export.num_skipped == thinned.num_skipped


# -- what is there already -------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_export_again_changes_nothing(
    world: World, tmp_path: Path, form: ExportFormat
) -> None:
    first, path = world.export(tmp_path / "out", "label_mapping", 0.5, form)
    before = {p: p.lstat().st_mtime_ns for p in path.rglob("*")}
    second, _ = world.export(tmp_path / "out", "label_mapping", 0.5, form)
    assert second == first and {p: p.lstat().st_mtime_ns for p in path.rglob("*")} == before
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_that_is_there_is_overwritten(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    world.export(out, "label_mapping", 0.5, "txt")  # an empty folder is nothing
    with pytest.raises(ExportError, match=r"another export \(label_mapping at 0.5 .*, as txt, of"):
        world.export(out, "label_mapping", 0.8, "txt")
    (out / "kept.txt").write_text("changed")
    with pytest.raises(ExportError, match=r"holds this export, but kept\.txt was changed"):
        world.export(out, "label_mapping", 0.5, "txt")
    assert (out / "kept.txt").read_text() == "changed"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    (tmp_path / "file").write_text("")
    for taken in ("mine", "file"):
        with pytest.raises(ExportError, match="is there already, and no export"):
            world.export(tmp_path / taken, "label_mapping", 0.5, "txt")
    assert sorted(os.listdir(tmp_path)) == ["file", "mine", "out"]


def test_an_export_that_fails_leaves_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(kept: Kept, form: ExportFormat, folder: Path, out: Path) -> tuple[list[str], str]:
        (folder / "kept.txt").write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(subset, "write_format", full)
    with pytest.raises(OSError, match="no space"):
        world.export(tmp_path / "out", "label_mapping", 0.5, "txt")
    assert os.listdir(tmp_path) == []


# -- which subset ----------------------------------------------------------------------------------

Asked = Mapping[str, str | None]
LM: Asked = {"method": "label_mapping"}
REFUSED: list[tuple[Asked, list[str]]] = [
    ({}, ["--method: which one? 'random_classes', 'label_mapping', 'label_mapping(select"]),
    ({"method": "el2n"}, ["--method el2n: means several: 'el2n(select=ccs)', 'el2n(select=d2)'"]),
    ({"method": "label_maping"}, ["none; did you mean 'label_mapping'? allowed: el2n(select=ccs)"]),
    (LM, ["--ratio: which one? '0.25', '0.5', '0.8'"]),
    ({**LM, "ratio": "0"}, ["--ratio 0: the study has none", "0.25, 0.5, 0.8"]),
    ({**LM, "ratio": "half"}, ["--ratio half: the study has none"]),
    ({**LM, "ratio": ".5"}, ["--target: which one? 'image_folder(", "shots=3", "shots=4"]),
    ({**LM, "ratio": ".5", "target": "image_folder"}, ["means several: 'image_folder("]),
    ({**LM, "ratio": ".5", "target": "pets"}, ["--target pets: the study has none"]),
    ({**LM, "ratio": ".5", "seed": "2"}, ["--seed 2: the study has none; allowed: 0, 1"]),
]


@pytest.mark.parametrize(("asked", "fragments"), REFUSED)
def test_what_is_not_there_or_means_several_is_answered_with_the_choices(
    world: World, tmp_path: Path, asked: Asked, fragments: list[str]
) -> None:
    everything = {"method": None, "ratio": None, "seed": None, "target": None, **asked}
    with pytest.raises(ExportError) as caught:
        export_subset(world.plan, world.store, everything, "txt", tmp_path / "out", "")
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_there_is_but_one_of_may_be_left_out(world: World, tmp_path: Path) -> None:
    asked = {"method": "random_classes", "ratio": "5e-1", "seed": None, "target": None}
    export, _ = export_subset(world.plan, world.store, asked, "txt", tmp_path / "out", "")
    assert (export.target, export.seed) == ("any", 0)  # random classes are the same for both
    assert export.method_label == "random_classes"
    asked |= {"method": "label_mapping(within=el2n, combine=mean)"}
    export, _ = export_subset(world.plan, world.store, asked, "txt", tmp_path / "all", "")
    assert export.target == "all"


# -- there and back --------------------------------------------------------------------------------


def test_a_given_subset_trains_the_same_network(pictures: Pictures, tmp_path: Path) -> None:
    store, recipes = open_store(str(tmp_path / "s")), [supervised()]

    def trained(method: Any, ratios: list[float]) -> tuple[Plan, dict[float, tuple[str, str]]]:
        """Ratio -> checksums of the kept rows and of the network."""
        asked = tiny_study(
            pictures, methods=[method], pruning_ratios=ratios, pretraining=recipes, seeds=[3]
        )
        plan = plan_study(asked)
        assert not run_study(asked, plan_study(asked, "pretrain"), store, local=True).errors
        found: dict[float, tuple[str, str]] = {}
        for cell in plan.cells:
            pruned, network = (store.find(plan.steps[cell.steps[r]]) for r in ("prune", "pretrain"))
            assert pruned is not None and network is not None
            found[cell.pruning_ratio] = (
                pruned.manifest.files["kept_indices.npy"].sha256,
                network.manifest.files["network.safetensors"].sha256,
            )
        return plan, found

    plan, chosen = trained("label_mapping", [0.5, 0.75])
    asked = {"method": None, "ratio": "0.5", "seed": None, "target": None}
    names = {"dp4tl": "kept.json", "csv": "kept.csv", "txt": "kept.txt", "npy": "kept.npy"}
    for form, name in names.items():
        _, path = export_subset(plan, store, asked, form, tmp_path / form, "")  # type: ignore[arg-type]
        # the list of ratio 0.5 serves a larger one as well
        _, given = trained({"method": "given", "path": str(path / name)}, [0.5, 0.75])
        assert given == chosen


def test_a_subset_is_exported_from_a_bucket_that_is_only_read(
    pictures: Pictures, tmp_path: Path, bucket_uri: str
) -> None:
    asked = {"method": "random_classes", "ratio": None, "seed": None, "target": None}
    small, store = tiny_study(pictures, methods=["random_classes"]), open_store(bucket_uri)
    plan = plan_study(small)
    with pytest.raises(ExportError, match=r"prune random_classes-r0\.5-s0 is not done yet"):
        export_subset(plan, store, asked, "npy", None, "dp4tl run")
    assert not run_study(small, plan_study(small, "prune"), store, local=True).errors
    reader = open_store(bucket_uri, write=False)
    export, path = export_subset(plan, reader, asked, "npy", None, "")
    assert path.is_relative_to(reader.study_folder("tiny"))
    assert len(np.load(path / "kept.npy")) == export.num_kept == 72
