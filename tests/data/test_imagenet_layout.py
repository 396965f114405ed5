"""ImageNet as it is extracted, compared with what torchvision's class gives."""

import os
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from dp4tl_ray.data.decode import decoded
from dp4tl_ray.data.load import fingerprint, open_pictures
from dp4tl_ray.data.pictures import DatasetError
from dp4tl_ray.specs.data import ImageNet
from tests.data import copies

NAMES = {
    "n01443537": ("goldfish", "Carassius auratus"),
    "n01440764": ("tench", "Tinca tinca"),
    "n02134084": ("ice bear", "polar bear"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    copies.imagenet(tmp_path, np.random.default_rng(0), NAMES)
    return tmp_path


@pytest.fixture
def nested(root: Path) -> Path:
    """ImageNet with pictures in folders below their class, one of them a link."""
    folder = root / "train" / "n01440764"
    for below in ("a", "a-b", "a/c"):
        (folder / below).mkdir()
    for below, picture in zip(("a", "a-b", "a/c"), sorted(folder.glob("*.JPEG")), strict=False):
        shutil.copy(picture, folder / below / "copied.JPEG")
    (folder / "linked").symlink_to(root / "val" / "n01440764")
    return root


def test_nested_folders_are_listed_in_torchvisions_order(nested: Path) -> None:
    ours = open_pictures(ImageNet(path=str(nested)), "source")
    theirs = torchvision.datasets.ImageNet(str(nested), "train")
    assert [nested / id for id in ours.ids] == [Path(path) for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets


def test_pictures_and_labels_are_those_of_torchvisions_class(root: Path) -> None:
    ours = open_pictures(ImageNet(path=str(root)), "target")
    train, val, test = (ours.rows(split).tolist() for split in ("train", "val", "test"))
    for split, rows in (("train", sorted(train + val)), ("val", test)):
        theirs = torchvision.datasets.ImageNet(str(root), split)
        assert [ours.labels[i] for i in rows] == theirs.targets
        for i, (path, _), (picture, label) in zip(rows, theirs.samples, theirs, strict=True):
            assert root / ours.ids[i] == Path(path)
            assert np.array_equal(decoded(ours.read(i), 3), np.asarray(picture))
            assert ours.class_names[label] == f"{theirs.classes[label][0]} ({theirs.wnids[label]})"


def test_a_source_is_train_and_needs_no_val(root: Path) -> None:
    (root / "val").rename(root / "elsewhere")
    source = open_pictures(ImageNet(path=str(root)), "source")
    assert len(source) == 12 and not source.splits.any()
    assert source.class_names == (
        "tench (n01440764)",
        "goldfish (n01443537)",
        "ice bear (n02134084)",
    )
    with pytest.raises(DatasetError, match="val is not a folder; expected train/n01440764"):
        open_pictures(ImageNet(path=str(root)), "target")


def test_names_come_from_kaggles_list_too(root: Path) -> None:
    named = open_pictures(ImageNet(path=str(root)), "source").class_names
    (root / "meta.bin").unlink()
    bare = open_pictures(ImageNet(path=str(root)), "source").class_names
    assert bare == tuple(sorted(NAMES))
    lines = [f"{wnid} {', '.join(names)}\n" for wnid, names in NAMES.items()]
    (root / "LOC_synset_mapping.txt").write_text("".join(lines))
    assert open_pictures(ImageNet(path=str(root)), "source").class_names == named


def test_all_1000_classes_have_names_without_any_file(tmp_path: Path) -> None:
    info = files("timm.data") / "_info"
    wnids = (info / "imagenet_synsets.txt").read_text().split()
    assert len(wnids) == 1000
    lemmas = dict(
        line.split("\t", 1)
        for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    )
    for wnid in wnids:
        (tmp_path / "train" / wnid).mkdir(parents=True)
        (tmp_path / "train" / wnid / f"{wnid}_1.JPEG").touch()
    names = open_pictures(ImageNet(path=str(tmp_path)), "source").class_names
    assert names[0] == "tench (n01440764)" and names[999] == "toilet tissue (n15075141)"
    for wnid, name in zip(wnids, names, strict=True):
        assert name.endswith(f" ({wnid})")
        assert name.split(" (")[0].split()[0].lower() in lemmas[wnid].lower() or (
            lemmas[wnid].split(",")[0].lower() in name.lower()
        )
    (tmp_path / "train" / wnids[7]).rename(tmp_path / "train" / "n00000007")
    assert open_pictures(ImageNet(path=str(tmp_path)), "source").class_names[0] == "n00000007"


def test_a_flat_val_folder_is_answered_with_what_to_do(root: Path) -> None:
    for picture in (root / "val").rglob("*.JPEG"):
        picture.rename(root / "val" / picture.name)
    for wnid in NAMES:
        (root / "val" / wnid).rmdir()
    with pytest.raises(DatasetError, match=r"lie side by side: sort them .*valprep\.sh"):
        open_pictures(ImageNet(path=str(root)), "target")


def test_the_fingerprint_changes_with_the_files(root: Path) -> None:
    before = fingerprint(ImageNet(path=str(root)), "source")
    os.utime(next((root / "val").rglob("*.JPEG")), (1, 1))
    assert fingerprint(ImageNet(path=str(root)), "source") == before
    os.utime(next((root / "train").rglob("*.JPEG")), (1, 1))
    assert fingerprint(ImageNet(path=str(root)), "source") != before


def test_what_does_not_fit_is_refused(root: Path) -> None:
    (root / "val" / "n02134084").rename(root / "elsewhere")
    with pytest.raises(DatasetError, match="class n02134084 is not in both train and val"):
        open_pictures(ImageNet(path=str(root)), "target")
    (root / "train" / "n99999999").mkdir()
    with pytest.raises(DatasetError, match="n99999999 has no pictures"):
        open_pictures(ImageNet(path=str(root)), "source")
    (root / "meta.bin").write_bytes(b"PK not a file of torch")
    (root / "train" / "n99999999").rmdir()
    with pytest.raises(DatasetError, match=r"meta\.bin is not torchvision's"):
        open_pictures(ImageNet(path=str(root)), "source")
    with pytest.raises(DatasetError, match="is not a folder; expected train/n01440764"):
        open_pictures(ImageNet(path=str(root / "nowhere")), "source")
    (root / "nothing" / "train").mkdir(parents=True)
    with pytest.raises(DatasetError, match="has no folder n01440764 and so on; expected"):
        open_pictures(ImageNet(path=str(root / "nothing")), "source")
