"""Adversarial trainings: what each variant is, by hand; and what none of them may do."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from dp4tl_ray.algorithms.attacks import ball_noise
from dp4tl_ray.specs.adversarial import Adversarial, AnyAttack, Standard, relative_cost
from dp4tl_ray.specs.network import SmallResNet
from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.training.batch_norm import GroupedBatchNorm
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.examples import batches, to_pixels
from dp4tl_ray.training.fit import Halted, fit
from dp4tl_ray.training.networks import Classifier, build_classifier
from dp4tl_ray.training.objectives.adversarial import (
    AdversarialObjective,
    attacking,
    frozen_statistics,
    generator_for,
)
from dp4tl_ray.training.parallel import Parallel
from dp4tl_ray.training.passes import DivergedError
from dp4tl_ray.training.recorder import DynamicsRecorder
from dp4tl_ray.training.worker import Worker
from tests.training.test_fit import equal, examples, network, recipe, weights

EPS = 8 / 255
VARIANTS: dict[str, dict[str, Any]] = {
    "pgd": {"attack": "pgd", "eps": EPS},
    "pgd l2": {"attack": "pgd", "norm": "l2", "eps": 0.5, "random_start": False},
    "fgsm_rs": {"attack": "fgsm_rs", "eps": EPS},
    "n_fgsm": {"attack": "n_fgsm", "eps": EPS},
    "free": {"attack": "free", "eps": EPS, "replays": 3},
    "trades": {"attack": "trades", "eps": EPS, "steps": 3},
    "dp4tl_asis": {"attack": "dp4tl_asis", "eps": EPS},
    "pgd awp": {"attack": "pgd", "eps": EPS, "awp": 0.05},
    "pgd train": {"attack": "pgd", "eps": EPS, "attack_bn": "train"},
    "pgd eval": {"attack": "pgd", "eps": EPS, "attack_bn": "eval"},
}
EACH = pytest.mark.parametrize("name", VARIANTS)
PLAIN = {"augmentation": {}, "label_smoothing": 0.0}


def adversarial(name: str, **changes: Any) -> Recipe:
    return recipe(adversarial=VARIANTS[name], **changes)


def objective(spec: Recipe, worker: Worker | None = None) -> AdversarialObjective:
    assert not isinstance(spec.adversarial, Standard)
    found = worker or Worker()
    return AdversarialObjective(network(), examples(), spec, spec.adversarial, 0, found, 1, None)


def first_gradient(spec: Recipe, worker: Worker | None = None) -> tuple[Tensor, Tensor, Classifier]:
    """Loss, gradient and network after the backward pass of the first batch."""
    one = objective(spec, worker)
    parallel = Parallel(one.module, one.worker)
    parallel.model.train()
    positions = next(batches(60, spec.batch_size, 0, 0))
    loss = one.backward(parallel, one.gather(0, positions), 0)
    return loss, gradient_of(one.model), one.model


def gradient_of(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def first_batch(spec: Recipe) -> tuple[Tensor, Tensor]:
    data = examples()
    positions = next(batches(60, spec.batch_size, 0, 0))
    pixels = to_pixels(data.images[data.rows[positions]], torch.device("cpu"))
    assert data.labels is not None
    return pixels, torch.from_numpy(data.labels[positions])


def drawn(shape: torch.Size, group: int, radius: float) -> Tensor:
    """Noise as the objective draws it: a stream per batch-norm group."""
    parts = []
    for first in range(0, shape[0], group):
        generator = generator_for(torch.device("cpu"), 0, "attack", 0, first)
        parts.append(ball_noise(torch.Size([group, *shape[1:]]), "linf", radius, generator))
    return torch.cat(parts)


def by_hand(name: str, spec: Recipe) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the first batch, straight from the definition, one image at a time for
    all that is done to images; batch norm sees the whole batch in groups, as in training."""
    model = network()
    model.to(memory_format=torch.channels_last)
    model.train()
    attacker = copy.deepcopy(model)  # so that attacks move no statistics
    pixels, labels = first_batch(spec)
    attack: Any = spec.adversarial
    eps, group = attack.eps, spec.batch_norm.group_size

    def climb(at: Tensor, loss: Any) -> Tensor:
        leaf = at.detach().clone().requires_grad_()
        torch.autograd.backward(loss(attacker(leaf)))
        assert leaf.grad is not None
        return leaf.grad

    def clipped(at: Tensor, radius: float) -> Tensor:
        pairs = zip(at, pixels, strict=True)
        return torch.stack([torch.clip(x0 + torch.clip(x - x0, -radius, radius), 0, 1)
                            for x, x0 in pairs])  # fmt: skip

    def entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    match name:
        case "pgd":
            found = clipped(pixels + drawn(pixels.shape, group, eps), eps)
            for _ in range(3):
                found = clipped(found + 2 * eps / 3 * climb(found, entropy).sign(), eps)
        case "pgd l2":
            found = pixels
            for _ in range(3):
                gradient = climb(found, entropy)
                moved = []
                for x, x0, g in zip(found, pixels, gradient, strict=True):
                    delta = x + 2 * eps / 3 * g / g.norm() - x0
                    delta = delta * min(1.0, eps / float(delta.norm()))
                    moved.append((x0 + delta).clip(0, 1))
                found = torch.stack(moved)
        case "fgsm_rs":
            found = clipped(pixels + drawn(pixels.shape, group, eps), eps)
            found = clipped(found + 1.25 * eps * climb(found, entropy).sign(), eps)
        case "n_fgsm":
            found = (pixels + drawn(pixels.shape, group, 2 * eps)).clip(0, 1)
            found = (found + eps * climb(found, entropy).sign()).clip(0, 1)
        case "trades":
            attacker.eval()
            with torch.no_grad():
                natural = attacker(pixels).softmax(dim=1)
            parts = []
            for first in range(0, len(pixels), group):
                generator = generator_for(torch.device("cpu"), 0, "attack", 0, first)
                parts.append(torch.empty(group, *pixels.shape[1:]).normal_(generator=generator))
            found = clipped(pixels + 0.001 * torch.cat(parts), eps)

            def divergence(logits: Tensor) -> Tensor:
                summed: Tensor = (natural * (natural.log() - logits.log_softmax(dim=1))).sum()
                return summed

            for _ in range(3):
                found = clipped(found + 2 * eps / 3 * climb(found, divergence).sign(), eps)
            clean, perturbed = model(pixels).softmax(dim=1), model(found).log_softmax(dim=1)
            kl = (clean * (clean.log() - perturbed)).sum(dim=1).mean()
            loss = F.nll_loss(clean.log(), labels) + 6 * kl
            torch.autograd.backward(loss)
            return loss.detach(), gradient_of(model)
        case "dp4tl_asis":
            std = model.pixel_std
            noise = drawn(pixels.shape, group, eps)
            found = clipped(pixels + std * noise, eps)
            for _ in range(3):
                found = clipped(found + 2 * eps / 3 * std * climb(found, entropy).sign(), eps)
        case _:
            raise AssertionError(name)
    loss = F.cross_entropy(model(found), labels)
    torch.autograd.backward(loss)
    return loss.detach(), gradient_of(model)


