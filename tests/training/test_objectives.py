"""Two views of each image: what every self-supervised objective must do, and what each one is."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from dp4tl_ray.algorithms.collapse import collapse_alarm
from dp4tl_ray.algorithms.knn_classifier import knn_predict
from dp4tl_ray.data.embedded import glyphs_and_textures, held_out_textures
from dp4tl_ray.data.images import LabeledImages
from dp4tl_ray.specs.network import SmallResNet, SmallVisionTransformer
from dp4tl_ray.specs.self_supervised import AnySelfSupervised, MoCoV2
from dp4tl_ray.specs.training import Augmentation
from dp4tl_ray.training.augment import augment, draw_changes
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.examples import Examples, batches, floats
from dp4tl_ray.training.fit import Halted, fit
from dp4tl_ray.training.inference import infer
from dp4tl_ray.training.networks import Classifier, build_classifier
from dp4tl_ray.training.objectives.learner import Follower, Learner
from dp4tl_ray.training.objectives.learners import build_learner
from dp4tl_ray.training.objectives.moco_v2 import MoCoV2Learner
from dp4tl_ray.training.objectives.two_views import TwoViewObjective
from dp4tl_ray.training.parallel import Parallel
from dp4tl_ray.training.worker import Progress, Worker, seed_for
from tests.training import test_fit
from tests.training.test_fit import equal, weights

OBJECTIVES: dict[str, dict[str, Any]] = {
    "moco_v2": {"queue_size": 28, "momentum": 0.9},
    "moco_v2 symmetric": {"queue_size": 44, "momentum": 0.9, "symmetric": True},
    "moco_v3": {"hidden": 12, "momentum": 0.5, "optimizer": {"name": "lars", "lr": 1.0}},
    "simclr": {},
    "simsiam": {"hidden": 12, "bottleneck": 4},
    "byol": {"hidden": 12, "momentum": 0.5},
    "vicreg": {"hidden": 12, "optimizer": {"lr": 0.005}},
}
NO_CHANGES = Augmentation().model_dump()
EACH = pytest.mark.parametrize("name", OBJECTIVES)


def recipe(name: str, **changes: Any) -> AnySelfSupervised:
    """A small recipe of one of OBJECTIVES."""
    view = {**NO_CHANGES, "shift": 1, "flip": True, "crop": 0.7, "contrast": 0.4}
    spec = {
        "objective": name.split()[0],
        "budget": {"epochs": 4},
        "batch_size": 8,
        "optimizer": {"lr": 0.05},
        "batch_norm": {"group_size": 4},
        "augmentation": view,
        "second_augmentation": {**view, "solarize": 0.3},
        "dim": 8,
        **OBJECTIVES[name],
        **changes,
    }
    return TypeAdapter[AnySelfSupervised](AnySelfSupervised).validate_python(spec)


def examples(n: int = 60) -> Examples:
    """Pictures without labels."""
    labelled = test_fit.examples(n)
    return Examples(labelled.images, labelled.rows)


def network(seed: int = 0, group_size: int = 4, vit: bool = False) -> Classifier:
    small_vit = SmallVisionTransformer(patch_size=4, width=12, depth=2, num_heads=2)
    return build_classifier(
        small_vit if vit else SmallResNet(width=4),
        num_classes=0,
        image_size=16,
        statistics=np.array([[0.5], [0.25]], np.float32),
        group_size=group_size,
        seed=seed,
    )


def first_batch(spec: AnySelfSupervised) -> np.ndarray[Any, np.dtype[np.int64]]:
    return next(batches(60, spec.batch_size, 0, 0))


def gradients(spec: AnySelfSupervised, worker: Worker, vit: bool = False) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the first batch."""
    objective = TwoViewObjective(network(vit=vit), examples(), spec, 0, worker, total=10)
    parallel = Parallel(objective.module, worker)
    parallel.model.train()
    loss = objective.backward(parallel, objective.gather(0, first_batch(spec)), 0)
    found = [p.grad for p in parallel.model.parameters() if p.requires_grad]
    return loss, torch.cat([g.flatten() for g in found if g is not None])


def at_once(spec: AnySelfSupervised, vit: bool = False) -> tuple[Tensor, Tensor]:
    """The same in one graph, straight from what the objective is defined to be."""
    learner = build_learner(network(vit=vit), spec, 0)
    learner.to(memory_format=torch.channels_last)
    learner.train()
    learner.advance(0, 10)
    pixels = floats(torch.from_numpy(examples().images[first_batch(spec)]))
    views = []
    for name, view in (
        ("first view", spec.augmentation),
        ("second view", spec.second_augmentation),
    ):
        assert view is not None
        rng = np.random.default_rng(seed_for(0, name, 0))
        views.append(augment(pixels.clone(), view, draw_changes(view, spec.batch_size, rng)))
    order = np.arange(spec.batch_size)
    if learner.shuffles:
        order = np.random.default_rng(seed_for(0, "keys", 0)).permutation(spec.batch_size)
    queries, keys = learner(*views, *(view[order] for view in views))
    back = np.argsort(order)
    loss = learner.loss(queries, [key[back] for key in keys])
    moved = [p for p in learner.parameters() if p.requires_grad]
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, moved)])


