from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dp4tl_ray.algorithms.linear_probe import (
    Probe,
    adam_probes,
    best_probe,
    solve_probe,
    solve_probes,
)


def problem(seed: int, n: int = 60, d: int = 7, k: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % k
    centres = torch.randn(k, d, generator=g)
    return centres[labels] + torch.randn(n, d, generator=g), labels


@pytest.mark.parametrize("l2", [1e-3, 0.1, 3.0])
def test_probe_agrees_with_scikit_learn(l2: float) -> None:
    x, y = problem(0)
    probe = solve_probe(x, y, 4, l2)
    # scikit-learn minimises C * sum of losses + |W|^2 / 2, so C = 1 / (l2 N)
    standard = StandardScaler().fit_transform(x.double().numpy())
    oracle = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=10_000)
    oracle.fit(standard, y.numpy())
    np.testing.assert_allclose(probe.weight_KD.numpy(), oracle.coef_, atol=2e-4)
    new, _ = problem(1)
    assert (
        probe.predict(new).numpy()
        == oracle.predict((new.double().numpy() - standard_mean(x)) / standard_std(x))
    ).all()


def standard_mean(x: torch.Tensor) -> np.ndarray:
    return x.double().mean(0).numpy()


def standard_std(x: torch.Tensor) -> np.ndarray:
    return x.double().std(0, correction=0).numpy()


def test_under_a_strong_penalty_the_weights_are_one_gradient_step_from_the_class_shares() -> None:
    # The limit of a strong penalty in closed form; zero biases to start from miss it by a percent.
    g = torch.Generator().manual_seed(1)
    counts, l2 = torch.tensor([25, 25, 10, 15, 25]), 1e5
    y = torch.arange(5).repeat_interleave(counts)
    x = torch.randn(5, 8, generator=g)[y] + torch.randn(len(y), 8, generator=g)
    standard = (x.double() - torch.from_numpy(standard_mean(x))) / torch.from_numpy(standard_std(x))
    residual = F.one_hot(y, 5) - counts / len(y)
    probe = solve_probe(x, y, 5, l2)
    limit = residual.double().T @ standard / len(y) / l2
    torch.testing.assert_close(probe.weight_KD, limit, rtol=1e-3, atol=0)


def test_weak_penalties_end_on_separable_classes() -> None:
    x, y = problem(5, n=24, d=30)
    *_, probe = solve_probes(x, y, 4, [1e-2, 1e-4, 1e-6])
    assert torch.equal(probe.predict(x), y)
    logits = F.linear((x.double() - probe.mean_D) / probe.scale_D, probe.weight_KD, probe.bias_K)
    assert F.cross_entropy(logits, y) < 1e-4 and probe.weight_KD.abs().max() < 100


def test_a_class_without_examples_is_never_predicted() -> None:
    x, y = problem(6)
    probe = solve_probe(x, torch.where(y == 2, 4, y), 6, 0.1)
    assert set(probe.predict(x).tolist()) <= {0, 1, 3, 4}


def test_a_constant_feature_changes_nothing() -> None:
    x, y = problem(2)
    with_constant = torch.cat([x, torch.full((len(x), 1), 3.0)], dim=1)
    new, _ = problem(3)
    plain = solve_probe(x, y, 4, 0.1).predict(new)
    padded = torch.cat([new, torch.full((len(new), 1), 3.0)], dim=1)
    assert torch.equal(plain, solve_probe(with_constant, y, 4, 0.1).predict(padded))


def test_validation_chooses_and_ties_go_to_the_stronger_penalty() -> None:
    x, y = problem(4, n=40)
    probe, l2, accuracy = best_probe((x, y), (x, y), 4, (1e-6, 1e-2, 1e4))
    assert accuracy == float((probe.predict(x) == y).double().mean())
    every = {v: solve_probe(x, y, 4, v).predict(x) for v in (1e-6, 1e-2, 1e4)}
    scores = {v: float((p == y).double().mean()) for v, p in every.items()}
    assert l2 == max(v for v, s in scores.items() if s == max(scores.values()))


# -- the recipe of the paper's code ----------------------------------------------------------------


def by_adam(x: torch.Tensor, y: torch.Tensor, epochs: int = 50, batch: int = 16) -> list[Probe]:
    order = np.random.default_rng(0)
    return list(adam_probes(x, y, 4, order, epochs=epochs, batch_size=batch, lr=0.01))


def test_adam_takes_the_steps_of_a_linear_layer_under_torch() -> None:
    x, y = problem(7, n=30)
    layer = torch.nn.Linear(7, 4)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    adam = torch.optim.Adam(layer.parameters(), lr=0.01)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=3 * 2)
    order = np.random.default_rng(0)
    for found in by_adam(x, y, epochs=3):
        rows = order.permutation(30)
        for batch in (rows[:16], rows[16:]):
            adam.zero_grad()
            F.cross_entropy(layer(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            adam.step()
            falling.step()
        torch.testing.assert_close(found.weight_KD.float(), layer.weight.detach())
        torch.testing.assert_close(found.bias_K.float(), layer.bias.detach())


def test_adam_learns_and_yields_every_epoch() -> None:
    x, y = problem(8)
    probes = by_adam(x, y)
    right = [float((probe.predict(x) == y).double().mean()) for probe in probes]
    assert len(probes) == 50 and right[-1] > 0.8
    moved = [float((b.weight_KD - a.weight_KD).norm()) for a, b in pairwise(probes)]
    assert moved[-1] < 0.05 * moved[0]


def test_adam_takes_features_as_they_are() -> None:
    x, y = problem(9)
    assert not torch.equal(by_adam(x, y)[-1].predict(x), by_adam(x * 0.01, y)[-1].predict(x * 0.01))
