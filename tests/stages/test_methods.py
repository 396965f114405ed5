"""Methods through the pipeline: kept lists, combinations, plug-ins, scores from elsewhere."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ray.data.images import LabeledImages
from dp4tl_ray.plan import Cell, Plan, PlannedStep
from dp4tl_ray.scoring.elsewhere import ScorerError, scores_from_file
from dp4tl_ray.specs.adversarial import PGDRobustness
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.steps import ScoreStep
from dp4tl_ray.store import Store, open_store
from dp4tl_ray.sweep import plan_study, report_study, run_study, triage_study
from dp4tl_ray.training.inference import infer_parts
from dp4tl_ray.triage import triage, triage_table
from tests.conftest import folder, supervised, tiny_study

Pictures = dict[str, str]
CLUSTERS = {"clustering": {"num_clusters": 12, "num_iterations": 3}}
METHODS: list[Any] = [
    *("label_mapping", "label_aware_mapping", "emd_greedy", "class_facility_location"),
    {"method": "label_mapping", "temperature": 1, "select": {"rule": "quota", "alpha": 0.5}},
    {"method": "label_mapping", "select": "whole_units"},
    {"method": "label_mapping", "temperature": 1, "within": {"method": "semdedup", **CLUSTERS}},
    {"method": "feature_mapping", **CLUSTERS},
    {"method": "feature_mapping", "temperature": 1, "within": "retrieval", **CLUSTERS},
    {"method": "dsir", **CLUSTERS},
    {"method": "prototypes", **CLUSTERS},
    *("retrieval", "normsim", "domain_classifier", "gradient_matching"),
    {"method": "retrieval", "combine": "round_robin"},
    *("random_examples", "forgetting", "aum", "uncertainty", "herding", "k_center", "moderate"),
    {"method": "dyn_unc", "window": 2},
    {"method": "tdds", "window": 3},
    {"method": "grand", "parameters": "all"},
    {"method": "el2n", "select": "stratified"},
    {"method": "el2n", "select": {"rule": "ccs", "num_strata": 5}},
    {"method": "el2n", "select": {"rule": "d2", "num_neighbors": 3}},
    {"method": "el2n", "select": "gumbel"},
]


def choose(
    pictures: Pictures, root: Path, methods: list[Any], **changes: Any
) -> tuple[Plan, Store, dict[str, str]]:
    """Run a study up to the lists of kept examples."""
    study = tiny_study(
        pictures, methods=methods, surrogate=supervised(budget={"epochs": 5}), **changes
    )
    store, plan = open_store(str(root)), plan_study(study)
    outcome = run_study(study, plan_study(study, "prune"), store, local=True)
    return plan, store, outcome.errors


def kept(plan: Plan, store: Store, cell: Cell) -> set[int]:
    artifact = store.find(plan.steps[cell.steps["prune"]])
    assert artifact is not None
    return set(np.asarray(artifact.array("kept_indices")).tolist())


@pytest.fixture(scope="module")
def chosen(
    pictures: Pictures, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Store, dict[str, str]]:
    ratios = [0.0, 0.25, 0.5]
    return choose(pictures, tmp_path_factory.mktemp("store"), METHODS, pruning_ratios=ratios)


def test_every_budget_is_exact_and_every_larger_ratio_keeps_a_subset(
    chosen: tuple[Plan, Store, dict[str, str]],
) -> None:
    plan, store, errors = chosen
    assert not errors
    pruned = [c for c in plan.cells if c.method is not None]
    assert len(pruned) == 2 * len(METHODS)
    for _, pair in itertools.groupby(
        sorted(pruned, key=lambda c: (label(c.method), c.pruning_ratio)),  # type: ignore[arg-type]
        key=lambda c: label(c.method),  # type: ignore[arg-type]
    ):
        more, less = (kept(plan, store, cell) for cell in pair)
        assert less <= more
    for cell in pruned:
        assert cell.method is not None
        whole = cell.method.select.rule == "whole_units"
        expected = (
            round(6 * (1 - cell.pruning_ratio)) * 24 if whole else 144 * (1 - cell.pruning_ratio)
        )
        assert len(kept(plan, store, cell)) == expected, label(cell.method)


def test_one_combined_subset_serves_all_targets(pictures: Pictures, tmp_path: Path) -> None:
    targets = [folder(pictures["target"], shots=n) for n in (3, 4)]
    methods: list[Any] = ["label_mapping", {"method": "label_mapping", "combine": "mean"}]
    plan, _, _ = choose(pictures, tmp_path, methods, targets=targets)
    by_method: dict[str, set[str]] = {}
    for cell in plan.cells:
        if cell.method is not None:
            by_method.setdefault(label(cell.method), set()).add(cell.steps["pretrain"])
    assert {name: len(steps) for name, steps in by_method.items()} == {
        "label_mapping": 2,
        "label_mapping(combine=mean)": 1,
    }


def test_regret_is_the_loss_against_a_subset_of_its_own(pictures: Pictures, tmp_path: Path) -> None:
    targets = [folder(pictures["target"], shots=n) for n in (3, 4)]
    study = tiny_study(
        pictures,
        targets=targets,
        methods=["label_mapping", {"method": "label_mapping", "combine": "max"}],
        pretraining=[supervised()],
    )
    plan, store = plan_study(study), open_store(str(tmp_path))
    outcome = run_study(study, plan, store, local=True)
    assert not outcome.errors
    at = {(r.target, r.method): r.metrics.accuracy for r in outcome.results if r.metrics}
    _, where = report_study(study, plan, store)
    text = (where / "results.md").read_text()
    for target in {r.target for r in outcome.results}:
        regret = at[target, "label_mapping"] - at[target, "label_mapping(combine=max)"]
        table = text[text.index(f"## {target}") :]
        row = table[table.index("Regret") :].splitlines()[4]
        assert [cell.strip() for cell in row.split("|")[1:-1]] == [
            "label_mapping(combine=max)",
            f"{regret:.3f}",
        ]


def test_counterfactual_pretrains_on_random_halves_and_counts_their_cost(
    pictures: Pictures, tmp_path: Path
) -> None:
    method = {"method": "counterfactual", "num_subsets": 10, "recipe": supervised()}
    study = tiny_study(pictures, methods=[method], pretraining=[supervised()])
    plan, store = plan_study(study), open_store(str(tmp_path))
    assert plan.unique()["pretrain"] == 10 + 2  # the halves; the whole source and the choice
    attacked = plan_study(study.model_copy(update={"robustness": (PGDRobustness(),)}))
    new = [attacked.steps[key].stage for key in attacked.steps.keys() - plan.steps.keys()]
    assert new == [
        "finetune",
        "finetune",
    ]  # of the two cells, which alone are looked at under attack
    outcome = run_study(study, plan, store, local=True)
    assert not outcome.errors
    pruned = next(r for r in outcome.results if r.pruning_ratio == 0.5)
    assert pruned.score_seconds > 5 * pruned.pretrain_seconds and pruned.surrogate_digest == ""
    score = next(s for s in plan.steps.values() if label_of(s) == "counterfactual")
    artifact = store.find(score)
    assert artifact is not None and float(artifact.manifest.metrics["r2_loo"] or 0) <= 1
    (row,) = triage(plan, store)
    assert row.yardstick == 1  # against itself
    assert row.explained == artifact.manifest.metrics["r2_loo"]
    assert f"explains {row.explained:.2f} of" in triage_table([row])


def label_of(step: PlannedStep) -> str:
    return step.spec.method.method if isinstance(step.spec, ScoreStep) else ""


PACKAGE = '''\
import numpy as np

from dp4tl_ray.scoring.inputs import ScorerInputs


def small_norm(inputs: ScorerInputs, sign: float = -1.0) -> np.ndarray:
    """Keep the examples with the smallest features."""
    assert inputs.source is not None
    return sign * np.linalg.norm(inputs.source.features, axis=1)


def too_short(inputs: ScorerInputs) -> np.ndarray:
    return np.zeros(3)
'''
ENTRY_POINTS = """\
[dp4tl_ray.scorers]
small_norm = lab_scores:small_norm
too_short = lab_scores:too_short
"""


@pytest.fixture
def lab_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package that announces two scorers, as pip would leave it."""
    site = tmp_path / "site"
    (site / "lab_scores-1.2.dist-info").mkdir(parents=True)
    (site / "lab_scores.py").write_text(PACKAGE)
    (site / "lab_scores-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lab-scores\nVersion: 1.2\n"
    )
    (site / "lab_scores-1.2.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("lab_scores", None)


def plugin(name: str, **changes: Any) -> dict[str, Any]:
    return {"method": "plugin", "scorer": name, **changes}


@pytest.mark.usefixtures("lab_package")
def test_a_lab_adds_a_scorer_without_a_fork(pictures: Pictures, tmp_path: Path) -> None:
    methods = [plugin("small_norm"), plugin("small_norm", options={"sign": 1.0})]
    plan, store, errors = choose(pictures, tmp_path / "store", methods)
    assert not errors
    small, large = (kept(plan, store, c) for c in plan.cells if c.pruning_ratio == 0.5)
    assert len(small) == 72 and small | large == set(range(144))
    specs = [s.spec for s in plan.steps.values() if isinstance(s.spec, ScoreStep)]
    assert {spec.fingerprint for spec in specs} == {"lab-scores 1.2"}


@pytest.mark.usefixtures("lab_package")
def test_a_scorer_that_returns_the_wrong_length_is_refused(
    pictures: Pictures, tmp_path: Path
) -> None:
    _, _, errors = choose(pictures, tmp_path / "store", [plugin("too_short")])
    assert errors and all(
        "plug-in 'too_short' gave scores of shape (3,)" in reason and "(144,)" in reason
        for reason in errors.values()
    )


@pytest.mark.usefixtures("lab_package")
def test_a_scorer_that_nobody_installed_is_refused_before_any_work(
    pictures: Pictures, tmp_path: Path
) -> None:
    with pytest.raises(
        ScorerError, match=r"'small_nrm' is not installed.*did you mean 'small_norm'"
    ):
        choose(pictures, tmp_path / "store", [plugin("small_nrm")])
    assert not (tmp_path / "store" / "data").exists()


def ids_of(pictures: Pictures) -> list[str]:
    return [f"stripes{label}/{index:03d}.png" for label in range(6) for index in range(24)]


def test_scores_from_elsewhere_are_joined_by_id(pictures: Pictures, tmp_path: Path) -> None:
    ids = ids_of(pictures)
    order = np.random.default_rng(0).permutation(len(ids))
    path = tmp_path / "scores.npz"
    np.savez(path, ids=np.array(ids)[order], scores=np.arange(len(ids))[order])
    method = {"method": "scores_file", "path": str(path)}
    plan, store, errors = choose(pictures, tmp_path / "store", [method])
    assert not errors
    cell = next(c for c in plan.cells if c.pruning_ratio == 0.5)
    assert kept(plan, store, cell) == set(range(72, 144))


def test_scores_of_another_dataset_are_refused(pictures: Pictures, tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez(path, ids=np.array([*ids_of(pictures)[:-1], "other.png"]), scores=np.zeros(144))
    method = {"method": "scores_file", "path": str(path)}
    _, _, errors = choose(pictures, tmp_path / "store", [method])
    assert any("is of another dataset" in e and "stripes5/023.png" in e for e in errors.values())
    more = [*ids_of(pictures), "other.png"]  # such as one that `exclude` leaves out
    np.savez(path, ids=np.array(more), scores=np.arange(145.0))
    assert scores_from_file(str(path), more[1:-1]).tolist() == [*range(1, 144)]
    np.savez(path, ids=np.array([*more, "stripes1/003.png"]), scores=np.zeros(146))
    with pytest.raises(ScorerError, match=r"has 'stripes1/003.png' more than once"):
        scores_from_file(str(path), more)
    np.savez(path, ids=np.array(more, bytes), scores=np.zeros(145))
    with pytest.raises(ScorerError, match="must be texts"):
        scores_from_file(str(path), more)
    with pytest.raises(ScorerError, match="No such file"):
        choose(pictures, tmp_path, [{"method": "scores_file", "path": str(tmp_path / "no.npz")}])


def test_a_list_from_elsewhere_is_kept_from_its_first_example_on(
    pictures: Pictures, tmp_path: Path
) -> None:
    ids, path = ids_of(pictures), tmp_path / "mine.txt"
    order = np.random.default_rng(0).permutation(len(ids))[:72]
    path.write_text("\n".join(ids[row] for row in order))
    method = {"method": "given", "path": str(path)}
    plan, store, errors = choose(pictures, tmp_path / "s", [method], pruning_ratios=[0.5, 0.8])
    assert not errors
    for cell in (c for c in plan.cells if c.method is not None):
        wanted = 72 if cell.pruning_ratio == 0.5 else 29  # of 144
        assert kept(plan, store, cell) == set(order[:wanted].tolist())


def test_a_list_that_became_too_short_is_refused_where_it_is_used(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.npy"
    np.save(path, np.arange(71))
    monkeypatch.setattr("dp4tl_ray.sweep.check_lists", lambda *_: None)
    _, _, errors = choose(pictures, tmp_path / "s", [{"method": "given", "path": str(path)}])
    assert any("lists 71 examples, and pruning_ratio 0.5 keeps 72" in e for e in errors.values())


@pytest.mark.parametrize(
    ("method", "ratio", "message"),
    [
        ({"method": "dyn_unc", "window": 9}, 0.5, "window"),
        ({"method": "random_classes", "select": "whole_units"}, 0.95, "keeps none of 6 units"),
    ],
)
def test_what_cannot_work_fails_by_name(
    pictures: Pictures, tmp_path: Path, method: Any, ratio: float, message: str
) -> None:
    study_errors = choose(
        pictures, tmp_path, [method], pruning_ratios=[ratio], transfers=["linear_probe"]
    )[2]
    assert study_errors and all(message in reason for reason in study_errors.values())


def test_features_that_are_not_finite_are_named(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Iterator[Any]:
        for part, logits, features in infer_parts(*args):
            features[5] = np.nan
            yield part, logits, features

    monkeypatch.setattr("dp4tl_ray.stages.embed.infer_parts", broken)
    _, _, errors = choose(pictures, tmp_path, ["herding"])
    assert any("example 'stripes0/005.png' is not finite" in reason for reason in errors.values())


def test_triage_compares_what_is_kept(pictures: Pictures, tmp_path: Path) -> None:
    study = tiny_study(pictures, methods=["retrieval", "random_classes"], seeds=[0, 1])
    store = open_store(str(tmp_path))
    table, errors, path = triage_study(study, plan_study(study), store, local=True)
    assert not errors and path.read_text() == table
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")]
    head, mapped, random = ([cell.strip() for cell in row] for row in rows)
    assert head == ["method", "split-half", "yardstick", "Jaccard 0.5", "radius 0.5"]
    assert random[1:3] == ["-", "-"] and -1 <= float(mapped[1]) <= 1
    assert 0 <= float(mapped[3]) <= 1
    assert 1 <= float(mapped[4]) <= float(random[4])
    assert not (tmp_path / "pretrain").exists()


def test_labeled_images_have_ids_in_the_order_of_the_folder(pictures: Pictures) -> None:
    from dp4tl_ray.specs.data import ImageFolder
    from tests.data.loading import load_images

    spec = ImageFolder(dataset="image_folder", path=pictures["source"], image_size=16, channels=1)
    images: LabeledImages = load_images(spec, "source")
    assert list(images.ids) == ids_of(pictures)
