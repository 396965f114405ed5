"""What studies name and do not contain, here and elsewhere."""

from pathlib import Path

import pytest

from dp4tl_ray.contents import Contents
from dp4tl_ray.scoring.elsewhere import ScorerError
from dp4tl_ray.specs.data import ImageFolder
from dp4tl_ray.specs.example_methods import Given, ScoresFile
from dp4tl_ray.specs.network import TorchvisionResNet
from dp4tl_ray.specs.pretraining import Pretrained


@pytest.mark.parametrize(
    "thing",
    [
        Pretrained(network=TorchvisionResNet(arch="resnet18"), weights="gone"),
        ScoresFile(path="gone"),
        Given(path="gone"),
        ImageFolder(path="gone"),
    ],
)
def test_what_is_gone_is_what_it_was_when_the_study_ran(
    thing: Pretrained | ScoresFile | Given | ImageFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    absent = list[str]()
    assert Contents({"source gone": "abc"}, absent)(thing) == "abc"
    assert absent == []
    assert Contents({"source other": "abc"}, absent)(thing) == "absent"
    assert absent == [f"{tmp_path / 'gone'} is not here: `dp4tl run` needs it"]


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
