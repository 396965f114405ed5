"""Transfers: what is frozen, what is chosen, what is reported; every protocol by hand on one
pretraining."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from dp4tl_ray.algorithms.linear_probe import solve_probe
from dp4tl_ray.data.draws import draw_target
from dp4tl_ray.plan import Plan
from dp4tl_ray.specs.steps import FinetuneStep
from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.specs.transfer import PAPER_OPTIMIZERS
from dp4tl_ray.stages.bench import Job, Metrics, images_of
from dp4tl_ray.stages.finetune import _transfer, run_finetune
from dp4tl_ray.stages.transfers import asis, frozen, full
from dp4tl_ray.stages.transfers.task import Task
from dp4tl_ray.store import Artifact, Store, Workbench, open_store
from dp4tl_ray.sweep import Outcome, plan_study, run_study
from dp4tl_ray.training.batch_norm import GroupedBatchNorm
from dp4tl_ray.training.examples import to_pixels
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.worker import Worker
from tests.conftest import folder, supervised, tiny_study

EPOCHS = 9
FULL = {
    "transfer": "full_finetune",
    "epochs": EPOCHS,
    "batch_size": 9,
    "lrs": [1e9, 1e-6, 0.02],
    "weight_decays": [5.0, 5e-4],
}
ONE_PAIR = {"lrs": [0.02], "weight_decays": [5e-4]}
TRANSFERS = ["linear_probe", "knn", {"transfer": "dp4tl_asis", "epochs": 3}]
ON_FEATURES: list[dict[str, Any]] = [
    {"transfer": "linear_probe"},
    {"transfer": "linear_probe", "refit_on_val": True},
    {"transfer": "linear_probe", "solver": "adam"},
    {"transfer": "knn"},
    {"transfer": "dp4tl_asis", "epochs": 2},
]


@dataclass(frozen=True)
class World:
    """A network pretrained on the full source, an untrained one, and none."""

    plan: Plan
    store: Store
    outcome: Outcome

    def inputs(self, pretraining: str = "supervised") -> dict[str, Artifact]:
        """What a transfer of that pretraining reads."""
        cells = (c for c in self.plan.cells if c.pretraining.objective == pretraining)
        step = self.plan.steps[next(cells).steps["finetune"]]
        found = {role: self.store.find(self.plan.steps[key]) for role, key in step.inputs.items()}
        return {role: artifact for role, artifact in found.items() if artifact is not None}


@pytest.fixture(scope="module")
def world(pictures: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> World:
    study = tiny_study(
        pictures,
        methods=["random_classes"],
        pruning_ratios=[0.0, 0.5],
        pretraining=[supervised(), "none", "raw_pixels"],
        targets=[folder(pictures["target"])],
        transfers=TRANSFERS,
    )
    plan, store = plan_study(study), open_store(str(tmp_path_factory.mktemp("world")))
    outcome = run_study(study, plan, store, local=True)
    assert not outcome.errors
    return World(plan, store, outcome)


@dataclass(frozen=True)
class Done:
    metrics: Metrics
    folder: Path

    def predictions(self) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = np.load(self.folder / "test_predictions.npy")
        return found


def transfer(
    inputs: Mapping[str, Artifact], root: Path, spec: Mapping[str, Any], **changes: Any
) -> Done:
    step = FinetuneStep.model_validate({"shots": None, "seed": 0, "transfer": spec, **changes})
    bench = Workbench(root)
    root.mkdir(exist_ok=True)
    return Done(run_finetune(step, Job(inputs, bench, Worker())), root)


@pytest.fixture
def run(world: World, tmp_path: Path) -> Callable[..., Done]:
    """Transfer the pretrained network."""

    def go(spec: Mapping[str, Any], pretraining: str = "supervised", **changes: Any) -> Done:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        return transfer(world.inputs(pretraining), root, spec, **changes)

    return go


def task_of(world: World) -> Task:
    job = Job(world.inputs(), Workbench(Path("unused")), Worker())
    target = job.inputs["target"]
    labels = np.asarray(target.array("labels"))
    draw = draw_target(labels, np.asarray(target.array("splits")), None, seed=0)
    return Task(job, 0, images_of(target), labels, draw, 3)


def saved(world: World) -> dict[str, torch.Tensor]:
    return load_file(world.inputs()["pretrain"].file("network.safetensors"))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Classifier]:
    """The networks that transfers load from now on."""
    loaded: list[Classifier] = []
    load = Task.network

    def network(task: Task, group_size: int) -> Classifier:
        loaded.append(load(task, group_size))
        return loaded[-1]

    monkeypatch.setattr(Task, "network", network)
    return loaded


# -- frozen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ON_FEATURES)
def test_a_transfer_on_features_leaves_every_bit_of_the_network(
    world: World, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any]
) -> None:
    loaded = watched(monkeypatch)
    assert float(run(spec).metrics["accuracy"] or 0) > 0.5
    (model,) = loaded
    before, after = saved(world), model.state_dict()
    assert before.keys() == after.keys() and len(before) > 20
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_batch_norm_that_adapts_takes_statistics_of_the_target_and_no_weight_moves(
    world: World, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "ADAPT_BATCH", 7)  # 54 images: six batches of 7 and two of 6
    loaded = watched(monkeypatch)
    run({"transfer": "linear_probe", "batch_norm": "adapt"})
    (model,) = loaded
    task, before = task_of(world), saved(world)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(before[name], parameters[name]) for name in parameters)
    # what reaches the first norm depends on no other norm
    norms = [module for module in model.modules() if isinstance(module, GroupedBatchNorm)]
    reached: list[torch.Tensor] = []
    norms[0].register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
    model.features(to_pixels(task.images[task.draw.train], torch.device("cpu")))
    mean, var = reached[0].mean(dim=(0, 2, 3)), reached[0].var(dim=(0, 2, 3))
    torch.testing.assert_close(norms[0].running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[0].running_var, var, rtol=0.05, atol=0)
    assert len(norms) > 5
    for name, tensor in model.named_buffers():
        if name.endswith("running_var"):
            assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("spec", [ON_FEATURES[0], ON_FEATURES[2], ON_FEATURES[3]])
def test_pixels_are_features_too(run: Callable[..., Done], spec: dict[str, Any]) -> None:
    assert float(run(spec, "raw_pixels").metrics["val_accuracy"] or 0) > 1 / 3


@pytest.mark.parametrize("solver", ["lbfgs", "adam"])
def test_refitting_adds_the_validation_images_after_the_choice(
    world: World, run: Callable[..., Done], solver: str
) -> None:
    spec = {"transfer": "linear_probe", "solver": solver}
    plain, refit = run(spec), run({**spec, "refit_on_val": True})
    for name in ("l2", "val_accuracy"):
        assert plain.metrics.get(name) == refit.metrics.get(name)
    task = task_of(world)
    features = frozen.frozen_features(task, adapt=False)
    x, y = features.train_and_val
    assert len(x) == len(task.draw.train) + len(task.draw.val)
    if solver == "lbfgs":
        probe = solve_probe(x, y, 3, float(plain.metrics["l2"] or 0))
        assert np.array_equal(refit.predictions(), probe.predict(features.test))
    else:
        *_, last = frozen.adam_probe_epochs(task, (x, y), 50)
        assert np.array_equal(refit.predictions(), last.predict(features.test))
        assert "l2" not in plain.metrics


def test_fewer_train_images_than_neighbours(run: Callable[..., Done]) -> None:
    done = run({"transfer": "knn", "ks": [200]}, shots=2)
    assert done.metrics["k"] == 6


# -- all weights -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halved(world: World, tmp_path_factory: pytest.TempPathFactory) -> Done:
    root = tmp_path_factory.mktemp("halved")
    return transfer(world.inputs(), root, {**FULL, "search": "halving"})


def test_halving_finds_the_pair_that_learns_in_fewer_epochs(halved: Done) -> None:
    assert (halved.metrics["lr"], halved.metrics["weight_decay"]) == (0.02, 5e-4)
    # 6 pairs, of which 2 diverge; of the other 4 go on 2; of these 1
    assert halved.metrics["transfer_epochs"] == 6 * 1 + 2 * 2 + 1 * 6


def test_the_survivor_is_what_the_grid_would_have_trained(
    run: Callable[..., Done], halved: Done
) -> None:
    alone = run({**FULL, **ONE_PAIR})
    assert alone.metrics["transfer_epochs"] == EPOCHS
    for name in ("val_accuracy", "accuracy"):
        assert alone.metrics[name] == halved.metrics[name]
    assert np.array_equal(alone.predictions(), halved.predictions())


def test_halving_gives_the_same_result_twice(run: Callable[..., Done], halved: Done) -> None:
    again = run({**FULL, "search": "halving"})
    assert again.metrics == halved.metrics
    assert np.array_equal(again.predictions(), halved.predictions())


def test_ties_go_to_the_smaller_rate_and_then_the_smaller_decay(run: Callable[..., Done]) -> None:
    # none of these moves the network: all four see the same accuracy
    still = run({**FULL, "lrs": [2e-9, 1e-9], "weight_decays": [1e-3, 1e-4], "epochs": 1})
    assert (still.metrics["lr"], still.metrics["weight_decay"]) == (1e-9, 1e-4)


def test_finetuning_from_scratch_is_a_control_that_learns(
    world: World, run: Callable[..., Done]
) -> None:
    assert world.inputs("none")["pretrain"].manifest.metrics["optimizer_steps"] == 0
    scratch = run({**FULL, **ONE_PAIR, "epochs": 15}, "none")
    assert float(scratch.metrics["accuracy"] or 0) > 0.6


def test_adam_learns_at_its_own_rates(run: Callable[..., Done]) -> None:
    spec = {**FULL, "optimizer": "adam", "lrs": [3e-3], "weight_decays": [0.0]}
    assert float(run(spec).metrics["accuracy"] or 0) > 0.6


@dataclass
class Asked:
    """What `fit` was asked for: the network as it was given, and the recipe."""

    state: dict[str, torch.Tensor]
    recipe: Recipe


def untrained(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Let no transfer train any weight, and return what each would have trained."""
    asked: list[Asked] = []

    def fit(model: Classifier, examples: object, recipe: Recipe, *_: object) -> None:
        asked.append(Asked({n: t.clone() for n, t in model.state_dict().items()}, recipe))

    monkeypatch.setattr(full, "fit", fit)
    return asked


