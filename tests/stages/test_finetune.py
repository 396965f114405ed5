"""Full finetuning: what its two searches choose, and what they cost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ray.store import Artifact, open_store
from dp4tl_ray.sweep import plan_study, run_study
from tests.conftest import folder, tiny_study

EPOCHS = 9
TRANSFER = {
    "transfer": "full_finetune",
    "epochs": EPOCHS,
    "batch_size": 9,
    "lrs": [1e9, 1e-6, 0.02],
    "weight_decays": [5.0, 5e-4],
}


def finetuned(pictures: dict[str, str], root: Path, **changes: Any) -> Artifact:
    """Transfer a full source with a network that two epochs have trained."""
    study = tiny_study(
        pictures,
        methods=["random_classes"],
        pruning_ratios=[0.0],
        pretraining=[tiny_study(pictures).networks[0].model_dump(mode="json")],
        targets=[folder(pictures["target"])],
        transfers=[{**TRANSFER, **changes}],
    )
    plan, store = plan_study(study), open_store(str(root))
    outcome = run_study(study, plan, store, local=True)
    assert not outcome.errors
    (cell,) = plan.cells
    artifact = store.find(plan.steps[cell.steps["finetune"]])
    assert artifact is not None
    return artifact


@pytest.fixture(scope="module")
def halved(pictures: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return finetuned(pictures, tmp_path_factory.mktemp("halved"), search="halving")


def test_halving_finds_the_pair_that_learns_in_fewer_epochs(halved: Artifact) -> None:
    metrics = halved.manifest.metrics
    assert (metrics["lr"], metrics["weight_decay"]) == (0.02, 5e-4)
    # 6 pairs, of which 2 diverge; of the other 4 go on 2; of these 1
    assert metrics["transfer_epochs"] == 6 * 1 + 2 * 2 + 1 * 6


def test_the_survivor_is_what_the_grid_would_have_trained(
    pictures: dict[str, str], halved: Artifact, tmp_path: Path
) -> None:
    alone = finetuned(pictures, tmp_path, lrs=[0.02], weight_decays=[5e-4])
    assert alone.manifest.metrics["transfer_epochs"] == EPOCHS
    for name in ("val_accuracy", "accuracy"):
        assert alone.manifest.metrics[name] == halved.manifest.metrics[name]
    assert np.array_equal(alone.array("test_predictions"), halved.array("test_predictions"))


def test_halving_gives_the_same_result_twice(
    pictures: dict[str, str], halved: Artifact, tmp_path: Path
) -> None:
    again = finetuned(pictures, tmp_path, search="halving")
    assert again.manifest.metrics == halved.manifest.metrics
    assert again.manifest.files == halved.manifest.files


def test_ties_go_to_the_smaller_rate_and_then_the_smaller_decay(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    # none of these moves the network: all four see the same accuracy
    still = finetuned(pictures, tmp_path, lrs=[2e-9, 1e-9], weight_decays=[1e-3, 1e-4], epochs=1)
    assert still.manifest.metrics["lr"] == 1e-9
    assert still.manifest.metrics["weight_decay"] == 1e-4
