"""A study of a target with groups, from its files to the accuracy of its worst group."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp4tl_ray.results import read_results
from dp4tl_ray.store import Store, open_store
from dp4tl_ray.sweep import Outcome, plan_study, run_study
from tests.conftest import draw_class, folder, tiny_study
from tests.data.copies import waterbirds


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Waterbirds whose pictures can be told apart, but for one group, which looks like the other
    bird."""
    root, rng = tmp_path_factory.mktemp("birds"), np.random.default_rng(0)
    waterbirds(root, rng, counts=(8, 4, 6))
    for row in csv.DictReader((root / "metadata.csv").read_text().splitlines()):
        looks = 3 * int(row["y"]) if row["place"] == "0" else 0
        Image.fromarray(draw_class(looks, rng)).save(root / row["img_filename"])
    return root


@pytest.fixture(scope="module")
def finished(
    birds: Path, pictures: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Outcome]:
    target: dict[str, Any] = {"dataset": "waterbirds", "path": str(birds), "image_size": 16}
    study = tiny_study(
        pictures,
        targets=[target | {"channels": 1}, folder(pictures["target"], shots=4)],
        methods=["random_classes"],
        pretraining=["none", {"objective": "supervised", "network": {"arch": "resnet9", "width": 4},
                     "budget": {"epochs": 1}, "batch_size": 16, "batch_norm": {"group_size": 8}}],
    )  # fmt: skip
    store = open_store(str(tmp_path_factory.mktemp("store")))
    return store, run_study(study, plan_study(study), store, local=True)


def test_the_worst_group_is_in_the_results_of_targets_that_have_groups(
    finished: tuple[Store, Outcome],
) -> None:
    _, outcome = finished
    assert not outcome.errors
    results = read_results(outcome.folder / "results.jsonl")
    assert results == outcome.results
    of_birds = [r for r in results if r.target.startswith("waterbirds")]
    assert len(of_birds) == 3
    for result in results:
        assert result.metrics is not None
        worst = result.metrics.worst_group_accuracy
        assert (worst is not None) == (result in of_birds)
        assert worst is None or worst < result.metrics.accuracy
    rows = [*csv.DictReader((outcome.folder / "results.csv").read_text().splitlines())]
    assert [row["metrics.worst_group_accuracy"] for row in rows] == [
        "" if r.metrics is None or r.metrics.worst_group_accuracy is None
        else str(r.metrics.worst_group_accuracy)
        for r in results
    ]  # fmt: skip
    assert (outcome.folder / "results.md").read_text().count("### In the worst group") == 1


def test_the_worst_group_is_that_of_the_stored_predictions(
    finished: tuple[Store, Outcome],
) -> None:
    store, outcome = finished
    recomputed = set()
    for path in (store.root / "finetune").rglob("test_groups.npy"):
        arrays = {
            name: np.load(path.parent / f"test_{name}.npy")
            for name in ("predictions", "labels", "groups")
        }
        correct: dict[int, list[bool]] = {}
        for predicted, label, group in zip(*arrays.values(), strict=True):
            correct.setdefault(int(group), []).append(bool(predicted == label))
        assert sorted(map(len, correct.values())) == [6, 6, 6, 6]
        recomputed.add(min(sum(one) / len(one) for one in correct.values()))
        manifest = json.loads((path.parent / "manifest.json").read_text())
        assert manifest["metrics"]["worst_group_accuracy"] in recomputed
    reported = {r.metrics.worst_group_accuracy for r in outcome.results if r.metrics}
    assert recomputed == reported - {None}
