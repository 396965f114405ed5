import numpy as np
import pytest

from dp4tl_ray.algorithms.schedules import debiased_rate, lr_factor, momentum_at

NAMES = ["cyclic", "one_cycle", "cosine"]


@pytest.mark.parametrize("name", NAMES)
def test_rises_to_the_peak_and_falls_to_zero(name: str) -> None:
    values = [lr_factor(name, 0.25, i / 100) for i in range(101)]  # type: ignore[arg-type]
    assert values[0] == 0
    assert values[25] == pytest.approx(1)
    assert values[100] == pytest.approx(0)
    assert values[:26] == sorted(values[:26])
    assert values[25:] == sorted(values[25:], reverse=True)


def test_cyclic_is_the_papers_triangle() -> None:
    # 16 epochs, peak at epoch 2, linear to 0 at the end
    assert lr_factor("cyclic", 2 / 16, 1 / 16) == pytest.approx(0.5)
    assert lr_factor("cyclic", 2 / 16, 9 / 16) == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_ends_of_the_warmup_range(name: str) -> None:
    assert lr_factor(name, 0.0, 0.0) == pytest.approx(1)  # type: ignore[arg-type]
    assert lr_factor(name, 1.0, 0.999) == pytest.approx(1, abs=1e-2)  # type: ignore[arg-type]


def test_momentum_rises_to_one_along_half_a_cosine() -> None:
    assert momentum_at(0.99, 0) == pytest.approx(0.99, abs=1e-15)
    assert momentum_at(0.99, 1) == 1
    # of the way to 1: half after half of the budget, and 1/4 after a third, where the cosine is 1/2
    assert momentum_at(0.9, 1 / 2) == pytest.approx(0.95)
    assert momentum_at(0.9, 1 / 3) == pytest.approx(0.925)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_a_debiased_average_is_its_closed_form(momentum: float) -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    average, weight = 1e6, 0.0  # where it starts has no part in it
    for n, value in enumerate(values, 1):
        rate, weight = debiased_rate(momentum, weight)
        average += rate * (value - average)
        terms = [(1 - momentum) * momentum ** (n - i) * values[i - 1] for i in range(1, n + 1)]
        assert average == pytest.approx(sum(terms) / (1 - momentum**n), rel=1e-9, abs=1e-9)


def test_a_debiased_average_under_a_changing_momentum_weighs_values_as_the_plain_one() -> None:
    values = np.random.default_rng(1).normal(size=50).tolist()
    momenta = [momentum_at(0.9, i / 49) for i in range(50)]
    average, weight, plain, weights = 0.0, 0.0, 0.0, [0.0] * 50
    for i, (value, momentum) in enumerate(zip(values, momenta, strict=True)):
        rate, weight = debiased_rate(momentum, weight)
        average += rate * (value - average)
        plain = momentum * plain + (1 - momentum) * value
        weights = [momentum * w for w in weights]
        weights[i] += 1 - momentum
        assert average == pytest.approx(plain / sum(weights))
    assert weight == pytest.approx(sum(weights)) and rate == 0
