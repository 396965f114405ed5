"""Feature mapping without labels, from pictures to results."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from dp4tl_ray.plan import Plan
from dp4tl_ray.specs.load import StudyError
from dp4tl_ray.specs.study import Study
from dp4tl_ray.store import Store, open_store
from dp4tl_ray.sweep import Outcome, alarms, plan_study, run_study, weights_used
from dp4tl_ray.triage import _embedded, triage
from tests.conftest import recipe, supervised, tiny_study

Pictures = dict[str, str]

VIEW = {"crop": 0.5, "contrast": 0.4}
MOCO = {
    **recipe(),
    "objective": "moco_v2",
    "queue_size": 18,
    "momentum": 0.9,
    "dim": 8,
    "augmentation": VIEW,
}
SIMCLR = {**recipe(), "objective": "simclr", "dim": 8, "augmentation": VIEW}
CLUSTERS = {"clustering": {"num_clusters": 12, "num_iterations": 3}}


def without_labels(pictures: Pictures, **changes: Any) -> Study:
    """A study in which nothing has to read a label of the source."""
    return tiny_study(
        pictures,
        **{
            "surrogate": SIMCLR,
            "methods": [
                "random_examples",
                {"method": "feature_mapping", **CLUSTERS},
                {"method": "feature_mapping", "temperature": 1, **CLUSTERS},
            ],
            "pretraining": [MOCO, "none"],
            "transfers": ["linear_probe", "knn"],
            **changes,
        },
    )


def run(study: Study, root: Path) -> tuple[Plan, Store, Outcome]:
    store, plan = open_store(str(root)), plan_study(study)
    return plan, store, run_study(study, plan, store, local=True)


def scramble_labels(study: Study, root: Path) -> None:
    """Bring the source into a store, and permute its labels there."""
    store, plan = open_store(str(root)), plan_study(study, "data")
    run_study(study, plan, store, local=True)
    [step] = [s for s in plan.steps.values() if getattr(s.spec, "role", "") == "source"]
    artifact = store.find(step)
    assert artifact is not None
    path = Path(artifact.file("labels.npy"))
    labels = np.load(path)
    other = np.random.default_rng(0).permutation(labels)
    assert (labels != other).mean() > 0.5
    path.chmod(0o644)
    np.save(path, other)
    manifest = path.parent / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"]["labels.npy"]["sha256"] = sha256(path.read_bytes()).hexdigest()
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(facts))


def outputs(plan: Plan, store: Store) -> dict[str, bytes]:
    """The kept examples, the networks and the predictions of a study."""
    names = {
        "cluster": "cluster.npy",
        "prune": "kept_indices.npy",
        "pretrain": "network.safetensors",
        "finetune": "test_predictions.npy",
    }
    found = {}
    for key, step in plan.steps.items():
        if step.stage in names and (artifact := store.find(step)) is not None:
            found[key] = Path(artifact.file(names[step.stage])).read_bytes()
    return found


def test_no_label_of_the_source_is_read(pictures: Pictures, tmp_path: Path) -> None:
    study = without_labels(pictures)
    plan, store, outcome = run(study, tmp_path / "a")
    assert not outcome.errors
    scramble_labels(study, tmp_path / "b")
    _, other, again = run(study, tmp_path / "b")
    assert not again.errors
    clean, scrambled = outputs(plan, store), outputs(plan, other)
    assert len(clean) > 12
    assert clean == scrambled
    by_method = {(r.method, r.transfer): r for r in outcome.results if r.objective == "moco_v2"}
    assert len(by_method) == 2 * 4  # the full source, and three methods
    soft = next(r for (m, _), r in by_method.items() if "temperature" in m)
    assert soft.num_kept == 72 and soft.surrogate_seconds > 0


def test_hard_and_soft_mapping_and_the_number_of_clusters_score_differently(
    pictures: Pictures, tmp_path: Path
) -> None:
    methods = [
        {"method": "feature_mapping", "temperature": t, "clustering": {"num_clusters": k}}
        for t in (0, 1)
        for k in (6, 12, 24)
    ]
    study = without_labels(pictures, methods=methods)
    store, plan = open_store(str(tmp_path)), plan_study(study, "prune")
    assert not run_study(study, plan, store, local=True).errors
    assert plan.unique()["cluster"] == 3 and plan.unique()["surrogate"] == 1
    scores = [store.find(s) for s in plan.steps.values() if s.stage == "score"]
    assert len({s.manifest.files["score_U.npy"].sha256 for s in scores if s}) == 6


def test_a_queue_longer_than_a_quarter_of_what_is_kept_is_refused_before_any_work(
    pictures: Pictures,
) -> None:
    study = without_labels(pictures, pruning_ratios=[0.0, 0.5, 0.9], pretraining=[MOCO])
    with pytest.raises(StudyError) as refused:
        plan_study(study)
    assert "pretraining[0].queue_size: 18 is more than a quarter" in str(refused.value)
    assert "(pruning_ratio 0.9 of 144 leaves 14); at most 3" in str(refused.value)


def test_a_collapse_is_said_in_results_report_and_manifest(
    pictures: Pictures, tmp_path: Path
) -> None:
    # at this rate everything is pushed to where the network answers the same to all
    wild = {**SIMCLR, "optimizer": {"lr": 50.0}}
    study = without_labels(pictures, methods=["random_examples"], pretraining=[wild])
    plan, store, outcome = run(study, tmp_path)
    assert not outcome.errors
    full = next(r for r in outcome.results if r.pruning_ratio == 0)
    assert any("pretraining collapsed" in alarm for alarm in full.alarms)
    told = alarms(plan, store)
    assert told and all(line.startswith("pretrain simclr-resnet9-s0 collapsed") for line in told)
    assert "## Alarms" in (outcome.folder / "results.md").read_text()


# -- weights from elsewhere ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained on the source, as somebody else might have published it."""
    root = tmp_path_factory.mktemp("elsewhere")
    study = tiny_study(pictures, methods=["label_mapping"], pretraining=[supervised()])
    plan, store, _ = run(study, root)
    [surrogate] = [s for s in plan.steps.values() if s.stage == "surrogate"]
    artifact = store.find(surrogate)
    assert artifact is not None
    path = root / "published.safetensors"
    save_file(load_file(artifact.file("network.safetensors")), path)
    return path


