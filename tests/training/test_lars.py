import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from dp4tl_ray.training.checkpoint import make_optimizer_state, optimizer_tensors
from dp4tl_ray.training.lars import LARS


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))


def gradients(step: int, parameters: Sequence[Tensor]) -> list[Tensor]:
    g = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=g, dtype=torch.float64).to(p) for p in parameters]


def take_step(optimizer: LARS, step: int) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, gradients(step, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def test_updates_are_those_of_the_definition() -> None:
    lr, momentum, decay, trust = 0.3, 0.8, 0.1, 0.02
    model = network().double()
    layers = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": layers}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = LARS(groups, lr, momentum=momentum, weight_decay=decay, trust=trust)
    weights = [p.detach().flatten().tolist() for p in (*layers, *vectors)]
    velocity = [[0.0] * len(w) for w in weights]
    for step in range(4):
        drawn = [g.flatten().tolist() for g in gradients(step, (*layers, *vectors))]
        for n, (w, v, g) in enumerate(zip(weights, velocity, drawn, strict=True)):
            rate = 1.0
            if n < len(layers):
                g = [a + decay * b for a, b in zip(g, w, strict=True)]
                rate = trust * math.hypot(*w) / math.hypot(*g)
            for i in range(len(w)):
                v[i] = momentum * v[i] + rate * g[i]
                w[i] -= lr * v[i]
        take_step(optimizer, step)
    for parameter, expected in zip((*layers, *vectors), weights, strict=True):
        assert parameter.detach().flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_vectors_move_as_under_sgd_with_the_decay_of_their_group() -> None:
    mine, other = nn.Parameter(torch.arange(4.0)), nn.Parameter(torch.arange(4.0))
    lars = LARS([mine], 0.1, momentum=0.9, weight_decay=0.2)
    sgd = torch.optim.SGD([other], 0.1, 0.9, weight_decay=0.2)
    for step in range(3):
        take_step(lars, step)
        other.grad = mine.grad
        sgd.step()
    torch.testing.assert_close(mine, other)


def test_where_a_norm_is_zero_the_step_is_the_plain_one() -> None:
    zero, still = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.ones(2, 3))
    zero.grad, still.grad = torch.full((2, 3), 0.5), torch.zeros(2, 3)
    LARS([zero, still], 0.1).step()
    assert torch.equal(zero, torch.full((2, 3), -0.05))
    assert torch.equal(still, torch.ones(2, 3))


def test_a_parameter_without_gradient_stays_where_it_is() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    optimizer = LARS([parameter], 0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(2, 3)) and not optimizer.state


def test_continues_exactly_from_the_tensors_of_a_checkpoint() -> None:
    model = network()
    optimizer = LARS(model.parameters(), 0.3, weight_decay=1e-3)
    for step in range(2):
        take_step(optimizer, step)
    resumed = copy.deepcopy(model)
    again = LARS(resumed.parameters(), 0.3, weight_decay=1e-3)
    saved = {n: t.clone() for n, t in optimizer_tensors(model, optimizer).items()}
    assert set(saved) == {f"{n}.momentum_buffer" for n, _ in model.named_parameters()}
    make_optimizer_state(resumed, again, {n: t.shape for n, t in saved.items()})
    for name, tensor in optimizer_tensors(resumed, again).items():
        tensor.copy_(saved[name])
    take_step(optimizer, 2)
    take_step(again, 2)
    for left, right in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)