@EACH
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shares_give_the_loss_and_gradient_of_the_whole_batch(name: str, shards: int) -> None:
    spec = recipe(name, batch_size=20)  # five groups: two shares or three are uneven
    loss, gradient = gradients(spec, Worker(shards=shards))
    expected_loss, expected = at_once(spec)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * float(expected.norm()))


@EACH
def test_a_training_without_labels_lowers_its_loss_and_repeats_itself(name: str) -> None:
    images = glyphs_and_textures(16, images_per_class=1, seed=0).images[:64]
    data = Examples(images, np.arange(64))
    losses: list[float] = []

    def note(progress: Progress) -> bool:
        losses.append(float(progress["loss"]))
        return True

    spec, model, again = recipe(name, budget={"epochs": 12}), network(), network()
    fit(model, data, spec, 0, Worker(report=note))
    fit(again, data, spec, 0, Worker())
    assert equal(weights(model), weights(again))
    if "moco_v2" not in name:  # whose loss grows first: noise in the queue is told from any key
        assert np.mean(losses[-3:]) < losses[0]


@EACH
def test_a_resumed_training_equals_one_that_was_not_halted(name: str, tmp_path: Path) -> None:
    spec, straight, resumed = recipe(name, ema=0.3), network(), network(seed=5)
    fit(straight, examples(), spec, 0, Worker())

    def die(progress: Progress) -> bool:
        if progress["epoch"] == 3:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        fit(network(), examples(), spec, 0, Worker(report=die), Checkpoint(tmp_path))
    summary = fit(resumed, examples(), spec, 0, Worker(), Checkpoint(tmp_path))
    assert summary.seconds_before > 0
    assert equal(weights(straight), weights(resumed))


def test_the_checkpoint_holds_queue_pointer_and_key_encoder(tmp_path: Path) -> None:
    spec = recipe("moco_v2")
    with pytest.raises(Halted):
        fit(network(), examples(), spec, 0, Worker(report=lambda p: False), Checkpoint(tmp_path))
    saved = Checkpoint(tmp_path).newest()
    assert saved is not None
    step = saved.facts["step"]
    assert int(saved.read("model.pointer")) == step * 8 % 28
    queue = saved.read("model.queue_KD")
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(28))
    names = saved.names("model.follower.network.")
    assert names
    followed = [saved.read(n) for n in names if n.endswith("weight")]
    moved = [saved.read(n.replace("follower.", "")) for n in names if n.endswith("weight")]
    assert any(not torch.equal(a, b) for a, b in zip(followed, moved, strict=True))


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n.startswith(("moco", "byol"))])
def test_no_gradient_reaches_the_follower(name: str) -> None:
    spec = recipe(name)
    objective = TwoViewObjective(network(), examples(), spec, 0, Worker(), total=10)
    parallel = Parallel(objective.module, Worker())
    parallel.model.train()
    before = weights(cast(Any, objective.module).follower)
    objective.backward(parallel, objective.gather(0, first_batch(spec)), 0)
    follower = cast(Any, objective.module).follower
    assert all(p.grad is None and not p.requires_grad for p in follower.parameters())
    # nothing but its batch statistics has moved: at the first step it is a copy
    assert all(torch.equal(before[n], p) for n, p in follower.named_parameters())


def test_a_follower_is_the_average_without_the_bias_to_its_start() -> None:
    model, projector = network(), nn.Linear(3, 2)
    follower = Follower(model, projector, lambda progress: 0.9)
    seen: list[Tensor] = []
    for step in range(6):
        with torch.no_grad():
            projector.weight += step + 1.0
        seen.append(projector.weight.detach().clone())
        follower.follow((model, projector), step, 10)
        shares = torch.tensor([0.1 * 0.9 ** (step - n) for n in range(step + 1)])
        expected = torch.einsum("n,nij->ij", shares / shares.sum(), torch.stack(seen))
        torch.testing.assert_close(cast(nn.Linear, follower.projector).weight.detach(), expected)


