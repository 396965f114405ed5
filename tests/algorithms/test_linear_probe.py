import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dp4tl_ray.algorithms.linear_probe import best_probe, solve_probe


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
