"""What datasets cannot give is refused before any work."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.specs.data import HandwrittenDigits, HeldOutLetters, HeldOutTextures, Target
from dp4tl_ray.specs.load import StudyError
from dp4tl_ray.sweep import plan_study
from tests.conftest import folder, supervised, tiny_study


def test_more_shots_than_a_class_has_images_are_refused_with_the_class(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "target"
    shutil.copytree(pictures["target"], path)
    _, second, _ = sorted(path.iterdir())
    for file in sorted(second.iterdir())[10:]:  # leaves 6 to train on and 2 to validate on
        file.unlink()
    for shots in (1, 2):
        assert plan_study(tiny_study(pictures, targets=[folder(str(path), shots=shots)])).cells
    found = open_pictures(tiny_study(pictures, targets=[folder(str(path))]).targets[0], "target")
    per_class = [(found.labels[found.rows(split)] == 1).sum() for split in ("train", "val")]
    assert per_class == [6, 2]
    for shots, split, most in ((3, "val", 2), (7, "train", 6)):
        study = tiny_study(pictures, targets=[folder(str(path), shots=shots)])
        with pytest.raises(StudyError) as refused:
            plan_study(study)
        expected = f"targets[0].shots: {shots} are too many: class {second.name} has {most} {split}"
        assert str(refused.value) == f"{expected} images"


def test_shots_of_a_target_that_is_not_here_are_passed_over(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    study = tiny_study(pictures, targets=[folder(str(tmp_path / "elsewhere"), shots=500)])
    absent: list[str] = []
    assert plan_study(study, absent=absent).cells
    assert absent == [f"{tmp_path / 'elsewhere'} is not here: `dp4tl run` needs it"]


@pytest.mark.parametrize("kind", [HeldOutLetters, HandwrittenDigits, HeldOutTextures])
def test_the_most_shots_of_embedded_targets_are_what_the_smallest_class_has(kind: Any) -> None:
    found = open_pictures(kind(), "target")
    most = min(np.bincount(found.labels[found.rows(split)]).min() for split in ("train", "val"))
    check: TypeAdapter[Any] = TypeAdapter(Target)
    name = kind().dataset
    assert check.validate_python({"dataset": name, "shots": int(most)}).shots == most
    with pytest.raises(ValidationError, match="less than or equal"):
        check.validate_python({"dataset": name, "shots": int(most) + 1})


@pytest.mark.parametrize(("changes", "said"), [
    (
        {"pretraining": [supervised(batch_size=80)]},
        "pretrain supervised-resnet9-s0 on random_classes-r0.5-s0: batch_size 80 is more than the "
        "72 examples that pruning_ratio 0.5 of 144 leaves: lower it, or prune less",
    ),
    (
        {"surrogate": supervised(batch_size=160)},
        "surrogate supervised-resnet9-s0: batch_size 160 is more than the 144 examples that "
        "there are: lower it, or prune less",
    ),
    (
        {"methods": ["semdedup"]},
        "cluster k1000-s0: clustering.num_clusters 1000 is more than the 144 examples: lower it",
    ),
    (
        {"methods": ["forgetting"], "surrogate": supervised(budget={"epochs": 2}, batch_size=40)},
        "surrogate supervised-resnet9-s0: methods that watch it train need 2 whole epochs, and "
        "batches of 40 of 144 examples make 1: raise its budget",
    ),
])  # fmt: skip
def test_what_a_small_source_cannot_give_is_refused_with_the_arithmetic(
    pictures: dict[str, str], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(StudyError) as refused:
        plan_study(tiny_study(pictures, **changes))
    assert str(refused.value) == said


def test_whole_classes_may_be_more_than_the_ratio_says(pictures: dict[str, str]) -> None:
    methods = [{"method": "random_classes", "select": "whole_units"}]
    assert plan_study(
        tiny_study(pictures, methods=methods, pretraining=[supervised(batch_size=80)])
    ).cells
