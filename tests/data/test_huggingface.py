"""Datasets of Hugging Face's package: saved, as files, and from the cache of the hub."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from dp4tl_ray import requirements, sweep
from dp4tl_ray.data.decode import decoded
from dp4tl_ray.data.load import fingerprint, is_absent, open_pictures
from dp4tl_ray.data.pictures import DatasetError, Pictures
from dp4tl_ray.specs.data import HuggingFace, located
from dp4tl_ray.specs.load import StudyError
from tests.conftest import tiny_study
from tests.data.loading import check_empty

NAMES = ["ape", "bee", "cat"]


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no web."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


def rows(count: int, seed: int, image: str = "image", label: str = "label") -> datasets.Dataset:
    rng = np.random.default_rng(seed)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (*rng.integers(8, 20, 2), 3), dtype=np.uint8))
        for _ in range(count)
    ]
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=NAMES)}
    labels = [n % len(NAMES) for n in range(count)]
    return datasets.Dataset.from_dict(
        {image: pictures, label: labels}, features=datasets.Features(features)
    )


def three(**columns: str) -> datasets.DatasetDict:
    counts = {"train": 9, "validation": 4, "test": 5}
    return datasets.DatasetDict(
        {name: rows(count, count, **columns) for name, count in counts.items()}
    )


def spec(path: Path | str, **fields: Any) -> HuggingFace:
    return HuggingFace.model_validate({"dataset": "huggingface", "path": str(path), **fields})


def check(ours: Pictures, theirs: Any, image: str = "image", label: str = "label") -> None:
    """Compare with what the package itself gives, item by item."""
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        at = ours.rows(split)  # type: ignore[arg-type]
        assert len(at) == len(theirs[name])
        for n, (i, item) in enumerate(zip(at, theirs[name], strict=True)):
            assert ours.ids[i] == f"{name}/{n:05d}"
            assert ours.class_names[ours.labels[i]] == NAMES[item[label]]
            picture = np.asarray(item[image].convert("RGB"))
            assert np.array_equal(decoded(ours.read(int(i)), 3), picture)


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    three().save_to_disk(str(tmp_path / "saved"))
    ours = open_pictures(located(spec("saved"), str(tmp_path)), "target")
    check(ours, datasets.load_from_disk(str(tmp_path / "saved")))
    source = open_pictures(spec(tmp_path / "saved"), "source")
    assert source.ids == [f"train/{n:05d}" for n in range(9)]


def test_one_split_is_everything(tmp_path: Path) -> None:
    rows(30, 0).save_to_disk(str(tmp_path / "saved"))
    assert len(open_pictures(spec(tmp_path / "saved"), "source")) == 30
    target = open_pictures(spec(tmp_path / "saved"), "target")
    assert np.bincount(target.splits).tolist() == [18, 6, 6]


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    for name, part in three(image="img", label="fine_label").items():
        part.to_parquet(str(tmp_path / "data" / f"{name}-00000-of-00001.parquet"))
    ours = open_pictures(spec(tmp_path), "target")
    check(ours, datasets.load_dataset(str(tmp_path)), "img", "fine_label")
    assert [Path(file).name for file in ours.files] == [
        f"{name}-00000-of-00001.parquet" for name in ("test", "train", "validation")
    ]


def test_a_folder_of_pictures_that_the_package_reads(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 3)):
        for name in NAMES:
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(count):
                color = (10 * n, 80 * NAMES.index(name), len(split))
                Image.new("RGB", (9, 8), color).save(tmp_path / split / name / f"{n}.png")
    ours = open_pictures(spec(tmp_path), "target")
    theirs = datasets.load_dataset(str(tmp_path))
    at = ours.rows("test")
    assert len(ours) == 21 and ours.class_names == tuple(NAMES)
    for i, item in zip(at, theirs["test"], strict=True):
        assert ours.labels[i] == item["label"]
        assert np.array_equal(decoded(ours.read(int(i)), 3), np.asarray(item["image"]))


@pytest.fixture
def hub(alone: Path, tmp_path: Path) -> Path:
    """The cache, after load_dataset has read someone/some_pets from the hub, in two revisions."""
    for name, part in three().items():
        part.to_parquet(str(tmp_path / "some_pets" / f"{name}.parquet"))
    datasets.load_dataset(str(tmp_path / "some_pets"))
    folder = alone / "someone___some_pets"
    (alone / "some_pets").rename(folder)
    (revision,) = (path for path in (folder / "default" / "0.0.0").iterdir() if path.is_dir())
    revision.rename(revision.with_name("0123456789abcdef"))
    shutil.rmtree(tmp_path / "some_pets")
    return folder / "default" / "0.0.0"


def test_a_dataset_of_the_hub_is_read_from_the_cache(hub: Path) -> None:
    here = spec("hub:someone/some_pets")
    assert not is_absent(here) and located(here, "/data").path == "hub:someone/some_pets"
    online = datasets.config.HF_HUB_OFFLINE
    ours = open_pictures(here, "target")
    assert online == datasets.config.HF_HUB_OFFLINE
    counts = np.bincount(ours.splits).tolist()
    assert counts == [9, 4, 5] and ours.version == "0123456789abcdef"
    with pytest.raises(DatasetError, match="cannot be loaded"):
        open_pictures(spec("hub:someone/some_pets", config="large"), "target")


def test_a_revision_is_a_fingerprint_and_the_time_of_the_cache_is_not(hub: Path) -> None:
    here = spec("hub:someone/some_pets")
    before = fingerprint(here, "source")
    for file in (hub / "0123456789abcdef").iterdir():
        os.utime(file, (1, 1))
    assert fingerprint(here, "source") == before
    (hub / "0123456789abcdef").rename(hub / "fedcba9876543210")
    assert fingerprint(here, "source") != before


def test_what_was_never_loaded_is_answered_with_how_to(tmp_path: Path) -> None:
    away = spec("hub:someone/pets", config="large")
    assert is_absent(away)
    with pytest.raises(DatasetError, match="Nothing is downloaded in a run: python -c") as error:
        open_pictures(away, "target")
    assert "load_dataset('someone/pets', 'large')" in str(error.value)
    with pytest.raises(DatasetError, match=r"is not a folder; .* of the hub is hub:USER/NAME"):
        open_pictures(spec("someone/pets"), "target")
    with pytest.raises(DatasetError, match="cannot be loaded: "):
        open_pictures(spec(tmp_path), "target")


def test_the_likeliest_label_is_taken_and_another_can_be_named(tmp_path: Path) -> None:
    both = rows(6, 0, image="img", label="fine_label")
    coarse = datasets.ClassLabel(names=["animal", "insect"])
    both = both.add_column("coarse_label", [0, 1, 0] * 2).cast_column("coarse_label", coarse)
    both.save_to_disk(str(tmp_path / "saved"))
    fine = open_pictures(spec(tmp_path / "saved"), "source")
    assert fine.class_names == tuple(NAMES) and fine.labels.tolist() == [0, 1, 2] * 2
    other = open_pictures(spec(tmp_path / "saved", label="coarse_label"), "source")
    assert other.class_names == ("animal", "insect") and other.labels.tolist() == [0, 1, 0] * 2
    with pytest.raises(DatasetError, match="label: lable of its columns is meant; it has img, "):
        open_pictures(spec(tmp_path / "saved", label="lable"), "source")
    both.remove_columns(["img"]).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(DatasetError, match="image: none of its columns is meant"):
        open_pictures(spec(tmp_path / "none"), "source")


def test_empty_pictures_can_be_skipped(tmp_path: Path) -> None:
    whole = rows(6, 0)
    pictures = [picture if n % 3 else None for n, picture in enumerate(whole["image"])]
    some = {"image": pictures, "label": whole["label"]}
    gaps = datasets.Dataset.from_dict(some, features=whole.features)
    gaps.save_to_disk(str(tmp_path / "saved"))
    check_empty(spec(tmp_path / "saved"), [0, 3], tmp_path / "store", "train/00000")


def test_labels_may_be_words(tmp_path: Path) -> None:
    words = [NAMES[n % 3] for n in range(6)]
    named = rows(6, 0).remove_columns(["label"]).add_column("labels", words)
    named.save_to_disk(str(tmp_path / "saved"))
    source = open_pictures(spec(tmp_path / "saved"), "source")
    assert [source.class_names[label] for label in source.labels] == words


def test_without_labels_for_test_validation_serves_as_test(tmp_path: Path) -> None:
    parts = three()
    secret = parts["test"].remove_columns(["label"]).add_column("label", [-1] * 5)
    parts["test"] = secret.cast_column("label", datasets.ClassLabel(names=NAMES))
    parts.save_to_disk(str(tmp_path / "saved"))
    target = open_pictures(spec(tmp_path / "saved"), "target")
    assert {target.ids[i].split("/")[0] for i in target.rows("test")} == {"validation"}
    assert {target.ids[i].split("/")[0] for i in target.rows("val")} == {"train"}


def test_the_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    three().save_to_disk(str(tmp_path / "saved"))
    before = fingerprint(spec(tmp_path / "saved"), "target")
    assert fingerprint(spec(tmp_path / "saved"), "target") == before
    os.utime(next((tmp_path / "saved" / "train").glob("*.arrow")), (1, 1))
    assert fingerprint(spec(tmp_path / "saved"), "target") != before


def test_without_the_package_a_study_is_refused_before_any_work(
    pictures: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {"dataset": "huggingface", "path": "x", "image_size": 16, "channels": 1}
    study = tiny_study(pictures, targets=[target])
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"pip install 'dp4tl_ray\[huggingface\]'"):
        sweep.plan_study(study)
    requirements.check_packages(tiny_study(pictures))
