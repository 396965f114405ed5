import math
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from dp4tl_ray.specs.network import SmallResNet, TorchvisionResNet, VisionTransformer
from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.training import fit as fit_module
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.examples import Examples, batches, num_steps
from dp4tl_ray.training.fit import Halted, fit
from dp4tl_ray.training.networks import Classifier, blocks, build_classifier
from dp4tl_ray.training.passes import DivergedError, TrainingError
from dp4tl_ray.training.worker import Progress, Worker
from tests.conftest import draw_class


def examples(n: int = 60, classes: int = 3) -> Examples:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    images = np.stack([draw_class(int(label), rng) for label in labels])[..., None]
    return Examples(images, np.arange(n), labels)


def network(seed: int = 0, group_size: int = 4) -> Classifier:
    return build_classifier(
        SmallResNet(width=4),
        num_classes=3,
        image_size=16,
        statistics=np.array([[0.5], [0.25]], np.float32),
        group_size=group_size,
        seed=seed,
    )


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "budget": {"epochs": 4},
            "batch_size": 8,
            "optimizer": {"lr": 0.1},
            "batch_norm": {"group_size": 4},
            "augmentation": {"shift": 1, "flip": True, "crop": 0.7},
            "label_smoothing": 0.1,
            **changes,
        }
    )


def weights(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_epoch_of_the_stream_holds_each_example_once() -> None:
    stream = np.concatenate([*islice(batches(10, 4, seed=3, start=0), 10)]).tolist()
    assert all(sorted(stream[e : e + 10]) == list(range(10)) for e in (0, 10, 20, 30))
    assert stream[:10] != stream[10:20]


def test_the_stream_continues_from_any_step() -> None:
    whole = np.stack([*islice(batches(10, 4, seed=3, start=0), 20)])
    for start in range(12):
        rest = np.stack([*islice(batches(10, 4, seed=3, start=start), 8)])
        assert np.array_equal(rest, whole[start : start + 8])


def test_budgets() -> None:
    assert num_steps(recipe(budget={"epochs": 3}).budget, 100, 8) == 37
    assert num_steps(recipe(budget={"examples_seen": 80}).budget, 100, 8) == 10


def test_training_learns() -> None:
    model = network()
    summary = fit(model, examples(), recipe(budget={"epochs": 12}), 0, Worker())
    assert summary.train_loss < 0.6 < math.log(3)


def test_same_seed_same_weights_and_no_global_randomness() -> None:
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)
        model = network()
        fit(model, examples(), recipe(), 7, Worker())
        results.append(weights(model))
    assert equal(*results)
    other = network()
    fit(other, examples(), recipe(), 8, Worker())
    assert not equal(results[0], weights(other))


class KilledError(Exception):
    pass


def die(progress: Progress) -> bool:
    """End a training at its second report, when the state of the first epoch is saved."""
    if progress["epoch"] == 2:
        raise KilledError
    return True


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.2}, {"optimizer": {"name": "adamw", "lr": 0.01}}]
)
def test_resuming_is_bit_equal_to_never_stopping(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight, halted, resumed = network(), network(), network(seed=5)
    fit(straight, examples(), recipe(**changes), 0, Worker())
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(KilledError):
        fit(halted, examples(), recipe(**changes), 0, Worker(report=die), checkpoint)
    summary = fit(resumed, examples(), recipe(**changes), 0, Worker(), checkpoint)
    assert summary.seconds_before > 0
    assert equal(weights(straight), weights(resumed))


@pytest.mark.parametrize("changes", [{}, {"ema": 0.2}, {"adversarial": {"attack": "free"}}])
@pytest.mark.parametrize("died", [9, 10, 17])
def test_resuming_within_an_epoch_is_bit_equal_to_never_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], died: int
) -> None:
    straight, halted, resumed = network(), network(), network(seed=5)
    worker, checkpoint = Worker(checkpoint_steps=4), Checkpoint(tmp_path)
    expected = fit(straight, examples(), recipe(**changes), 0, Worker())
    step = fit_module._Run.train_step

    def until(run: Any, batch: Any) -> None:
        if run.step == died:
            raise KilledError
        step(run, batch)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(fit_module._Run, "train_step", until)
        fit(halted, examples(), recipe(**changes), 0, worker, checkpoint)
    saved = checkpoint.newest()
    assert saved is not None
    # epochs end after steps 7, 15, 22; a batch of `free` is 4 steps on from where it began
    assert saved.facts["step"] == {9: 8, 10: 8, 17: 16}[died]
    summary = fit(resumed, examples(), recipe(**changes), 0, worker, checkpoint)
    assert equal(weights(straight), weights(resumed))
    assert summary.train_loss == expected.train_loss


