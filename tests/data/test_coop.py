"""CoOp's split files, for all of the paper's targets that have one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp4tl_ray.data.coop import IMAGES
from dp4tl_ray.data.decode import decoded
from dp4tl_ray.data.images import SPLITS
from dp4tl_ray.data.load import fingerprint, open_pictures
from dp4tl_ray.data.pictures import DatasetError
from dp4tl_ray.specs.data import CoOp, located
from tests.data import copies

RNG = np.random.default_rng(0)


def test_the_copies_are_of_all_split_files() -> None:
    assert copies.COOP.keys() == IMAGES.keys() and len(IMAGES) == 8


@pytest.mark.parametrize("name", copies.COOP)
def test_a_split_file_is_followed_to_the_letter(name: str, tmp_path: Path) -> None:
    path = copies.coop(tmp_path, name, RNG)
    lists = json.loads(path.read_text())
    ours = open_pictures(CoOp(path=str(path)), "target")
    assert len(ours) == sum(map(len, lists.values()))
    for split in SPLITS:
        rows = {ours.ids[i]: i for i in ours.rows(split)}
        assert len(rows) == len(lists[split])
        for impath, label, class_name in lists[split]:
            i = rows[impath]
            assert ours.labels[i] == label and ours.class_names[label] == class_name
            picture = np.asarray(Image.open(path.parent / copies.COOP[name][1] / impath))
            assert np.array_equal(decoded(ours.read(i), 3), picture)


def test_a_source_is_its_train_split(tmp_path: Path) -> None:
    source = open_pictures(CoOp(path=str(copies.coop(tmp_path, "UCF101", RNG))), "source")
    assert len(source) == 12 and not source.splits.any()


def test_the_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    path = copies.coop(tmp_path, "Food101", RNG)
    spec = CoOp(path=str(path))
    expected, seen = open_pictures(spec, "target"), fingerprint(spec, "target")
    lists = json.loads(path.read_text())
    path.write_text(json.dumps({split: lists[split][::-1] for split in reversed(lists)}))
    assert open_pictures(spec, "target").ids == expected.ids
    assert fingerprint(spec, "target") == seen
    os.utime(expected.files[0], (1, 1))
    assert fingerprint(spec, "target") != seen


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    path = copies.coop(tmp_path, "EuroSAT", RNG)
    here = open_pictures(CoOp(path=str(path)), "target")
    (path.parent / "2750").rename(tmp_path / "pictures")
    path = path.rename(path.parent / "mine.json")
    with pytest.raises(DatasetError, match="`images` says where its pictures are"):
        open_pictures(CoOp(path=str(path)), "target")
    relative = CoOp(path="eurosat/mine.json", images="pictures")
    there = open_pictures(located(relative, str(tmp_path)), "target")
    assert (
        there.ids == here.ids
        and there.read(0) == (tmp_path / "pictures" / there.ids[0]).read_bytes()
    )


def test_what_is_missing_is_answered_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"split_zhou_X\.json: No such file.*DATASETS\.md"):
        open_pictures(CoOp(path=str(tmp_path / "split_zhou_X.json")), "target")
    path = copies.coop(tmp_path, "OxfordPets", RNG)
    (path.parent / "images").rename(path.parent / "pictures")
    with pytest.raises(DatasetError, match=r"images is not a folder; expected.*DATASETS\.md"):
        open_pictures(CoOp(path=str(path)), "target")


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is not of CoOp's form"),
    ("[]", "is not of CoOp's form"),
    ('{"train": [], "val": []}', r"is not of CoOp's form.*KeyError\('test'\)"),
    ('{"train": [["a", 0]], "val": [], "test": []}', "is not of CoOp's form"),
    ('{"train": [["a", 0, "x"], ["b", 0, "y"]], "val": [], "test": []}', "calls class 0 'x', and"),
    ('{"train": [["a", 1, "x"]], "val": [], "test": []}', "are not 0 to 0"),
    ('{"train": [], "val": [], "test": []}', "has no train pictures"),
    ('{"train": [["a", 0, "x"]], "val": [["a", 0, "x"]], "test": []}', "have the id"),
])  # fmt: skip
def test_a_damaged_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = copies.coop(tmp_path, "OxfordPets", RNG)
    path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        open_pictures(CoOp(path=str(path)), "target")