def test_a_follower_goes_on_where_a_resumed_training_does() -> None:
    model = network()
    head = nn.Linear(3, 2)
    straight, resumed = (Follower(model, head, lambda p: 0.9 + 0.1 * p) for _ in range(2))
    for step in range(5):
        with torch.no_grad():
            head.weight += 1.0
        straight.follow((model, head), step, 8)
        if step == 3:
            resumed.load_state_dict(straight.state_dict())
    resumed.follow((model, head), 4, 8)
    assert equal(straight.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("vit", [False, True])
def test_shuffling_keys_changes_batch_statistics_and_nothing_else(vit: bool) -> None:
    class Unshuffled(MoCoV2Learner):
        shuffles = False

    def loss(kind: Callable[..., Learner]) -> Tensor:
        spec = recipe("moco_v2", batch_size=20, queue_size=40)
        assert isinstance(spec, MoCoV2)
        objective = TwoViewObjective(network(vit=vit), examples(), spec, 0, Worker(), total=10)
        objective.shuffles = kind.shuffles  # type: ignore[attr-defined]
        parallel = Parallel(objective.module, Worker())
        parallel.model.train()
        return objective.backward(parallel, objective.gather(0, first_batch(spec)), 0)

    same = torch.allclose(loss(MoCoV2Learner), loss(Unshuffled), rtol=1e-5)
    assert same == vit  # a transformer has no batch statistics


def test_moco_v3_freezes_the_patches_of_a_transformer_alone() -> None:
    frozen, free, resnet = (
        sum(not p.requires_grad for p in build_learner(model, spec, 0).network.parameters())
        for model, spec in (
            (network(vit=True), recipe("moco_v3")),
            (network(vit=True), recipe("moco_v3", freeze_patches=False)),
            (network(), recipe("moco_v3")),
        )
    )
    assert (frozen, free, resnet) == (2, 0, 0)


def test_every_example_meets_other_views_in_every_epoch_and_the_same_in_a_rerun() -> None:
    spec = recipe("simclr")
    objective = TwoViewObjective(network(), examples(), spec, 0, Worker(), total=30)

    def view(step: int) -> Tensor:
        positions = next(islice(batches(60, 8, 0, step), 1))
        [share] = objective.gather(step, positions).shares
        first, second = objective._two_views(share.queries)
        assert not torch.equal(first, second)
        return first

    assert torch.equal(view(0), view(0))
    assert not torch.equal(view(0), view(8))


def learned(source: LabeledImages, momentum: float) -> tuple[Classifier, str]:
    view = {**NO_CHANGES, "crop": 0.5, "contrast": 0.4, "brightness": 0.4}
    spec = {
        "objective": "moco_v2",
        "budget": {"epochs": 5},
        "batch_size": 128,
        "optimizer": {"lr": 0.06, "weight_decay": 5e-4},
        "schedule": {"name": "cosine", "warmup": 0.1},
        "batch_norm": {"group_size": 64},
        "augmentation": view,
        "queue_size": 256,
        "momentum": momentum,
        "temperature": 0.1,
        "symmetric": True,
        "dim": 64,
    }
    recipe = TypeAdapter[AnySelfSupervised](AnySelfSupervised).validate_python(spec)
    model, rows = of_world(source), np.arange(len(source.images))
    facts = fit(model, Examples(source.images, rows), recipe, 0, Worker()).facts
    return model, collapse_alarm(facts["embedding_spread"], facts["embedding_rank"], width=32)


def of_world(source: LabeledImages) -> Classifier:
    pixels = source.images / 255
    return build_classifier(
        SmallResNet(width=8),
        num_classes=0,
        image_size=16,
        statistics=np.array([[pixels.mean()], [pixels.std()]], np.float32),
        group_size=64,
        seed=0,
    )


def neighbours_agree(model: Classifier, target: LabeledImages) -> float:
    """Accuracy of the nearest train image's label, on a part of the target's test images."""
    train, test = (np.flatnonzero(target.splits == split)[::10] for split in (0, 2))
    found = [torch.from_numpy(infer(model, target.images, r, Worker())[1]) for r in (train, test)]
    labels = [torch.from_numpy(target.labels[rows]) for rows in (train, test)]
    predicted = knn_predict((found[0], labels[0]), found[1], len(target.class_names), (1,), 0.07)
    return float((predicted[1] == labels[1]).double().mean())


def test_moco_learns_without_labels_and_collapses_without_momentum() -> None:
    source, target = glyphs_and_textures(16, 20, seed=0), held_out_textures(16, seed=0)
    untrained = neighbours_agree(of_world(source), target)
    (model, alarm), (collapsed, collapse) = learned(source, 0.95), learned(source, 0.0)
    assert neighbours_agree(model, target) > 1.5 * untrained
    assert neighbours_agree(collapsed, target) < 1.2 * untrained
    assert alarm == ""
    assert collapse.startswith("collapsed")


def test_a_training_of_which_no_batch_begins_in_the_last_epoch_ends_well() -> None:
    spec = recipe("simclr", batch_size=4, budget={"epochs": 2})
    summary = fit(network(), examples(5), spec, 0, Worker())
    assert summary.optimizer_steps == 2 and summary.facts["num_embeddings"] == 4
