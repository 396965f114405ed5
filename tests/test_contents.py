"""What studies name and do not contain, here and elsewhere."""

from pathlib import Path

import numpy as np
import pytest

from dp4tl_ray.contents import Contents, remember
from dp4tl_ray.scoring.elsewhere import ScorerError
from dp4tl_ray.specs.data import ImageFolder
from dp4tl_ray.specs.example_methods import Given, ScoresFile
from dp4tl_ray.specs.network import TorchvisionResNet
from dp4tl_ray.specs.pretraining import Pretrained
from dp4tl_ray.specs.study import Study
from dp4tl_ray.store import open_store
from dp4tl_ray.sweep import plan_study
from tests.data.copies import TORCHVISION


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
    assert Contents({"source other": "abc"}, absent)(thing) == "absent"
    assert absent == [f"{tmp_path / 'gone'} is not here: `dp4tl run` needs it"]


def test_datasets_below_one_root_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    names, rng = ("cifar10", "cifar100", "dtd"), np.random.default_rng(0)
    for name in names:
        TORCHVISION[name](tmp_path / "here", rng)
    sets = [{"dataset": name, "path": "here", "image_size": 8, "shots": 1} for name in names]
    data = {
        "name": "roots",
        "data_root": str(tmp_path),
        "source": sets[0] | {"shots": None},
        "targets": sets,
        "methods": ["random_classes"],
        "pruning_ratios": [0.0],
        "pretraining": ["supervised"],
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