def test_weights_from_elsewhere_score_as_the_surrogate_that_they_are(
    pictures: Pictures, weights: Path, tmp_path: Path
) -> None:
    elsewhere = {
        "objective": "pretrained",
        "network": recipe()["network"],
        "weights": str(weights),
        "outputs": "source",
    }
    methods = ["label_mapping", "el2n", {"method": "label_mapping", "surrogate": "ours"}]
    study = tiny_study(
        pictures,
        surrogate=elsewhere,
        surrogates={"ours": supervised()},
        methods=methods,
        pretraining=[supervised(), elsewhere, "none"],
        seeds=[0, 1],
    )
    plan, store, outcome = run(study, tmp_path)
    assert not outcome.errors
    # the weights are the same for all seeds, and nothing is pruned for them
    assert plan.unique()["surrogate"] == 1 + 2
    levels = [r for r in outcome.results if r.objective == "pretrained"]
    assert {(r.pruning_ratio, r.seed, r.num_kept) for r in levels} == {(0.0, 0, 0), (0.0, 1, 0)}
    assert len({r.pretrain_digest for r in levels}) == 1
    subsets = {(r.method, r.seed): r.subset_digest for r in outcome.results if "label" in r.method}
    # published were the weights of seed 0
    same = "label_mapping(surrogate=ours)"
    assert subsets["label_mapping", 0] == subsets[same, 0]
    assert subsets["label_mapping", 1] != subsets[same, 1]
    [read] = [
        store.find(s)
        for s in plan.steps.values()
        if s.stage == "surrogate" and "pretrained" in s.name
    ]
    assert read is not None and read.manifest.metrics["weights_sha256"]
    assert "licence" in read.manifest.metrics
    text = (outcome.folder / "results.md").read_text()
    assert "- pretrained(" in text
    assert weights_used(plan, store) == [f"weights: {weights}; licence: not stated"]
    seeds = {r.method: r.surrogate_seed for r in outcome.results}
    assert seeds["label_mapping"] == 0 and seeds[same] is None  # all seeds score by these weights
    # radii are of one feature space, whatever each method scores by
    assert {len(by_surrogate) for by_surrogate in _embedded(plan).values()} == {1, 2}
    radii = {row.method: row.radius[0.5] for row in triage(plan, store) if "label" in row.method}
    assert radii["label_mapping"] is not None and radii[same] is not None


def test_weights_that_change_between_plan_and_run_are_not_used(
    pictures: Pictures, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(load_file(weights), path)
    elsewhere = {"objective": "pretrained", "network": recipe()["network"], "weights": str(path)}
    study = tiny_study(pictures, methods=["random_classes"], pretraining=[supervised(), elsewhere])
    store, plan = open_store(str(tmp_path / "store")), plan_study(study)
    save_file({n: t + 1 for n, t in load_file(weights).items()}, path)
    outcome = run_study(study, plan, store, local=True)
    assert {r.objective: r.status for r in outcome.results if r.pruning_ratio == 0} == {
        "supervised": "done",
        "pretrained": "failed",
    }
    assert any("have changed since the study was planned" in e for e in outcome.errors.values())


def test_weights_that_do_not_fit_fail_by_name_and_the_rest_goes_on(
    pictures: Pictures, weights: Path, tmp_path: Path
) -> None:
    wrong = {
        "objective": "pretrained",
        "network": {"arch": "resnet9", "width": 8},
        "weights": str(weights),
    }
    study = tiny_study(pictures, methods=["random_classes"], pretraining=[supervised(), wrong])
    _, _, outcome = run(study, tmp_path)
    done = {r.objective: r.status for r in outcome.results}
    assert done == {"supervised": "done", "pretrained": "failed"}
    assert any(str(weights) in error for error in outcome.errors.values())


def test_new_weights_under_an_old_name_are_read_again(
    pictures: Pictures, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    tensors = load_file(weights)
    save_file(tensors, path)
    elsewhere = {
        "objective": "pretrained",
        "network": recipe()["network"],
        "weights": str(path),
    }
    study = tiny_study(pictures, methods=["random_classes"], pretraining=[supervised(), elsewhere])
    before = {k for k, s in plan_study(study).steps.items() if s.stage == "pretrain"}
    save_file({n: t + 1 if n == "head.bias" else t for n, t in tensors.items()}, path)
    after = {k for k, s in plan_study(study).steps.items() if s.stage == "pretrain"}
    assert len(before - after) == 1


def test_a_network_of_a_package_that_is_not_there_is_refused_before_any_work(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = {"arch": "timm", "name": "resnet18.a1_in1k"}
    study = tiny_study(pictures, pretraining=[supervised(network=network)])
    assert plan_study(study).cells
    monkeypatch.setattr("dp4tl_ray.requirements.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"pip install 'dp4tl_ray\[timm\]'"):
        plan_study(study)