def test_the_backbone_is_the_pretrained_one_and_the_head_is_new(
    world: World, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, before = untrained(monkeypatch), saved(world)
    for seed in (0, 0, 1):
        run({**FULL, **ONE_PAIR}, seed=seed)
    for one in asked:
        for name, tensor in one.state.items():
            assert name.startswith("head.") or torch.equal(tensor, before[name]), name
    heads = [one.state["head.weight"] for one in asked]
    assert [len(head) for head in heads] == [3, 3, 3] != [len(before["head.weight"])] * 3
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


# -- averages over mirror images -------------------------------------------------------------------


def both_ways(
    extract: Callable[[torch.Tensor], torch.Tensor], task: Task, rows: npt.NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a function of pixels gives for images, and for their mirror images."""
    images = np.asarray(task.images[rows])
    mirrored = np.stack([np.fliplr(image) for image in images])
    with torch.no_grad():
        one, other = (extract(to_pixels(x, torch.device("cpu"))) for x in (images, mirrored))
    return one, other


def test_a_finetuned_network_sees_test_images_both_ways(
    world: World, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = watched(monkeypatch)
    spec = {**FULL, **ONE_PAIR, "lrs": [0.02], "epochs": 1}  # which errs
    plain, flipped = run(spec), run({**spec, "tta": "flip"})
    one, other = loaded
    assert all(torch.equal(one.state_dict()[n], t) for n, t in other.state_dict().items())
    task = task_of(world)
    means = [sum(both_ways(one.eval(), task, r)) / 2 for r in (task.draw.val, task.draw.test)]
    val, test = (torch.as_tensor(mean).argmax(dim=1).numpy() for mean in means)
    assert flipped.metrics["val_accuracy"] == float((val == task.labels[task.draw.val]).mean())
    assert np.array_equal(flipped.predictions(), test)
    assert not np.array_equal(flipped.predictions(), plain.predictions())  # or nothing is tested


@pytest.mark.parametrize("pretraining", ["supervised", "raw_pixels"])
def test_a_probe_sees_validation_and_test_images_both_ways(
    world: World, run: Callable[..., Done], pretraining: str
) -> None:
    spec = {"transfer": "linear_probe", "l2": [1e-3]}
    done, plain = run({**spec, "tta": "flip"}, pretraining), run(spec, pretraining)
    task = task_of(world)
    draw = task.draw
    network = task.network(1).eval().features
    extract = network if pretraining == "supervised" else lambda x: x.permute(0, 2, 3, 1).flatten(1)
    x, _ = both_ways(extract, task, draw.train)
    probe = solve_probe(x, torch.from_numpy(task.labels[draw.train]), 3, 1e-3)

    def predict(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        one, other = (probe.logits(h) for h in both_ways(extract, task, rows))
        predicted: npt.NDArray[np.int64] = ((one + other) / 2).argmax(dim=1).numpy()
        return predicted

    assert np.array_equal(done.predictions(), predict(draw.test))
    expected = float((predict(draw.val) == task.labels[draw.val]).mean())
    assert done.metrics["val_accuracy"] == expected
    assert not np.array_equal(done.predictions(), plain.predictions())  # or nothing is tested


@pytest.mark.parametrize(
    "spec", [{"transfer": "linear_probe"}, {**FULL, **ONE_PAIR, "epochs": 1}], ids=["probe", "full"]
)
@pytest.mark.parametrize("pretraining", ["supervised", "raw_pixels"])
def test_what_is_attacked_is_what_is_tested(
    world: World, spec: dict[str, Any], pretraining: str
) -> None:
    if pretraining == "raw_pixels" and spec["transfer"] == "full_finetune":
        return
    task = task_of(world)
    inputs = world.inputs(pretraining)
    task = replace(task, job=replace(task.job, inputs=inputs))
    step = FinetuneStep.model_validate(
        {"shots": None, "seed": 0, "transfer": {**spec, "tta": "flip"}}
    )
    outcome = _transfer(step.transfer, task)
    assert outcome.logits is not None
    one, other = both_ways(outcome.logits, task, task.draw.test)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert np.array_equal(one.argmax(dim=1).numpy(), outcome.predicted)


# -- as the paper's code finetunes -----------------------------------------------------------------

PAPERS = [{"transfer": "dp4tl_full_finetune"}, {"transfer": "dp4tl_asis", "mode": "full_finetune"}]


@pytest.mark.parametrize("spec", PAPERS, ids=lambda spec: spec["transfer"])
@pytest.mark.parametrize(
    ("optimizer", "name", "lr", "weight_decay"),
    [("adam", "adamw", 1e-4, 0.0), ("sgd", "sgd", 0.1, 5e-4), ("by_target", "sgd", 0.1, 5e-4)],
)
def test_presets_of_the_papers_code(
    run: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    spec: dict[str, Any],
    optimizer: str,
    name: str,
    lr: float,
    weight_decay: float,
) -> None:
    asked = untrained(monkeypatch)
    monkeypatch.setitem(PAPER_OPTIMIZERS, "image_folder", "sgd")
    run({**spec, "optimizer": optimizer})
    (recipe,) = (one.recipe for one in asked)
    found = recipe.optimizer
    assert (found.name, found.lr, found.weight_decay) == (name, lr, weight_decay)
    assert found.momentum == 0.9 and recipe.budget.epochs == 200 and recipe.batch_size == 54
    assert recipe.augmentation.flip and recipe.augmentation.crop == 0.08
    assert (recipe.schedule.name, recipe.schedule.warmup) == ("cosine", 0)


# -- the paper's code as it is ---------------------------------------------------------------------


def seen_epochs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """The test predictions that dp4tl_asis looks at from now on, with their epochs."""
    seen: list[tuple[int, npt.NDArray[np.int64]]] = []
    see = asis._Best.see

    def spy(best: asis._Best, epoch: int, predicted: npt.NDArray[np.int64]) -> None:
        seen.append((epoch, predicted))
        see(best, epoch, predicted)

    monkeypatch.setattr(asis._Best, "see", spy)
    return seen


@pytest.mark.parametrize("mode", ["linear_probe", "full_finetune"])
def test_as_is_reports_the_first_best_epoch_on_the_test_split(
    world: World, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    seen = seen_epochs(monkeypatch)
    done = run({"transfer": "dp4tl_asis", "mode": mode, "epochs": 4})
    task = task_of(world)
    truth = task.labels[task.draw.test]
    right = {epoch: float((predicted == truth).mean()) for epoch, predicted in seen}
    assert list(right) == [1, 2, 3, 4]
    best = min(epoch for epoch in right if right[epoch] == max(right.values()))
    assert (done.metrics["epoch"], done.metrics["accuracy"]) == (best, right[best])
    assert np.array_equal(done.predictions(), dict(seen)[best])
    assert "val_accuracy" not in done.metrics


def test_looking_at_the_test_split_changes_nothing_in_the_training(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_epochs(monkeypatch)
    run({"transfer": "dp4tl_asis", "mode": "full_finetune", "optimizer": "sgd", "epochs": 3})
    last = run(
        {
            "transfer": "full_finetune",
            "lrs": [0.1],
            "epochs": 3,
            "batch_size": 128,
            "augmentation": {"flip": True, "crop": 0.08},
        }
    )
    assert np.array_equal(seen[-1][1], last.predictions())
    papers = run({"transfer": "dp4tl_full_finetune", "optimizer": "sgd", "epochs": 3})
    assert np.array_equal(papers.predictions(), last.predictions())
    chosen = ("lr", "weight_decay", "val_accuracy", "transfer_epochs")
    assert [papers.metrics[name] for name in chosen] == [last.metrics[name] for name in chosen]


# -- all protocols ---------------------------------------------------------------------------------


def with_gaps(target: Artifact, root: Path) -> Artifact:
    """The same pictures under the classes 0, 2 and 4 of six."""
    root.mkdir()
    for name in target.manifest.files:
        shutil.copy(target.file(name), root / name)
    np.save(root / "labels.npy", np.asarray(target.array("labels")) * 2)
    (root / "class_names.json").write_text(json.dumps(list("abcdef")))
    return replace(target, locate=lambda name: root / name)


@pytest.mark.parametrize(
    "spec", [*ON_FEATURES, {**FULL, **ONE_PAIR}, {**ON_FEATURES[4], "mode": "full_finetune"}]
)
def test_classes_without_images_are_outputs_that_are_not_predicted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any]
) -> None:
    loaded = watched(monkeypatch)
    inputs = world.inputs()
    inputs["target"] = with_gaps(inputs["target"], tmp_path / "target")
    done = transfer(inputs, tmp_path / "done", spec)
    truth = np.load(tmp_path / "done" / "test_labels.npy")
    assert set(truth.tolist()) == {0, 2, 4}
    if spec["transfer"] == "full_finetune":
        assert loaded[0].state_dict()["head.bias"].shape == (6,)
    if spec["transfer"] != "dp4tl_asis":  # which trains for two epochs here
        assert set(done.predictions().tolist()) <= {0, 2, 4}
        assert float(done.metrics["accuracy"] or 0) > 0.5


def test_every_cell_has_the_same_choice_of_hyperparameters(world: World) -> None:
    specs: dict[str, set[str]] = {}
    kinds = set()
    for cell in world.plan.cells:
        step = world.plan.steps[cell.steps["finetune"]].spec
        assert isinstance(step, FinetuneStep)
        specs.setdefault(cell.transfer.transfer, set()).add(step.transfer.model_dump_json())
        kinds.add((cell.pretraining.objective, cell.pruning_ratio))
    assert kinds >= {("supervised", 0.0), ("supervised", 0.5), ("none", 0.0), ("raw_pixels", 0.0)}
    assert len(specs) == 3 and all(len(same) == 1 for same in specs.values())


def test_results_name_what_was_chosen(world: World) -> None:
    names = {"linear_probe": {"l2"}, "knn": {"k"}, "dp4tl_asis": {"lr", "weight_decay", "epoch"}}
    for result in world.outcome.results:
        chosen = result.transfer_hyperparameters.model_dump(exclude_none=True)
        name = result.transfer.partition("(")[0]
        assert chosen.keys() == names.pop(name, chosen.keys()), result.transfer
        assert (result.val_accuracy is None) == (name == "dp4tl_asis")
    assert not names