def test_a_training_that_is_told_to_halt_keeps_its_epoch(tmp_path: Path) -> None:
    straight, halted, resumed = network(), network(), network(seed=5)
    reports: list[Progress] = []

    def twice(progress: Progress) -> bool:
        reports.append(progress)
        return len(reports) < 2

    fit(straight, examples(), recipe(), 0, Worker())
    with pytest.raises(Halted, match="after step 15 of 30"):
        fit(halted, examples(), recipe(), 0, Worker(report=twice), Checkpoint(tmp_path))
    # the answer after the last epoch comes too late
    no = Worker(report=lambda progress: progress["epoch"] != 4)
    fit(resumed, examples(), recipe(), 0, no, Checkpoint(tmp_path))
    assert equal(weights(straight), weights(resumed))


def test_a_damaged_checkpoint_is_as_good_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KilledError):
        fit(network(), examples(), recipe(), 0, Worker(report=die), Checkpoint(tmp_path))
    [path] = tmp_path.glob("*/state.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    model, straight = network(), network()
    summary = fit(model, examples(), recipe(), 0, Worker(), Checkpoint(tmp_path))
    assert summary.seconds_before == 0 and "is damaged" in caplog.text
    fit(straight, examples(), recipe(), 0, Worker())
    assert equal(weights(model), weights(straight))


def test_a_loss_that_is_not_finite_is_named() -> None:
    with pytest.raises(DivergedError, match=r"loss is (nan|inf)"):
        fit(network(), examples(), recipe(optimizer={"lr": 1e9}), 0, Worker())


def test_a_budget_below_one_batch_is_refused() -> None:
    with pytest.raises(TrainingError, match="shorter than one batch of 8"):
        fit(network(), examples(), recipe(budget={"examples_seen": 7}), 0, Worker())


def test_a_batch_that_workers_cannot_share_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"2 group\(s\) of 4, fewer than the 3 workers"):
        fit(network(), examples(), recipe(), 0, Worker(shards=3))


def test_batches_made_ahead_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inline, threaded = network(), network()
    fit(inline, examples(), recipe(), 0, Worker())
    monkeypatch.setattr(fit_module, "WORTH_A_THREAD", 0)
    fit(threaded, examples(), recipe(), 0, Worker())
    assert equal(weights(inline), weights(threaded))


def test_a_compiled_network_trains_as_it_would_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)  # inductor itself takes half a minute here

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    short = recipe(budget={"examples_seen": 16})
    plain, compiled = network(), network()
    a = fit(plain, examples(), short, 0, Worker(microbatch=4))
    assert not graphs
    b = fit(compiled, examples(), short, 0, Worker(microbatch=4, compile=True))
    assert len(graphs) == 1, "compiled again for another pass of the same size"
    assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], tensor, rtol=1e-5, atol=1e-6)


def test_bf16_trains_close_to_fp32() -> None:
    losses = [
        fit(
            network(), examples(), recipe(precision=p, budget={"epochs": 6}), 0, Worker()
        ).train_loss
        for p in ("fp32", "bf16")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.1)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("spec", "size", "num_blocks"),
    [
        (SmallResNet(), 16, 3),
        (TorchvisionResNet(arch="resnet18", small_images=True), 16, 8),
        (TorchvisionResNet(arch="resnet50"), 32, 16),
        (VisionTransformer(patch_size=8), 16, 12),
    ],
)
def test_networks_give_features_and_gradients(spec: Any, size: int, num_blocks: int) -> None:
    model = build_classifier(
        spec,
        num_classes=5,
        image_size=size,
        statistics=np.array([[0.5], [0.25]], np.float32),
        group_size=2,
        seed=0,
    )
    assert len(blocks(model)) == num_blocks  # what fsdp2 shards one by one
    logits = model(torch.rand(4, 1, size, size))
    assert logits.shape == (4, 5)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
