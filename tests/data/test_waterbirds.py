"""Waterbirds in both of its layouts, and the accuracy of its worst group."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp4tl_ray.data.decode import decoded
from dp4tl_ray.data.load import fingerprint, open_pictures
from dp4tl_ray.data.pictures import DatasetError
from dp4tl_ray.specs.data import Waterbirds
from tests.data import copies


@pytest.fixture
def root(tmp_path: Path) -> Path:
    copies.waterbirds(tmp_path, np.random.default_rng(0))
    return tmp_path


def metadata(root: Path) -> list[dict[str, str]]:
    return [*csv.DictReader((root / "metadata.csv").read_text().splitlines())]


def as_lists(root: Path) -> None:
    """Turn metadata.csv into the lists of the paper's code."""
    lines: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    for row in metadata(root):
        lines[row["split"]].append(json.dumps({"x": row["img_filename"], "y": int(row["y"])}))
    for split, name in (("0", "train"), ("1", "valid"), ("2", "test")):
        (root / f"{name}.json").write_text("\n".join(lines[split]) + "\n")
    (root / "metadata.csv").unlink()


def test_metadata_gives_splits_labels_and_groups(root: Path) -> None:
    ours = open_pictures(Waterbirds(path=str(root)), "target")
    rows = {row["img_filename"]: row for row in metadata(root)}
    assert sorted(ours.ids) == sorted(rows) and ours.groups is not None
    assert ours.class_names == ("landbird", "waterbird")
    for i, id in enumerate(ours.ids):
        row, name = rows[id], ours.group_names[ours.groups[i]]
        assert ours.labels[i] == int(row["y"]) and ours.splits[i] == int(row["split"])
        bird, place = ("landbird", "waterbird")[int(row["y"])], copies.PLACES[int(row["place"])]
        assert name == f"{bird} on {place}"
        assert np.array_equal(decoded(ours.read(i), 3), np.asarray(Image.open(root / id)))


def test_lists_give_the_same_without_groups(root: Path) -> None:
    expected = open_pictures(Waterbirds(path=str(root)), "target")
    as_lists(root)
    ours = open_pictures(Waterbirds(path=str(root)), "target")
    assert ours.groups is None and ours.group_names == ()
    assert ours.ids == expected.ids and ours.class_names == expected.class_names
    assert np.array_equal(ours.labels, expected.labels)
    assert np.array_equal(ours.splits, expected.splits)


def test_the_fingerprint_sees_groups_and_files(root: Path) -> None:
    spec = Waterbirds(path=str(root))
    seen = {fingerprint(spec, "target")}
    path = root / "metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[:0:-1]]))
    assert fingerprint(spec, "target") in seen  # the order does not matter
    fields = lines[1].split(",")
    fields[4] = "1"
    path.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]))
    seen.add(fingerprint(spec, "target"))
    os.utime(root / fields[1], (1, 1))
    seen.add(fingerprint(spec, "target"))
    assert len(seen) == 3


def test_what_is_missing_is_answered_with_both_layouts(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"train\.json: No such file.*metadata\.csv.*group_DRO"):
        open_pictures(Waterbirds(path=str(tmp_path)), "target")


@pytest.mark.parametrize(("column", "value"), [("y", "2"), ("split", "3"), ("place", "water")])
def test_damaged_metadata_is_refused(column: str, value: str, root: Path) -> None:
    header, first, *rest = (root / "metadata.csv").read_text().splitlines()
    fields = dict(zip(header.split(","), first.split(","), strict=True)) | {column: value}
    (root / "metadata.csv").write_text("\n".join([header, ",".join(fields.values()), *rest]))
    with pytest.raises(DatasetError, match="are damaged"):
        open_pictures(Waterbirds(path=str(root)), "target")
    (root / "metadata.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match=r"are damaged: KeyError\('split'\)"):
        open_pictures(Waterbirds(path=str(root)), "target")
