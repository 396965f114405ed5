"""What studies name and do not contain, here and elsewhere."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ray.contents import Contents, remember
from dp4tl_ray.plan import PlannedStep
from dp4tl_ray.scoring.elsewhere import ScorerError
from dp4tl_ray.specs.data import Custom, HuggingFace, ImageFolder
from dp4tl_ray.specs.example_methods import Given, ScoresFile
from dp4tl_ray.specs.network import TorchvisionResNet
from dp4tl_ray.specs.pretraining import Pretrained
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.specs.study import Study
from dp4tl_ray.store import open_store
from dp4tl_ray.sweep import plan_study, run_study
from tests.conftest import supervised, tiny_study, write_folder
from tests.data.copies import TORCHVISION, coop
from tests.data.test_shards import samples, write_parquet, write_tar


@pytest.mark.parametrize(("thing", "key"), [
    (Pretrained(network=TorchvisionResNet(arch="resnet18"), weights="gone"), "source gone"),
    (ScoresFile(path="gone"), "source gone"),
    (Given(path="gone"), "source gone"),
    (ImageFolder(path="gone"), 'source {"dataset":"image_folder","exclude":null,"path":"gone"}'),
])  # fmt: skip
def test_what_is_gone_is_what_it_was_when_the_study_ran(
    thing: Pretrained | ScoresFile | Given | ImageFolder,
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    absent = list[str]()
    assert Contents({key: "abc"}, absent)(thing) == "abc"
    assert absent == []
    assert Contents({"source other": "abc"}, absent)(thing) == f"absent: {key}"
    assert absent == [f"{tmp_path / 'gone'} is not here: `dp4tl run` needs it"]


def test_datasets_below_one_root_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    names, rng = ("cifar10", "cifar100", "dtd"), np.random.default_rng(0)
    for name in names:
        TORCHVISION[name](tmp_path / "here", rng)
    sets = [{"dataset": name, "path": "here", "image_size": 8} for name in names]
    data = {
        "name": "roots",
        "data_root": str(tmp_path),
        "source": sets[0],
        "targets": sets,
        "methods": ["random_classes"],
        "pruning_ratios": [0.0],
        "pretraining": [supervised(batch_size=4, batch_norm={"group_size": 4})],
    }
    study = Study.model_validate(data)
    plan, store = plan_study(study), open_store(str(tmp_path / "store"))
    remember(plan, store)
    (tmp_path / "here").rename(tmp_path / "gone")
    absent = list[str]()
    assert plan_study(study, absent=absent, store=store).steps.keys() == plan.steps.keys()
    assert absent == []
    plan_study(study, absent=absent)
    assert absent == [
        f"{tmp_path / 'here' / folder} is not here: `dp4tl run` needs it"
        for folder in ("cifar-10-batches-py", "cifar-100-python", "dtd")
    ]


def write(root: Path) -> list[dict[str, str]]:
    """Write a dataset in several layouts, with a picture to exclude."""
    write_folder(root / "folder", range(2), 10, seed=0)
    split = coop(root, "OxfordPets", np.random.default_rng(0)).relative_to(root)
    write_parquet(root / "parquet" / "rows.parquet", samples(20, [0, 1]))
    write_tar(root / "tars" / "0.tar", samples(20, [0, 1]))
    (root / "ids.txt").write_text("stripes0/000.png\n")
    return [
        {"dataset": "image_folder", "path": "folder", "exclude": "ids.txt"},
        {"dataset": "coop", "path": str(split), "images": str(split.parent / "images")},
        {"dataset": "parquet", "path": "parquet"},
        {"dataset": "webdataset", "path": "tars/{0..0}.tar"},
    ]


def of_source(source: dict[str, Any], **changes: Any) -> Study:
    """Return a study of a source, with an embedded target."""
    return Study.model_validate(
        {
            "name": "moved",
            "source": {"image_size": 16, "channels": 1, **source},
            "targets": ["held_out_letters"],
            "methods": ["random_classes"],
            "pruning_ratios": [0.5],
            "pretraining": [supervised(batch_size=4, batch_norm={"group_size": 4})],
            **changes,
        }
    )


def digest_of(source: dict[str, Any], root: Path) -> str:
    """Return the digest of the step that packs a source."""
    steps = plan_study(of_source(source, data_root=str(root))).steps
    (digest,) = (k for k, s in steps.items() if getattr(s.spec, "role", "") == "source")
    return digest


def test_a_dataset_that_moves_stays_the_same_until_its_files_change(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    sources = write(here)
    shutil.copytree(here, there)
    before = [digest_of(source, here) for source in sources]
    assert [digest_of(source, there) for source in sources] == before
    (there / "ids.txt").write_text("stripes0/001.png\n")
    assert digest_of(sources[0], there) != before[0]
    for path in there.rglob("*.*"):
        os.utime(path, (1, 1))
    for source, digest in zip(sources, before, strict=True):
        assert digest_of(source, there) != digest


def test_a_split_of_coop_is_another_one_under_another_name(tmp_path: Path) -> None:
    source = write(tmp_path)[1]
    before = digest_of(source, tmp_path)
    renamed = source["path"].replace("OxfordPets", "Food101")
    (tmp_path / source["path"]).rename(tmp_path / renamed)
    assert digest_of(source | {"path": renamed}, tmp_path) != before


def test_names_and_paths_of_other_packages_are_part_of_the_identity() -> None:
    for kind in (HuggingFace, partial(Custom, loader="mine")):
        steps = [
            PlannedStep(DataStep(dataset=kind(path=path), role="source", fingerprint="x"), {}, "")
            for path in ("hub:a/b", "hub:a/c")
        ]
        assert steps[0].digest != steps[1].digest


def test_what_is_away_is_told_apart_by_its_path(tmp_path: Path) -> None:
    def away(path: str) -> set[str]:
        source = {"dataset": "image_folder", "path": path}
        return set(plan_study(of_source(source), absent=[]).steps)

    assert away("/gone/a") == away("/gone/a") != away("/gone/b")


def test_studies_that_read_the_same_from_two_places_share_the_work(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    store, ran = open_store(str(tmp_path / "store")), list[int]()
    axes = {"methods": ["random_classes"], "pretraining": [supervised()], "pruning_ratios": [0.0]}
    there = {role: str(tmp_path / role) for role in pictures}
    for role, path in there.items():
        shutil.copytree(pictures[role], path)
    for name, places in (("first", pictures), ("second", there)):
        study = tiny_study(places, name=name, **axes)
        outcome = run_study(study, plan_study(study), store, local=True)
        assert not outcome.errors
        ran.append(outcome.ran)
        (result,) = outcome.results
        assert f"path={places['source']}" in result.source
        assert f"path={places['target']}" in result.target
    assert ran[0] > 0 and ran[1] == 0


def test_to_run_it_must_be_here(tmp_path: Path) -> None:
    missing = Pretrained(network=TorchvisionResNet(arch="resnet18"), weights=f"{tmp_path}/gone")
    with pytest.raises(ScorerError, match="torchvision:NAME"):
        Contents({"source gone": "abc"})(missing)


def test_weights_known_by_name_are_never_gone() -> None:
    by_name = Pretrained(
        network=TorchvisionResNet(arch="resnet18"), weights="torchvision:IMAGENET1K_V1"
    )
    absent = list[str]()
    assert Contents(absent=absent)(by_name) == "" and absent == []


def test_what_a_whole_run_read_is_remembered_after_one_that_stops_early(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    scores = tmp_path / "list.txt"
    scores.write_text("".join(f"stripes{k}/{n:03}.png\n" for k in range(6) for n in range(24)))
    methods = [{"method": "given", "path": str(scores)}]
    study, store = tiny_study(pictures, methods=methods), open_store(str(tmp_path / "store"))
    plan = plan_study(study)
    remember(plan, store)
    remember(plan_study(study, "data"), store)
    scores.unlink()
    assert plan_study(study, absent=[], store=store).steps.keys() == plan.steps.keys()
