"""Linear probe: multinomial logistic regression, solved to convergence or as others train it.

Shapes: N examples, D features, K classes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.schedules import lr_factor

UNSEEN = 1e-6
"""Examples that a class without any counts as, where the logarithm of its share is needed."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier of standardised features."""

    mean_D: Tensor
    scale_D: Tensor
    weight_KD: Tensor
    bias_K: Tensor

    def logits(self, features_ND: Tensor) -> Tensor:
        """Return logits, (N, K), in float64."""
        standard_ND = (features_ND.double() - self.mean_D) / self.scale_D
        return F.linear(standard_ND, self.weight_KD, self.bias_K)

    def predict(self, features_ND: Tensor) -> Tensor:
        """Return the predicted class of each example, (N,)."""
        return self.logits(features_ND).argmax(dim=1)


def solve_probe(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, l2: float, start: Probe | None = None
) -> Probe:
    """Minimise mean cross-entropy + l2/2 |W|^2 by L-BFGS in float64; the bias is free.

    See `solve_probes` for what convergence means.

    Args:
        features_ND: Train features, standardised here by their own mean and deviation.
        labels_N: Classes in [0, num_classes).
        num_classes: K.
        l2: Strength of the penalty.
        start: Solution for a nearby problem, to start from.
    """
    return next(solve_probes(features_ND, labels_N, num_classes, [l2], start))


def solve_probes(
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    l2_values: Sequence[float],
    start: Probe | None = None,
) -> Iterator[Probe]:
    """Solve for each strength in turn, each from the solution of the one before.

    A solution has no component of the gradient above 1e-6. Where the classes can be separated, the
    loss under a weak penalty goes to 0 while the weights grow for ever more slowly; the rule ends
    that within tens of steps, once the mean loss is a few 1e-6.
    """
    mean_D = features_ND.double().mean(dim=0)
    deviation_D = features_ND.double().std(dim=0, correction=0)
    # a constant feature carries nothing; dividing by 1 leaves it at zero
    scale_D = torch.where(deviation_D > 1e-12, deviation_D, 1.0)
    x_ND = (features_ND.double() - mean_D) / scale_D
    if start is None:
        weight = x_ND.new_zeros(num_classes, x_ND.shape[1])
        # the best bias without weights; under a strong penalty the weights are so small that a
        # bias off by the tolerance would decide alone
        count_K = torch.bincount(labels_N, minlength=num_classes).double().clamp(min=UNSEEN)
        bias = torch.log(count_K / len(labels_N))
    else:
        weight, bias = start.weight_KD.clone(), start.bias_K.clone()
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    for l2 in l2_values:
        _minimise(x_ND, labels_N, weight, bias, l2)
        yield Probe(mean_D, scale_D, weight.detach().clone(), bias.detach().clone())


def _minimise(x_ND: Tensor, labels_N: Tensor, weight: Tensor, bias: Tensor, l2: float) -> None:
    """Move weight and bias to the minimum."""
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(x_ND, weight, bias), labels_N)
        loss = loss + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(objective)  # type: ignore[no-untyped-call]


def best_probe(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    num_classes: int,
    l2_values: Sequence[float],
) -> tuple[Probe, float, float]:
    """Solve for every strength, from the strongest on, and keep the best on validation.

    Returns:
        The probe, its strength, its validation accuracy. Ties go to the stronger penalty.
    """
    best: tuple[Probe, float, float] | None = None
    strengths = sorted(l2_values, reverse=True)
    probes = solve_probes(*train, num_classes, strengths)
    for l2, probe in zip(strengths, probes, strict=True):
        accuracy = float((probe.predict(val[0]) == val[1]).double().mean())
        if best is None or accuracy > best[2]:
            best = probe, l2, accuracy
    assert best is not None, "a transfer spec has at least one strength"
    return best


def adam_probes(
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    generator: np.random.Generator,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
) -> Iterator[Probe]:
    """Train by Adam on features as they are, and yield the classifier after every epoch.

    Mean cross-entropy without a penalty; the rate falls along a cosine, step by step. Weights start
    at zero. The last batch of an epoch may be smaller.

    Args:
        features_ND: Train features.
        labels_N: Classes in [0, num_classes).
        num_classes: K.
        generator: Draws the order of each epoch.
        epochs: Passes over the examples.
        batch_size: Examples per step.
        lr: Learning rate of the first step.
    """
    x_ND = features_ND.float()
    weight = x_ND.new_zeros(num_classes, x_ND.shape[1]).requires_grad_(True)
    bias = x_ND.new_zeros(num_classes).requires_grad_(True)
    solver = torch.optim.Adam([weight, bias], lr)
    total, step = epochs * math.ceil(len(x_ND) / batch_size), 0
    untouched = x_ND.new_zeros(x_ND.shape[1]), x_ND.new_ones(x_ND.shape[1])
    for _ in range(epochs):
        order_N = torch.from_numpy(generator.permutation(len(x_ND))).to(x_ND.device)
        for batch in torch.split(order_N, batch_size):
            solver.param_groups[0]["lr"] = lr * lr_factor("cosine", 0.0, step / total)
            solver.zero_grad()
            loss = F.cross_entropy(F.linear(x_ND[batch], weight, bias), labels_N[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            solver.step()
            step += 1
        yield Probe(*untouched, weight.detach().double(), bias.detach().double())
