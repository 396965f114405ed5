"""LARS, the optimizer for batches of thousands."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD whose step is, for each layer, proportional to the norm of the layer's weights.

    You et al. 2017, arXiv:1708.03888, in the form of MoCo v3 and VICReg: the gradient g, with the
    decay already added, is multiplied by trust * |w| / |g|; then come momentum and learning rate.
    Vectors (biases, normalisation) and layers whose |w| or |g| is zero take the plain step. Weight
    decay is that of the group, for vectors too.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        """Describe the update.

        Args:
            params: Parameters, or groups of them with options of their own.
            lr: Learning rate.
            momentum: Share of the last update that is kept.
            weight_decay: L2 penalty.
            trust: Length of a step, at learning rate 1, as a share of the length of the weights.
        """
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        update = gradient.add(parameter, alpha=group["weight_decay"])
        if parameter.ndim > 1:
            update.mul_(_layer_rate(parameter, update, group["trust"]))
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum_buffer: Tensor = state["momentum_buffer"]
        momentum_buffer.mul_(group["momentum"]).add_(update)
        parameter.add_(momentum_buffer, alpha=-group["lr"])


def _layer_rate(parameter: Tensor, update: Tensor, trust: float) -> Tensor:
    """Return trust * |w| / |g|, or 1 where one of them is zero, without waiting for a device."""
    weight_norm = torch.linalg.vector_norm(parameter)
    update_norm = torch.linalg.vector_norm(update)
    both = (weight_norm > 0) & (update_norm > 0)
    return torch.where(both, trust * weight_norm / update_norm, torch.ones_like(weight_norm))
