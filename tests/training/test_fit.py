import contextlib
import math
import socket
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dp4tl_ray.specs.network import SmallResNet, TorchvisionResNet, VisionTransformer
from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.fit import (
    DivergedError,
    Examples,
    TrainingError,
    batches,
    fit,
    num_steps,
)
from dp4tl_ray.training.networks import Classifier, build_classifier
from dp4tl_ray.training.recorder import DynamicsRecorder
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
    stream = [i for batch in islice(batches(10, 4, seed=3, start=0), 10) for i in batch]
    assert all(sorted(stream[e : e + 10]) == list(range(10)) for e in (0, 10, 20, 30))
    assert stream[:10] != stream[10:20]


def test_the_stream_continues_from_any_step() -> None:
    whole = list(islice(batches(10, 4, seed=3, start=0), 20))
    for start in range(12):
        assert list(islice(batches(10, 4, seed=3, start=start), 8)) == whole[start : start + 8]


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


def die(progress: Progress) -> None:
    """End a training at its second report, when the state of the first epoch is saved."""
    if progress["epoch"] == 2:
        raise KilledError


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.2}, {"optimizer": {"name": "adamw", "lr": 0.01}}]
)
def test_resuming_is_bit_equal_to_never_stopping(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight, halted, resumed = network(), network(), network(seed=5)
    fit(straight, examples(), recipe(**changes), 0, Worker())
    checkpoint = Checkpoint(tmp_path / "state.safetensors")
    with pytest.raises(KilledError):
        fit(halted, examples(), recipe(**changes), 0, Worker(report=die), checkpoint)
    summary = fit(resumed, examples(), recipe(**changes), 0, Worker(), checkpoint)
    assert summary.seconds_before > 0
    assert equal(weights(straight), weights(resumed))


def test_a_damaged_checkpoint_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not a header")
    model, straight = network(), network()
    fit(model, examples(), recipe(), 0, Worker(), Checkpoint(path))
    fit(straight, examples(), recipe(), 0, Worker())
    assert equal(weights(model), weights(straight))


def test_a_loss_that_is_not_finite_is_named() -> None:
    with pytest.raises(DivergedError, match=r"loss is (nan|inf)"):
        fit(network(), examples(), recipe(optimizer={"lr": 1e9}), 0, Worker())


def test_a_budget_below_one_batch_is_refused() -> None:
    with pytest.raises(TrainingError, match="shorter than one batch of 8"):
        fit(network(), examples(), recipe(budget={"examples_seen": 7}), 0, Worker())


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
    ("spec", "size"),
    [
        (TorchvisionResNet(arch="resnet18", small_images=True), 16),
        (TorchvisionResNet(arch="resnet50"), 32),
        (VisionTransformer(patch_size=8), 16),
    ],
)
def test_torchvision_networks_give_features_and_gradients(spec: Any, size: int) -> None:
    model = build_classifier(
        spec,
        num_classes=5,
        image_size=size,
        statistics=np.array([[0.5], [0.25]], np.float32),
        group_size=2,
        seed=0,
    )
    logits = model(torch.rand(4, 1, size, size))
    assert logits.shape == (4, 5)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# -- several workers -------------------------------------------------------------------------------


TWENTY = {"budget": {"examples_seen": 160}}
"""20 steps: two epochs and a part of a third."""


def record_gradients(model: Classifier, worker: Worker) -> list[torch.Tensor]:
    """Train in float64 and return the gradient of every step, flattened."""
    gradients: list[torch.Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parts = [p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]
        gradients.append(torch.cat(parts).clone())

    handle = register_optimizer_step_pre_hook(note)
    try:
        fit(model, examples(), recipe(**TWENTY), 0, worker)
    finally:
        handle.remove()
    return gradients


def recorder(worker: Worker) -> DynamicsRecorder:
    return DynamicsRecorder(60, 3, worker, divergences=True)


def one_of_two(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = network()
    gradients = record_gradients(model, Worker(rank, 2))
    resumed, again = network(), recorder(Worker(rank, 2))
    checkpoint = Checkpoint(Path(out).with_suffix(".checkpoint"))
    killed, halted = Worker(rank, 2, report=die), recorder(Worker(rank, 2))
    with contextlib.suppress(KilledError):
        fit(network(), examples(), recipe(**TWENTY), 0, killed, checkpoint, halted)
    dist.barrier()
    fit(resumed, examples(), recipe(**TWENTY), 0, Worker(rank, 2), checkpoint, again)
    np.savez(Path(out).with_suffix(f".{rank}.npz"), **vars(again.dynamics()))
    if rank == 0:
        kept = {"gradients": gradients, "weights": weights(model), "resumed": weights(resumed)}
        torch.save(kept, out)
    dist.destroy_process_group()


def test_two_workers_take_the_same_steps_as_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / "two.pt"
    start_processes(one_of_two, (port, str(out)), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
    two = torch.load(out)
    model = network()
    one = record_gradients(model, Worker())
    assert len(one) == len(two["gradients"]) == 20
    for a, b in zip(one, two["gradients"], strict=True):
        assert float((a - b).norm() / a.norm()) < 1e-5
    assert equal(two["resumed"], two["weights"])
    for name, tensor in weights(model).items():
        if "running" in name:
            torch.testing.assert_close(tensor, two["weights"][name], rtol=1e-5, atol=1e-6)
    # and what two that resume have recorded is what one records that never stops
    alone = recorder(Worker())
    fit(network(), examples(), recipe(**TWENTY), 0, Worker(), recorder=alone)
    one_history = vars(alone.dynamics())
    assert one_history["margin_EN"].shape == (2, 60)
    for rank in (0, 1):
        two_history = np.load(out.with_suffix(f".{rank}.npz"))
        for name, expected in one_history.items():
            np.testing.assert_allclose(two_history[name], expected, atol=5e-3)
