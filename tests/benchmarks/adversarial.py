"""What a step of each adversarial variant costs, against a standard step and as counted."""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from dp4tl_ray.algorithms.attacks import pgd
from dp4tl_ray.specs.adversarial import Adversarial, AnyAttack, relative_cost
from dp4tl_ray.specs.network import AnyNetwork, SmallResNet, TorchvisionResNet
from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.training.examples import Examples
from dp4tl_ray.training.networks import build_classifier
from dp4tl_ray.training.objectives.adversarial import AdversarialObjective
from dp4tl_ray.training.objectives.supervised import SupervisedObjective
from dp4tl_ray.training.parallel import Parallel
from dp4tl_ray.training.worker import Worker
from tests.benchmarks.figure import Figure, figure

SIDE, BATCH, ROUNDS = 32, 128, 5
VARIANTS: dict[str, dict[str, Any]] = {
    "pgd_3": {"attack": "pgd"},
    "pgd_10": {"attack": "pgd", "steps": 10},
    "pgd_3_l2": {"attack": "pgd", "norm": "l2", "eps": 0.5},
    "pgd_3_awp": {"attack": "pgd", "awp": 0.01},
    "fgsm_rs": {"attack": "fgsm_rs"},
    "n_fgsm": {"attack": "n_fgsm"},
    "free": {"attack": "free"},
    "trades_10": {"attack": "trades"},
    "dp4tl_asis": {"attack": "dp4tl_asis"},
}
NETWORKS: dict[str, tuple[AnyNetwork, int, tuple[str, ...]]] = {
    "resnet9": (SmallResNet(width=16, stem_stride=1), BATCH, tuple(VARIANTS)),
    "resnet18": (TorchvisionResNet(arch="resnet18", small_images=True), 16, ("pgd_3", "n_fgsm")),
}
"""Network, batch, variants: small ones are bound by memory, where no gradient of weights saves
less."""
NAIVE = 4.0
"""Counted: PGD-3 whose attack goes backward through weights too, as the paper's code does."""


def adversarial_cost() -> Iterator[Figure]:
    """Compare seconds of the processor per optimizer step, all variants in every round."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    adapter = TypeAdapter[Any](Adversarial)
    for arch, (network, batch, names) in NETWORKS.items():
        attacks = {name: adapter.validate_python(VARIANTS[name]) for name in names}
        steps: dict[str, Callable[[], None]] = {
            "standard": _step(_objective(network, batch, None)),
            "naive": _naive_step(_objective(network, batch, None)),
        }
        steps |= {n: _step(_objective(network, batch, attack)) for n, attack in attacks.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                started = time.process_time()
                step()
                seconds[name].append(time.process_time() - started)
        standard = median(seconds.pop("standard"))
        counted = {"naive": NAIVE} | {n: relative_cost(attack) for n, attack in attacks.items()}
        for name, taken in seconds.items():
            cost = [one / standard for one in taken]
            unit = (
                f"standard steps per step ({arch}; counted {counted[name]:.2f}; "
                f"{min(cost):.2f} to {max(cost):.2f} in {ROUNDS} rounds)"
            )
            yield figure(f"cost_{arch}_{name}", median(cost), counted[name], unit)
    torch.set_num_threads(num_threads)


def _objective(network: AnyNetwork, batch: int, attack: AnyAttack | None) -> SupervisedObjective:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)
    examples = Examples(images, np.arange(batch), np.arange(batch) % 10)
    model = build_classifier(
        network,
        num_classes=10,
        image_size=SIDE,
        statistics=np.array([[0.5] * 3, [0.25] * 3], np.float32),
        group_size=batch,
        seed=0,
    )
    recipe = Recipe.model_validate({"batch_size": batch, "batch_norm": {"group_size": batch}})
    if attack is None:
        return SupervisedObjective(model, examples, recipe, 0, Worker(), 1, None)
    recipe = recipe.model_copy(update={"adversarial": attack})
    return AdversarialObjective(model, examples, recipe, attack, 0, Worker(), 1, None)


def _step(objective: SupervisedObjective) -> Callable[[], None]:
    parallel = Parallel(objective.module, objective.worker)
    optimizer = torch.optim.SGD(parallel.model.parameters(), 1e-3, 0.9)
    batch = objective.gather(0, np.arange(len(objective.examples)))
    parallel.model.train()

    def step() -> None:
        optimizer.zero_grad()
        objective.backward(parallel, batch, 0)
        optimizer.step()

    return step


def _naive_step(objective: SupervisedObjective) -> Callable[[], None]:
    """PGD-3 that computes the gradients of weights in every step of the attack."""
    parallel = Parallel(objective.module, objective.worker)
    model, eps = parallel.model, 4 / 255
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9)
    batch = objective.gather(0, np.arange(len(objective.examples)))
    [[one]] = objective.passes
    model.train()

    def gradient(pixels: Tensor, labels: Tensor) -> Tensor:
        leaf = pixels.detach().requires_grad_()
        torch.autograd.backward(F.cross_entropy(model(leaf), labels))
        assert leaf.grad is not None
        return leaf.grad

    def step() -> None:
        shown = objective.show(batch, one)
        found = pgd(
            shown.pixels,
            lambda pixels: gradient(pixels, shown.labels),
            norm="linf",
            eps=eps,
            steps=3,
            step_size=2 * eps / 3,
        )
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(found), shown.labels))
        optimizer.step()

    return step