@pytest.mark.parametrize("name", ["pgd", "pgd l2", "fgsm_rs", "n_fgsm", "trades", "dp4tl_asis"])
def test_a_variant_is_what_its_paper_says(name: str) -> None:
    spec = adversarial(name, **PLAIN)
    loss, gradient, _ = first_gradient(spec)
    expected_loss, expected = by_hand(name, spec)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.norm()))


def test_free_replays_a_batch_and_moves_both_by_one_gradient() -> None:
    spec = adversarial("free", **PLAIN)
    one = objective(spec)
    parallel = Parallel(one.module, one.worker)
    parallel.model.train()
    batch = one.gather(0, next(batches(60, 8, 0, 0)))
    pixels, labels = first_batch(spec)
    expected = (pixels + drawn(pixels.shape, 4, EPS)).clip(0, 1)
    by_hand_model = copy.deepcopy(one.model)
    for step in range(3):
        one.model.zero_grad()
        one.backward(parallel, batch, step)
        leaf = expected.clone().requires_grad_()
        by_hand_model.zero_grad()
        torch.autograd.backward(F.cross_entropy(by_hand_model(leaf), labels))
        torch.testing.assert_close(gradient_of(one.model), gradient_of(by_hand_model))
        assert leaf.grad is not None
        expected = expected + EPS * leaf.grad.sign()
        expected = (pixels + (expected - pixels).clip(-EPS, EPS)).clip(0, 1)
        [(_, moved)] = one.replayed
        torch.testing.assert_close(moved, expected)


def test_free_sees_a_batch_several_times_and_takes_as_many_steps_as_any(tmp_path: Path) -> None:
    spec = adversarial("free", batch_size=20, budget={"epochs": 4})
    summary = fit(network(), examples(), spec, 0, Worker())
    assert summary.optimizer_steps == 12 and summary.examples_seen == 240
    seen = list[bytes]()
    original = AdversarialObjective.gather

    def gather(self: AdversarialObjective, step: int, positions: Any) -> Any:
        seen.append(positions.tobytes())
        return original(self, step, positions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdversarialObjective, "gather", gather)
        fit(network(), examples(), spec, 0, Worker())
    assert len(seen) == len(set(seen)) == 4  # 12 steps, three on each


