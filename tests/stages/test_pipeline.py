"""The pipeline on a tiny world, run by the local runner."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from dp4tl_ray.data.draws import draw_target
from dp4tl_ray.data.images import Split
from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.plan import Plan
from dp4tl_ray.results import read_results
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.stages import data as data_stage
from dp4tl_ray.stages.bench import free_in
from dp4tl_ray.store import Artifact, Store, open_store
from dp4tl_ray.sweep import Outcome, plan_study, run_study
from tests.conftest import folder, recipe, supervised, tiny_study

Pictures = dict[str, str]


def run(pictures: Pictures, root: Path, **changes: Any) -> tuple[Plan, Store, Outcome]:
    study = tiny_study(pictures, **changes)
    store, plan = open_store(str(root)), plan_study(study)
    return plan, store, run_study(study, plan, store, local=True)


def artifacts(plan: Plan, store: Store, stage: str) -> dict[str, Artifact]:
    found = {}
    for key, step in plan.steps.items():
        if step.stage == stage and (artifact := store.find(step)) is not None:
            found[key] = artifact
    return found


@pytest.fixture(scope="module")
def finished(
    pictures: Pictures, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Store, Outcome]:
    root = tmp_path_factory.mktemp("store")
    return run(pictures, root, pretraining=[supervised(), "none", "raw_pixels"])


def test_every_cell_has_a_result(finished: tuple[Plan, Store, Outcome]) -> None:
    plan, _, outcome = finished
    assert not outcome.errors
    rows = {(r.method, r.pruning_ratio, r.objective) for r in outcome.results}
    assert rows == {
        ("none", 0.0, "supervised"),
        ("random_classes", 0.5, "supervised"),
        ("label_mapping", 0.5, "supervised"),
        ("none", 0.0, "none"),
        ("none", 0.0, "raw_pixels"),
    }
    assert len(outcome.results) == len(plan.cells)


def test_results_tell_what_was_kept_and_what_it_cost(
    finished: tuple[Plan, Store, Outcome],
) -> None:
    _, _, outcome = finished
    by_method = {(r.method, r.objective): r for r in outcome.results}
    pruned = by_method["label_mapping", "supervised"]
    assert (pruned.num_source, pruned.num_kept) == (144, 72)
    assert pruned.num_classes_kept == 3 and pruned.class_ratio == 0.5
    assert pruned.unvoted_share is not None and pruned.surrogate_seconds > 0
    assert pruned.optimizer_steps == 2 * 72 // 16
    full = by_method["none", "supervised"]
    assert full.optimizer_steps == 2 * 144 // 16 and full.surrogate_digest == ""
    assert by_method["random_classes", "supervised"].unvoted_share is None
    assert by_method["none", "raw_pixels"].pretrain_digest == ""
    assert all(r.metrics and 0 <= r.metrics.accuracy <= 1 for r in outcome.results)


def test_results_file_reads_back_and_fits_the_schema(
    finished: tuple[Plan, Store, Outcome],
) -> None:
    _, _, outcome = finished
    path = outcome.folder / "results.jsonl"
    assert read_results(path) == outcome.results
    validator = Draft202012Validator(json.loads(Path("schemas/result.schema.json").read_text()))
    for line in path.read_text().splitlines():
        validator.validate(json.loads(line))


def test_accuracy_is_that_of_the_stored_predictions(finished: tuple[Plan, Store, Outcome]) -> None:
    plan, store, _ = finished
    for artifact in artifacts(plan, store, "finetune").values():
        labels = np.asarray(artifact.array("test_labels"))
        predictions = np.asarray(artifact.array("test_predictions"))
        assert artifact.manifest.metrics["accuracy"] == pytest.approx(
            (labels == predictions).mean()
        )
        assert len(labels) == 3 * 6  # a fifth of 30 pictures of 3 classes


def test_a_rerun_runs_nothing(pictures: Pictures, finished: tuple[Plan, Store, Outcome]) -> None:
    _, store, outcome = finished
    _, _, again = run(pictures, store.root)
    assert again.ran == 0
    assert again.results == outcome.results


def test_a_larger_study_runs_only_what_is_new(
    pictures: Pictures, finished: tuple[Plan, Store, Outcome]
) -> None:
    _, store, _ = finished
    _, _, more = run(pictures, store.root, pruning_ratios=[0.0, 0.5, 0.25])
    # two methods at one more ratio: prune, pretrain, finetune
    assert more.ran == 6


@pytest.mark.parametrize("stage", ["data", "surrogate", "score", "prune", "pretrain", "finetune"])
def test_a_damaged_artifact_is_computed_again_to_the_same_bytes(
    pictures: Pictures, finished: tuple[Plan, Store, Outcome], stage: str
) -> None:
    plan, store, outcome = finished
    artifact = next(iter(artifacts(plan, store, stage).values()))
    name = sorted(artifact.manifest.files)[0]
    path = artifact.file(name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    _, _, again = run(pictures, store.root)
    assert again.ran == 1
    assert path.read_bytes() == whole
    timeless = {"pretrain_seconds", "transfer_seconds", "surrogate_seconds", "score_seconds",
                "device_seconds"}  # fmt: skip
    assert [r.model_dump(exclude=timeless) for r in again.results] == [
        r.model_dump(exclude=timeless) for r in outcome.results
    ]


def noisy(split_to_keep: Split) -> Callable[..., Any]:
    """Make a loader that replaces every other split of the target by noise."""

    def open_noisy(spec: Any, role: Any) -> Any:
        pictures = open_pictures(spec, role)
        if role == "source":
            return pictures
        noise = np.random.default_rng(0).integers(0, 256, (len(pictures), 16, 16, 1), np.uint8)
        kept = set(pictures.rows(split_to_keep).tolist())
        return replace(pictures, read=lambda i: pictures.read(i) if i in kept else noise[i])

    return open_noisy


def test_subsets_depend_on_the_targets_train_images_alone(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subsets = {}
    kinds: tuple[Literal["clean", "train", "test"], ...] = ("clean", "train", "test")
    for kind in kinds:
        with monkeypatch.context() as patch:
            if kind != "clean":
                patch.setattr(data_stage, "open_pictures", noisy(kind))
            _, _, outcome = run(pictures, tmp_path / kind, methods=["label_mapping"])
            subsets[kind] = [r.subset_digest for r in outcome.results]
    assert subsets["clean"] == subsets["train"]
    assert subsets["clean"] != subsets["test"]  # the check can fail: train images do matter


def test_a_subset_that_cannot_be_trained_on_is_refused_by_name(
    pictures: Pictures, tmp_path: Path
) -> None:
    _, _, outcome = run(pictures, tmp_path, pruning_ratios=[0.0, 0.85], methods=["random_classes"])
    failed = [r for r in outcome.results if r.status == "failed"]
    assert [(r.method, r.pruning_ratio) for r in failed] == [("random_classes", 0.85)]
    assert "the 22 examples that are kept are of 1 class" in failed[0].error
    assert failed[0].metrics is None
    assert sum(r.status == "done" for r in outcome.results) == 3


def test_fewer_examples_than_a_batch_are_refused_by_name(
    pictures: Pictures, tmp_path: Path
) -> None:
    _, _, outcome = run(
        pictures,
        tmp_path,
        pretraining=[supervised(batch_size=80)],
        methods=[{"method": "random_classes", "select": "whole_units"}],
    )
    failed = [r.error for r in outcome.results if r.status == "failed"]
    assert len(failed) == 1 and "72 examples are kept, fewer than one batch of 80" in failed[0]


def test_a_loss_that_is_nan_fails_its_cell_and_no_other(pictures: Pictures, tmp_path: Path) -> None:
    wild = supervised(optimizer={"lr": 1e9})
    tame = supervised()
    _, _, outcome = run(
        pictures,
        tmp_path,
        pretraining=[wild, tame],
        pruning_ratios=[0.0],
        methods=["label_mapping"],
    )
    status = {r.pretraining: (r.status, r.error) for r in outcome.results}
    assert len(status) == 2
    for pretraining, (state, error) in status.items():
        if "1000000000" in pretraining:
            assert state == "failed" and "the loss is" in error and "pretrain" in error
        else:
            assert state == "done"


def test_heads_and_transfers(pictures: Pictures, tmp_path: Path) -> None:
    heads = [{"objective": "supervised", "head": h, **recipe()} for h in ("compact", "source")]
    tune = {"transfer": "full_finetune", "epochs": 8, "lrs": [0.01, 1e9]}
    plan, store, outcome = run(
        pictures,
        tmp_path,
        pretraining=heads,
        methods=["label_mapping"],
        pruning_ratios=[0.5],
        transfers=["linear_probe", tune],
    )
    assert not outcome.errors
    from safetensors.numpy import load_file

    outputs = sorted(
        len(load_file(a.file("network.safetensors"))["head.bias"])
        for a in artifacts(plan, store, "pretrain").values()
    )
    assert outputs == [3, 6]
    tuned = [r for r in outcome.results if r.transfer.startswith("full_finetune")]
    assert [r.transfer_hyperparameters.lr for r in tuned] == [0.01, 0.01]  # the other one diverges


def test_until_prune_leaves_the_kept_lists(pictures: Pictures, tmp_path: Path) -> None:
    study = tiny_study(pictures)
    plan, store = plan_study(study, "prune"), open_store(str(tmp_path))
    run_study(study, plan, store, local=True)
    kept = [a.array("kept_indices") for a in artifacts(plan, store, "prune").values()]
    assert [len(k) for k in kept] == [72, 72]
    assert not (tmp_path / "pretrain").exists()


def test_the_draw_of_a_seed(pictures: Pictures) -> None:
    labels = np.repeat([0, 1, 2], 20)
    splits = np.tile(np.repeat([0, 1, 2], [10, 5, 5]), 3).astype(np.int8)
    a, b = draw_target(labels, splits, 4, seed=0), draw_target(labels, splits, 4, seed=1)
    assert np.bincount(labels[a.train]).tolist() == [4, 4, 4] == np.bincount(labels[a.val]).tolist()
    assert not np.array_equal(a.train, b.train) and np.array_equal(a.test, b.test)
    assert set(a.train) <= set(np.flatnonzero(splits == 0))
    with pytest.raises(ValueError, match="class 0 has 5 val images, fewer than shots = 6"):
        draw_target(labels, splits, 6, seed=0)


def test_image_folder_layouts(pictures: Pictures, tmp_path: Path) -> None:
    import shutil

    split = tmp_path / "split"
    for name in ("train", "test"):
        shutil.copytree(pictures["target"], split / name)
    plan, store, outcome = run(pictures, tmp_path / "store", targets=[folder(str(split), shots=4)])
    assert not outcome.errors
    target = next(
        a
        for k, a in artifacts(plan, store, "data").items()
        if isinstance(spec := plan.steps[k].spec, DataStep) and spec.role == "target"
    )
    # official test split whole; a fifth of the train pictures validates
    assert np.bincount(np.asarray(target.array("splits"))).tolist() == [72, 18, 90]


def test_a_search_runs_fewer_pretrainings_than_the_grid_and_a_rerun_none(
    pictures: Pictures, tmp_path: Path
) -> None:
    changes = {
        "methods": ["random_examples"],
        "pretraining": [supervised(budget={"epochs": 4}), "none"],
        "pruning_ratios": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        "seeds": [0, 1, 2],
        "search": "lossless",
    }
    plan, _, outcome = run(pictures, tmp_path, **changes)
    assert not outcome.errors
    tested = {r.pruning_ratio for r in outcome.results if r.method != "none"}
    assert len(tested) in (2, 3, 4)
    assert len(outcome.results) == 3 * (2 + len(tested)) < len(plan.cells)
    table = (outcome.folder / "search.md").read_text()
    assert all(f"{ratio:g}" in table for ratio in tested)
    _, _, again = run(pictures, tmp_path, **changes)
    assert again.ran == 0 and again.results == outcome.results


def test_what_stands_for_two_workers_leaves_a_transfer_to_one(
    pictures: Pictures, tmp_path: Path
) -> None:
    once = {"transfer": "full_finetune", "epochs": 1, "lrs": [0.01], "weight_decays": [0.0]}
    changes = {"methods": ["random_classes"], "pruning_ratios": [0.0], "transfers": [once]}
    changes["pretraining"] = [supervised()]
    outcomes = [
        run(pictures, tmp_path / str(workers), **changes, runtime={"pretrain_workers": workers})[2]
        for workers in (1, 2)
    ]
    assert not outcomes[0].errors and not outcomes[1].errors
    one, two = (outcome.results[0].metrics for outcome in outcomes)
    assert one is not None and two is not None and abs(one.accuracy - two.accuracy) < 0.1


def test_what_a_container_has_cached_is_free(tmp_path: Path) -> None:
    assert free_in(tmp_path) == math.inf
    for name, text in (
        ("max", "1000\n"),
        ("current", "990\n"),
        ("stat", "anon 40\ninactive_file 900\nactive_file 50\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_in(tmp_path) == 910
    (tmp_path / "memory.max").write_text("max\n")
    assert free_in(tmp_path) == math.inf
