"""Datasets that another package lists."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ray.data.images import Pixels
from dp4tl_ray.data.load import fingerprint, is_absent, open_pictures
from dp4tl_ray.data.pictures import DatasetError
from dp4tl_ray.results import read_results
from dp4tl_ray.specs.data import Custom, located
from dp4tl_ray.store import open_store
from dp4tl_ray.sweep import plan_study, run_study
from tests.conftest import draw_class, tiny_study

MODULE = """
import numpy as np
from dataclasses import replace
from dp4tl_ray.data.pictures import DatasetError, Pictures
from tests.data.test_custom import stripes


def listed(path, role, num_classes=3, **changes):
    labels = np.repeat(np.arange(num_classes), 12)
    splits = np.tile(np.repeat([0, 1, 2], 4), num_classes) if role == "target" else 0 * labels
    pictures = Pictures(
        ids=[f"{path}/{role}/{n}" for n in range(len(labels))],
        labels=labels,
        splits=splits.astype(np.int8),
        class_names=tuple(f"class {k}" for k in range(num_classes)),
        read=lambda i: stripes(labels[i], i),
    )
    return replace(pictures, **changes)


def odd(path, role, what="nothing"):
    pictures = listed(path, role)
    n = len(pictures)
    return {
        "nothing": None,
        "short": replace(pictures, labels=pictures.labels[1:]),
        "lists": replace(pictures, labels=pictures.labels.tolist()),
        "floats": replace(pictures, labels=pictures.labels / 2),
        "range": replace(pictures, labels=pictures.labels - 1),
        "beyond": replace(pictures, splits=pictures.splits + 3),
        "groups": replace(pictures, groups=np.zeros(n, int)),
        "numbers": replace(pictures, ids=range(n)),
        "twice": replace(pictures, ids=["a"] * n),
        "names": replace(pictures, class_names=("a", "a", "b")),
        "files": replace(pictures, files=["a"], one_file_each=True),
    }[what]


def failing(path, role):
    raise OSError("the disk is away")


def refusing(path, role):
    raise DatasetError("not on a Sunday")
"""


def stripes(label: int, seed: int) -> Pixels:
    return draw_class(label, np.random.default_rng(seed))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of loaders, as pip would install it; returns its metadata."""
    (tmp_path / "loaders_of_mine.py").write_text(MODULE)
    info = tmp_path / "loaders_of_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loaders-of-mine\nVersion: 1.0\n")
    names = ("listed", "odd", "failing", "refusing")
    lines = [f"{name} = loaders_of_mine:{name}\n" for name in names]
    (info / "entry_points.txt").write_text("[dp4tl_ray.datasets]\n" + "".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "loaders_of_mine", raising=False)
    return info / "METADATA"


def spec(loader: str, **options: Any) -> Custom:
    return Custom(loader=loader, path="/mine", options=options)


def test_a_loader_is_given_path_role_and_options(package: Path) -> None:
    source = open_pictures(spec("listed", num_classes=2), "source")
    assert len(source) == 24 and source.ids[0] == "/mine/source/0"
    assert source.version == "loaders-of-mine 1.0"
    target = open_pictures(spec("listed"), "target")
    assert np.bincount(target.splits).tolist() == [12, 12, 12]


def test_version_and_options_are_part_of_what_it_is(package: Path) -> None:
    seen = {fingerprint(spec("listed"), "source")}
    assert fingerprint(spec("listed"), "source") in seen
    seen.add(fingerprint(spec("listed", num_classes=2), "source"))
    package.write_text(package.read_text().replace("1.0", "1.1"))
    importlib.invalidate_caches()
    seen.add(fingerprint(spec("listed"), "source"))
    assert len(seen) == 3


def test_a_path_with_a_scheme_is_the_loaders_own(package: Path) -> None:
    ours = Custom(loader="listed", path="mine:stripes")
    assert located(ours, "/data") == ours and not is_absent(ours)
    assert is_absent(Custom(loader="lister", path="mine:stripes"))
    assert is_absent(Custom(loader="listed", path="/nowhere"))
    assert open_pictures(ours, "source").ids[0] == "mine:stripes/source/0"


def test_one_that_is_not_installed_is_named(package: Path) -> None:
    with pytest.raises(DatasetError, match=r"'lister' is not installed .*did you mean 'listed'"):
        open_pictures(spec("lister"), "source")


def test_one_that_fails_is_named_with_its_package(package: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"'failing' \(loaders-of-mine 1\.0\): OSError: the disk"
    ):
        open_pictures(spec("failing"), "source")
    with pytest.raises(DatasetError, match=r"^not on a Sunday$"):
        open_pictures(spec("refusing"), "source")
    with pytest.raises(DatasetError, match=r"TypeError: .*unexpected keyword argument 'size'"):
        open_pictures(spec("failing", size=3), "source")


@pytest.mark.parametrize(("what", "message"), [
    ("nothing", "gave NoneType, not Pictures"),
    ("short", r"labels that are no whole numbers of shape \(36,\), one per id"),
    ("lists", "labels that are no whole numbers"),
    ("floats", "labels that are no whole numbers"),
    ("range", "labels from -1 to 1; 0 to 2 are allowed"),
    ("beyond", "splits from 3 to 5; 0 to 2 are allowed"),
    ("groups", "groups from 0 to 0; 0 to -1 are allowed"),
    ("numbers", "ids that are no strings"),
    ("twice", "have the id"),
    ("names", "a class name twice"),
    ("files", "1 files and 36 ids, and says one_file_each"),
])  # fmt: skip
def test_what_it_gives_is_checked(what: str, message: str, package: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        open_pictures(spec("odd", what=what), "target")


def test_a_study_of_such_datasets_runs(
    package: Path, pictures: dict[str, str], tmp_path: Path
) -> None:
    mine = {"dataset": "custom", "loader": "listed", "path": "x", "image_size": 16, "channels": 1}
    study = tiny_study(
        pictures,
        source=mine | {"options": {"num_classes": 4}},
        targets=[mine | {"shots": 3}],
        methods=["random_classes"],
        pretraining=["none", {"objective": "supervised", "network": {"arch": "resnet9", "width": 4},
                     "budget": {"epochs": 1}, "batch_size": 8, "batch_norm": {"group_size": 8}}],
    )  # fmt: skip
    store = open_store(str(tmp_path / "store"))
    outcome = run_study(study, plan_study(study), store, local=True)
    assert not outcome.errors
    results = read_results(outcome.folder / "results.jsonl")
    assert len(results) == 3 and {r.num_source for r in results} == {48}
