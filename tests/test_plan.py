from typing import Any

import pytest

from dp4tl_ray.plan import Plan, make_plan
from dp4tl_ray.specs.data import CoOp, HuggingFace, ImageFolder, located
from dp4tl_ray.specs.steps import DataStep, Stage, SurrogateStep
from dp4tl_ray.specs.study import Study

AGNOSTIC: list[Any] = [
    "random_classes",
    "random_examples",
    {"method": "random_examples", "select": "stratified"},
    "el2n",
]
AWARE: list[Any] = ["label_mapping", {"method": "label_mapping", "keep": "lowest"}]
TARGETS = [{"dataset": "held_out_letters", "shots": n} for n in range(1, 9)]


def study(**changes: Any) -> Study:
    return Study.model_validate(
        {
            "name": "s",
            "source": "glyphs_and_textures",
            "targets": ["held_out_letters"],
            "methods": ["label_mapping"],
            "pruning_ratios": [0.5],
            "pretraining": ["supervised"],
            **changes,
        }
    )


def stages(plan: Plan, stage: Stage) -> set[str]:
    return {key for key, step in plan.steps.items() if step.stage == stage}


def test_six_methods_ten_ratios_eight_targets_share_pretrainings() -> None:
    ratios = [i / 10 for i in range(10)]
    plan = make_plan(study(methods=AGNOSTIC + AWARE, pruning_ratios=ratios, targets=TARGETS))
    assert plan.naive["pretrain"] == 6 * 10 * 8 == 480
    # ratio 0 once; 4 agnostic methods x 9 ratios; 2 target-aware ones x 9 ratios x 8 targets
    assert plan.unique()["pretrain"] == 1 + 4 * 9 + 2 * 9 * 8 == 181
    assert plan.unique()["surrogate"] == 1
    # both ways to draw examples select from one score
    assert plan.unique()["score"] == 3 + 2 * 8


def test_ten_thousand_cells_are_planned() -> None:
    big = study(
        methods=AGNOSTIC[:2] + AWARE,
        pruning_ratios=[i / 10 for i in range(10)],
        targets=TARGETS[:5],
        seeds=list(range(50)),
    )
    plan = make_plan(big)
    assert plan.naive["finetune"] == 10_000
    # ratio 0 once; 2 agnostic methods x 9 ratios; 2 target-aware ones x 9 ratios x 5 targets
    assert plan.unique()["pretrain"] == 50 * (1 + 2 * 9 + 2 * 9 * 5)


def test_inputs_come_before_their_users_and_the_longest_path_first() -> None:
    plan = make_plan(study(pruning_ratios=[0.0, 0.5]))
    place = {key: index for index, key in enumerate(plan.steps)}
    for key, step in plan.steps.items():
        assert all(place[used] < place[key] for used in step.inputs.values())
        assert all(plan.priority[used] > plan.priority[key] for used in step.inputs.values())


CHANGES: list[tuple[dict[str, Any], set[Stage]]] = [
    # what is changed -> stages whose steps become other steps
    ({"runtime": {"lanes": 3, "max_failures": 9}}, set()),
    ({"tracking": {"wandb": {"mode": "offline"}}}, set()),
    ({"name": "other"}, set()),
    ({"report": {"margin": 0.02}}, set()),
    ({"transfers": ["full_finetune"]}, {"finetune"}),
    ({"transfers": [{"transfer": "linear_probe", "l2": [1.0]}]}, {"finetune"}),
    (
        {"pretraining": [{"objective": "supervised", "label_smoothing": 0.1}]},
        {"pretrain", "finetune"},
    ),
    (
        {"pretraining": [{"objective": "supervised", "head": "source"}]},
        {"pretrain", "finetune"},
    ),
    ({"pruning_ratios": [0.6]}, {"prune", "pretrain", "finetune"}),
    (
        {"methods": [{"method": "label_mapping", "select": "whole_units"}]},
        {"prune", "pretrain", "finetune"},
    ),
    (
        {"methods": [{"method": "label_mapping", "keep": "lowest"}]},
        {"score", "prune", "pretrain", "finetune"},
    ),
    (
        {"targets": [{"dataset": "held_out_letters", "shots": 4}]},
        {"embed", "score", "prune", "pretrain", "finetune"},
    ),
    (
        {"surrogate": {"objective": "supervised", "budget": {"epochs": 3}}},
        {"surrogate", "embed", "score", "prune", "pretrain", "finetune"},
    ),
    ({"seeds": [1]}, {"surrogate", "embed", "score", "prune", "pretrain", "finetune"}),
    ({"surrogate_seed": 0}, set()),  # seed 0 pinned is the surrogate of seed 0
    (
        {"source": {"dataset": "glyphs_and_textures", "images_per_class": 7}},
        {"data", "surrogate", "embed", "score", "prune", "pretrain", "finetune"},
    ),
]


@pytest.mark.parametrize(("change", "changed"), CHANGES, ids=range(len(CHANGES)))
def test_a_change_touches_exactly_the_stages_that_it_could_matter_to(
    change: dict[str, Any], changed: set[Stage]
) -> None:
    before, after = make_plan(study()), make_plan(study(**change))
    differ = {s for s in plan_stages(before) if stages(before, s) != stages(after, s)}
    assert differ == changed


