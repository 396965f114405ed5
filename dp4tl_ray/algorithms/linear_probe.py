"""Linear probe: multinomial logistic regression, solved to convergence.

Shapes: N examples, D features, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Probe:
    """A linear classifier of standardised features."""

    mean_D: Tensor
    scale_D: Tensor
    weight_KD: Tensor
    bias_K: Tensor

    def predict(self, features_ND: Tensor) -> Tensor:
        """Return the predicted class of each example, (N,)."""
        standard_ND = (features_ND.double() - self.mean_D) / self.scale_D
        return F.linear(standard_ND, self.weight_KD, self.bias_K).argmax(dim=1)


def solve_probe(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, l2: float, start: Probe | None = None
) -> Probe:
    """Minimise mean cross-entropy + l2/2 |W|^2 by L-BFGS in float64; the bias is free.

    Args:
        features_ND: Train features, standardised here by their own mean and deviation.
        labels_N: Classes in [0, num_classes).
        num_classes: K.
        l2: Strength of the penalty.
        start: Solution for a nearby strength, to start from.
    """
    mean_D = features_ND.double().mean(dim=0)
    deviation_D = features_ND.double().std(dim=0, correction=0)
    # a constant feature carries nothing; dividing by 1 leaves it at zero
    scale_D = torch.where(deviation_D > 1e-12, deviation_D, 1.0)
    x_ND = (features_ND.double() - mean_D) / scale_D
    weight = start.weight_KD.clone() if start else x_ND.new_zeros(num_classes, x_ND.shape[1])
    bias = start.bias_K.clone() if start else x_ND.new_zeros(num_classes)
    weight.requires_grad_(True)
    bias.requires_grad_(True)
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
    return Probe(mean_D, scale_D, weight.detach(), bias.detach())


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
    probe = None
    for l2 in sorted(l2_values, reverse=True):
        probe = solve_probe(*train, num_classes, l2, start=probe)
        accuracy = float((probe.predict(val[0]) == val[1]).double().mean())
        if best is None or accuracy > best[2]:
            best = probe, l2, accuracy
    assert best is not None, "a transfer spec has at least one strength"
    return best
