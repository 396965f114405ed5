"""The datasets of torchvision, compared with what its classes give, item by item."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from dp4tl_ray.data.decode import decoded
from dp4tl_ray.data.images import Role
from dp4tl_ray.data.load import fingerprint, is_absent, open_pictures
from dp4tl_ray.data.pictures import DatasetError, Pictures
from dp4tl_ray.data.torchvision_sets import LAYOUTS
from dp4tl_ray.specs.data import TorchvisionDataset
from tests.data.copies import TORCHVISION

CHECKSUMMED = ("cifar10", "cifar100", "flowers102")
FILES = [name for name in TORCHVISION if not name.startswith("cifar")]
SPLITS: dict[str, tuple[dict[str, Any], ...]] = {
    "oxford_iiit_pet": ({"split": "trainval"}, {"split": "test"}),
    "cifar10": ({"train": True}, {"train": False}),
    "cifar100": ({"train": True}, {"train": False}),
    "sun397": ({},),
    "eurosat": ({},),
    "dtd": ({"split": "train"}, {"split": "val"}, {"split": "test"}),
    "flowers102": ({"split": "train"}, {"split": "val"}, {"split": "test"}),
}
"""What a class is told to give its splits; train and test where nothing is said."""
TRAIN_TEST: tuple[dict[str, Any], ...] = ({"split": "train"}, {"split": "test"})


@pytest.fixture(autouse=True)
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let copies pass for the originals, whose checksums torchvision knows."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    monkeypatch.setattr(
        "torchvision.datasets.flowers102.check_integrity", lambda path, md5: os.path.isfile(path)
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all of them share."""
    folder = tmp_path_factory.mktemp("torchvision")
    for name, write in TORCHVISION.items():
        write(folder, np.random.default_rng(len(name)))
    return folder


def dataset(name: str, root: Path) -> TorchvisionDataset:
    return TorchvisionDataset.model_validate({"dataset": name, "path": str(root)})


def labels_of_pixels(pictures: Pictures, rows: list[int]) -> dict[bytes, int]:
    return {decoded(pictures.read(i), 3).tobytes(): int(pictures.labels[i]) for i in rows}


@pytest.mark.parametrize("name", TORCHVISION)
def test_pictures_labels_and_splits_are_those_of_torchvisions_class(name: str, root: Path) -> None:
    ours = open_pictures(dataset(name, root), "target")
    splits = [ours.rows(split).tolist() for split in ("train", "val", "test")]
    told = SPLITS.get(name, TRAIN_TEST)
    merged = {
        3: splits,
        2: [splits[0] + splits[1], splits[2]],  # val is drawn from train
        1: [splits[0] + splits[1] + splits[2]],  # all of them are drawn
    }[len(told)]
    assert all(splits) and sum(map(len, splits)) == len(ours)
    for arguments, rows in zip(told, merged, strict=True):
        theirs = getattr(torchvision.datasets, LAYOUTS[name].name)(root, **arguments)
        assert list(ours.class_names) == list(theirs.classes)
        expected = {
            np.asarray(picture.convert("RGB")).tobytes(): label
            for picture, label in (theirs[i] for i in range(len(theirs)))
        }
        assert len(expected) == len(theirs)
        assert labels_of_pixels(ours, rows) == expected


@pytest.mark.parametrize("name", FILES)
def test_ids_are_the_paths_below_the_root(name: str, root: Path) -> None:
    ours = open_pictures(dataset(name, root), "target")
    assert len(set(ours.ids)) == len(ours)
    for i, id in enumerate(ours.ids):
        assert np.array_equal(decoded(ours.read(i), 3), np.asarray(Image.open(root / id)))


def test_cifars_ids_are_the_places_in_their_split(root: Path) -> None:
    ours = open_pictures(dataset("cifar10", root), "target")
    assert ours.ids[0] == "train/00000" and ours.ids[-1] == "test/00006"
    theirs = torchvision.datasets.CIFAR10(root, train=False)
    assert np.array_equal(ours.read(len(ours) - 1), np.asarray(theirs[6][0]))


@pytest.mark.parametrize("name", FILES)
def test_the_order_of_the_file_system_does_not_matter(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_pictures(dataset(name, root), "target")
    forwards = Path.rglob
    monkeypatch.setattr(
        Path, "rglob", lambda self, pattern: reversed(sorted(forwards(self, pattern)))
    )
    turned = open_pictures(dataset(name, root), "target")
    assert turned.ids == expected.ids
    assert np.array_equal(turned.labels, expected.labels)
    assert np.array_equal(turned.splits, expected.splits)


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_source_is_the_official_train_split(name: str, root: Path) -> None:
    source, target = (open_pictures(dataset(name, root), role) for role in ("source", "target"))
    theirs = getattr(torchvision.datasets, LAYOUTS[name].name)(
        root, **SPLITS.get(name, TRAIN_TEST)[0]
    )
    assert len(source) == len(theirs) and not source.splits.any()
    assert set(source.ids) <= set(target.ids)


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize("name", TORCHVISION)
def test_the_fingerprint_changes_with_the_files(name: str, role: Role, tmp_path: Path) -> None:
    TORCHVISION[name](tmp_path, np.random.default_rng(0))
    before = fingerprint(dataset(name, tmp_path), role)
    assert fingerprint(dataset(name, tmp_path), role) == before
    os.utime(open_pictures(dataset(name, tmp_path), role).files[0], (1, 1))
    assert fingerprint(dataset(name, tmp_path), role) != before


@pytest.mark.parametrize("name", TORCHVISION)
def test_what_is_missing_is_answered_with_the_layout_and_where_to_get_it(
    name: str, root: Path, tmp_path: Path
) -> None:
    here = dataset(name, tmp_path)
    assert is_absent(here) and not is_absent(dataset(name, root))
    folder = next(iter(LAYOUTS[name].expected)).split("/")[0]
    with pytest.raises(DatasetError, match=f"{name}: .*{folder} is not a folder") as error:
        open_pictures(here, "target")
    for place in LAYOUTS[name].expected:
        assert f"{tmp_path}/{place}" in str(error.value)
    assert "https://" in str(error.value)
    dead = name in ("sun397", "stanford_cars")
    assert ('download=True)" downloads it' in str(error.value)) != dead
    assert ("path: hub:" in str(error.value)) == dead
    (tmp_path / folder).mkdir()
    with pytest.raises(DatasetError, match=f"{name}: torchvision cannot read .* Expected: "):
        open_pictures(here, "target")


@pytest.mark.parametrize("name", CHECKSUMMED)
def test_what_is_damaged_is_torchvisions_to_see(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(DatasetError, match=f"{name}: .*not found or corrupted"):
        open_pictures(dataset(name, root), "source")


def test_a_listed_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    TORCHVISION["dtd"](tmp_path, np.random.default_rng(0))
    (tmp_path / "dtd" / "dtd" / "images" / "banded" / "banded_0001.jpg").unlink()
    with pytest.raises(DatasetError, match=r"banded_0001\.jpg belongs to the dataset: No such"):
        fingerprint(dataset("dtd", tmp_path), "source")


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    TORCHVISION["dtd"](tmp_path, np.random.default_rng(0))
    folder = tmp_path / "dtd" / "dtd"
    shutil.copytree(folder / "images" / "banded", folder / "images" / "striped")
    (folder / "labels" / "test1.txt").write_text("striped/banded_0001.jpg\n")
    with pytest.raises(DatasetError, match="differ in their classes"):
        open_pictures(dataset("dtd", tmp_path), "target")