def plan_stages(plan: Plan) -> set[Stage]:
    return {step.stage for step in plan.steps.values()}


def test_a_pinned_surrogate_is_shared_by_all_seeds() -> None:
    assert make_plan(study(seeds=[0, 1, 2])).unique()["surrogate"] == 3
    pinned = make_plan(study(seeds=[0, 1, 2], surrogate_seed=0))
    assert pinned.unique()["surrogate"] == 1
    assert pinned.unique()["embed"] == 3  # the target draw still varies


def test_the_controls_stand_once_per_target_seed_and_network() -> None:
    plan = make_plan(
        study(
            pretraining=[
                {"objective": "supervised", "network": {"arch": "resnet9", "width": w}}
                for w in (4, 8)
            ]
            + ["none", "raw_pixels"],
            methods=AGNOSTIC + AWARE,
            pruning_ratios=[0.0, 0.5],
            transfers=["linear_probe", "full_finetune"],
            seeds=[0, 1],
        )
    )
    floors = [c for c in plan.cells if c.pretraining.objective == "none"]
    pixels = [c for c in plan.cells if c.pretraining.objective == "raw_pixels"]
    assert len(floors) == 2 * 2 * 2  # networks x transfers x seeds
    assert len(pixels) == 2  # seeds; pixels have nothing to finetune
    assert all(c.method is None and c.pruning_ratio == 0 for c in floors + pixels)


def test_the_content_of_a_folder_is_part_of_the_identity() -> None:
    folder = {"dataset": "image_folder", "path": "x", "image_size": 16, "channels": 1}
    a = make_plan(study(source=folder), lambda thing, role="source": "a")
    b = make_plan(study(source=folder), lambda thing, role="source": "b")
    assert not stages(a, "finetune") & stages(b, "finetune")


MOCO = {"objective": "moco_v2", "queue_size": 256, "batch_size": 128}


def test_the_name_of_a_surrogate_is_no_part_of_what_it_gives() -> None:
    named = study(
        surrogates={"same": "supervised", "moco": MOCO},
        methods=[
            "label_mapping",
            {"method": "label_mapping", "surrogate": "same"},
            {"method": "feature_mapping", "surrogate": "moco"},
        ],
    )
    plan = make_plan(named)
    assert plan.unique()["surrogate"] == 2
    assert plan.unique()["score"] == plan.unique()["prune"] == 2
    alone = make_plan(study())
    assert stages(alone, "prune") < stages(plan, "prune")
    assert {step.name for step in plan.steps.values() if step.stage == "surrogate"} == {
        "supervised-resnet9-s0",
        "moco_v2-resnet9-s0",
    }


def test_a_surrogate_without_labels_records_no_learning_of_labels() -> None:
    both = study(
        surrogates={"moco": MOCO},
        methods=["forgetting", {"method": "feature_mapping", "surrogate": "moco"}],
    )
    specs = [s.spec for s in make_plan(both).steps.values() if isinstance(s.spec, SurrogateStep)]
    recorded = {spec.surrogate.objective: spec.record for spec in specs}
    assert recorded == {"supervised": "dynamics", "moco_v2": "nothing"}


def test_weights_from_elsewhere_are_read_once_and_nothing_is_pruned_for_them() -> None:
    weights = {"objective": "pretrained", "network": "resnet18", "weights": "w.safetensors"}
    plan = make_plan(
        study(
            surrogate=weights,
            methods=["feature_mapping"],
            pretraining=["supervised", weights],
            pruning_ratios=[0.0, 0.5],
            seeds=[0, 1, 2],
        )
    )
    assert plan.unique()["surrogate"] == 1
    assert plan.unique()["embed"] == 1 + 3  # the source once, a draw of the target per seed
    assert plan.unique()["pretrain"] == 3 * 2 + 1
    assert {c.pruning_ratio for c in plan.cells if c.pretraining.objective == "pretrained"} == {0.0}


def test_relative_paths_start_at_the_data_root() -> None:
    def paths(root: str) -> list[str]:
        folders = [
            {"dataset": "image_folder", "path": path, "image_size": 16, "channels": 1}
            for path in ("source", "/target")
        ]
        plan = make_plan(study(data_root=root, source=folders[0], targets=folders[1:]))
        specs = [step.spec for step in plan.steps.values() if isinstance(step.spec, DataStep)]
        return [s.dataset.path for s in specs if isinstance(s.dataset, ImageFolder)]

    assert paths("") == ["source", "/target"]
    assert paths("/data") == ["/data/source", "/target"]


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = CoOp(path="~/split.json", images="~/images", exclude="ids.txt")
    found = located(given, "~/data")
    assert (found.path, found.images) == ("/home/me/split.json", "/home/me/images")
    assert found.exclude == "/home/me/data/ids.txt"
    assert located(HuggingFace(path="hub:~me/pets"), "~/data").path == "hub:~me/pets"


def test_another_surrogates_method_retrains_no_surrogate() -> None:
    def of(methods: list[Any]) -> set[str]:
        two = {"a": "supervised", "b": {"objective": "supervised", "batch_size": 512}}
        return set(make_plan(study(surrogates=two, methods=methods)).steps)

    label_mapping = {"method": "label_mapping", "surrogate": "a"}
    assert of([label_mapping]) < of([label_mapping, {"method": "forgetting", "surrogate": "b"}])