def test_awp_takes_the_gradient_at_weights_moved_uphill() -> None:
    spec = adversarial("pgd awp", **PLAIN)
    before = weights(network())
    _, gradient, model = first_gradient(spec)
    assert all(torch.equal(t, before[n]) for n, t in model.named_parameters()), "not restored"
    by_hand_model = network()
    by_hand_model.to(memory_format=torch.channels_last)
    by_hand_model.train()
    pixels, labels = first_batch(spec)
    attacked = pixels + drawn(pixels.shape, 4, EPS)
    attacked = (pixels + (attacked - pixels).clip(-EPS, EPS)).clip(0, 1)
    for _ in range(3):
        leaf = attacked.clone().requires_grad_()
        torch.autograd.backward(F.cross_entropy(by_hand_model(leaf), labels))
        assert leaf.grad is not None
        attacked = attacked + 2 * EPS / 3 * leaf.grad.sign()
        attacked = (pixels + (attacked - pixels).clip(-EPS, EPS)).clip(0, 1)
    by_hand_model.zero_grad()
    torch.autograd.backward(F.cross_entropy(by_hand_model(attacked), labels))
    with torch.no_grad():
        for parameter in by_hand_model.parameters():
            assert parameter.grad is not None
            if parameter.ndim > 1:
                step = 0.05 * parameter.norm() * parameter.grad / parameter.grad.norm()
                parameter.add_(step)
    by_hand_model.zero_grad()
    torch.autograd.backward(F.cross_entropy(by_hand_model(attacked), labels))
    expected = gradient_of(by_hand_model)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.norm()))


@pytest.mark.parametrize("eps", [0.0, 1e-12])
def test_without_a_radius_adversarial_training_is_standard_training(eps: float) -> None:
    plain, attacked = network(), network()
    fit(plain, examples(), recipe(), 0, Worker())
    fit(attacked, examples(), recipe(adversarial={"attack": "pgd", "eps": eps}), 0, Worker())
    if eps == 0:
        assert equal(weights(plain), weights(attacked))
    else:
        for key, tensor in weights(plain).items():
            torch.testing.assert_close(weights(attacked)[key], tensor, rtol=1e-3, atol=1e-4)


@EACH
def test_perturbations_stay_within_what_the_name_says(name: str) -> None:
    summary = fit(network(), examples(), adversarial(name, budget={"epochs": 1}), 0, Worker())
    reach = summary.facts["largest_perturbation"]
    std = float(network().pixel_std)
    furthest = {"n_fgsm": 3 * EPS, "pgd l2": 0.5, "dp4tl_asis": 3 * std * EPS}.get(name, EPS)
    assert 0.3 * furthest < reach <= furthest * (1 + 1e-5)


def test_imagenets_deviations_keep_the_released_code_below_687_thousandths() -> None:
    # three colour channels, as its deviations are
    images = np.random.default_rng(0).integers(60, 200, (60, 16, 16, 3), dtype=np.uint8)
    data = examples()
    data = type(data)(images, data.rows, data.labels)
    statistics = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    model = build_classifier(
        SmallResNet(width=4),
        num_classes=3,
        image_size=16,
        statistics=statistics,
        group_size=4,
        seed=0,
    )
    spec = recipe(adversarial={"attack": "dp4tl_asis"}, budget={"epochs": 2}, augmentation={})
    reach = fit(model, data, spec, 0, Worker()).facts["largest_perturbation"]
    assert 0.6 * 3 / 255 < reach <= 0.6871 * 3 / 255


@EACH
def test_a_halted_training_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    spec = adversarial(name, budget={"epochs": 4}, ema=0.5)
    straight, halted, again = network(), network(), network()
    whole = fit(straight, examples(), spec, 0, Worker())
    stopping = Worker(report=lambda progress: progress["epoch"] != 2)
    with pytest.raises(Halted):
        fit(halted, examples(), spec, 0, stopping, Checkpoint(tmp_path))
    rest = fit(again, examples(), spec, 0, Worker(), Checkpoint(tmp_path))
    assert equal(weights(straight), weights(again))
    assert rest.facts == whole.facts


@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in ("pgd train", "dp4tl_asis")])
@pytest.mark.parametrize("worker", [Worker(shards=2), Worker(microbatch=4)], ids=["2", "micro"])
def test_shares_and_passes_change_nothing(
    name: str, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # near an image the divergence is so flat that rounding decides signs
    monkeypatch.setattr("dp4tl_ray.training.objectives.adversarial.TRADES_NOISE", 0.02)
    # a crop adds rounding of its own, which the gradient of a pixel turns into another sign
    spec = adversarial(name, batch_size=20, augmentation={"shift": 1, "flip": True})
    loss, gradient, _ = first_gradient(spec, worker)
    expected_loss, expected, _ = first_gradient(spec)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("mode", ["train_frozen_stats", "train", "eval"])
def test_what_an_attack_does_to_batch_norm(mode: Any) -> None:
    model = network()
    model.train()
    pixels, labels = first_batch(recipe())
    before = weights(model)
    with attacking(model, mode):
        assert model.training == (mode != "eval")
        leaf = pixels.clone().requires_grad_()
        [inside] = torch.autograd.grad(F.cross_entropy(model(leaf), labels), [leaf])
    moved = not equal(before, weights(model))
    assert moved == (mode == "train") and model.training
    leaf = pixels.clone().requires_grad_()
    fresh = network().train()
    [plain] = torch.autograd.grad(F.cross_entropy(fresh(leaf), labels), [leaf])
    assert torch.equal(inside, plain) == (mode != "eval")


def test_statistics_are_given_back_also_after_an_error() -> None:
    model = network()
    norms = [m for m in model.modules() if isinstance(m, GroupedBatchNorm)]
    with pytest.raises(RuntimeError), frozen_statistics(model):
        assert all(norm.frozen for norm in norms)
        raise RuntimeError
    assert norms and not any(norm.frozen for norm in norms)


def test_an_attack_asks_for_no_gradient_of_weights() -> None:
    one = objective(adversarial("pgd"))
    parallel = Parallel(one.module, one.worker)
    parallel.model.train()
    batch = one.gather(0, next(batches(60, 8, 0, 0)))
    [[pass_]] = one.passes
    one._attacked(parallel, one.show(batch, pass_), pass_, 0)
    assert all(p.grad is None for p in one.model.parameters())


@EACH
def test_bf16_needs_no_scaler(name: str) -> None:
    spec = adversarial(name, precision="bf16", budget={"epochs": 2})
    summary = fit(network(), examples(), spec, 0, Worker())
    assert np.isfinite(summary.train_loss)


def test_gradients_that_are_not_finite_are_counted_and_refused() -> None:
    class Overflowing(Classifier):
        """Its output is finite, its gradient not."""

        def features(self, pixels_NCHW: Tensor) -> Tensor:
            found = super().features(pixels_NCHW)
            return found + (pixels_NCHW.flatten(1)[:, :1] * 0).sqrt()

    model = network()
    model.__class__ = Overflowing
    with pytest.raises(DivergedError, match=r"\d+ gradients of images are not finite"):
        fit(model, examples(), adversarial("pgd", budget={"epochs": 1}), 0, Worker())


def test_the_probe_is_the_same_after_every_epoch_and_its_falls_are_kept() -> None:
    one = objective(adversarial("pgd"))
    parallel = Parallel(one.module, one.worker)
    accuracies = [one._probe(parallel) for _ in range(2)]
    assert accuracies[0] == accuracies[1]
    one.accuracies = [0.2, 0.7, 0.35, 0.4]
    falls = [a - b for a, b in pairwise(one.accuracies)]
    assert one.facts()["attacked_accuracy_drop"] == max(falls) == pytest.approx(0.35)
    assert one.facts()["attacked_accuracy"] == 0.4


def test_training_against_an_attack_withstands_it_better() -> None:
    spec = {"budget": {"epochs": 12}, "augmentation": {}}
    survived = {}
    for name, attack in {"none": "none", "pgd": {"attack": "pgd", "eps": 0.2}}.items():
        model = network()
        fit(model, examples(120), recipe(adversarial=attack, **spec), 0, Worker())
        one = objective(recipe(adversarial={"attack": "pgd", "eps": 0.2}))
        one.model, one.module = model, model
        survived[name] = one._probe(Parallel(model, Worker()))
    assert survived["pgd"] > survived["none"] + 0.1, survived


def test_a_recorder_sees_what_the_network_is_shown_once_per_step() -> None:
    for name in ("pgd", "trades", "pgd awp"):
        spec = adversarial(name, batch_size=20, budget={"epochs": 3})
        recorder = DynamicsRecorder(60, 3, Worker(), divergences=True)
        fit(network(), examples(), spec, 0, Worker(), recorder=recorder)
        margins = recorder.dynamics().margin_EN
        assert margins.shape == (3, 60) and np.isfinite(margins).all()


@pytest.mark.parametrize(
    ("spec", "cost"),
    [("none", 1.0), ("pgd", 3.0), ("fgsm_rs", 5 / 3), ("n_fgsm", 5 / 3), ("free", 1.0),
     ("trades", 9.0), ("dp4tl_asis", 3.0), ({"attack": "pgd", "steps": 10, "awp": 1.0}, 26 / 3)],
)  # fmt: skip
def test_costs_are_counted_in_standard_steps(spec: Any, cost: float) -> None:
    attack: AnyAttack = TypeAdapter[Any](Adversarial).validate_python(spec)
    assert relative_cost(attack) == pytest.approx(cost)
