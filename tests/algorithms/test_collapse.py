import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dp4tl_ray.algorithms.collapse import effective_rank, embedding_spread


def gaussian(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_features_all_over_the_sphere_have_spread_one_and_full_rank() -> None:
    axes = torch.cat([torch.eye(6), -torch.eye(6)])
    assert embedding_spread(axes) == pytest.approx(1, rel=1e-14)
    assert effective_rank(axes) == pytest.approx(6, rel=1e-14)
    assert embedding_spread(5 * gaussian(4000, 8)) == pytest.approx(1, abs=0.01)
    assert effective_rank(5 * gaussian(4000, 8)) == pytest.approx(8, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_features_have_neither(value: float) -> None:
    features = torch.full((1000, 5), value) * torch.arange(1, 6)
    assert embedding_spread(features) == pytest.approx(0, abs=1e-12)
    assert effective_rank(features) == 0


def test_features_on_a_line_have_rank_one_where_their_spread_may_be_full() -> None:
    position = gaussian(200, 1)
    line = position - position.mean() + torch.zeros(200, 4)
    assert effective_rank(line + 7) == pytest.approx(1, rel=1e-6)
    # both ends of the diagonal: every dimension takes both of its values
    assert embedding_spread(line) == pytest.approx(1, abs=0.02)
    # away from the origin, the line's directions are nearly the same
    assert embedding_spread(line + 700) < 0.01


def test_spread_from_its_definition() -> None:
    rows = gaussian(30, 5, seed=1).exp().double().tolist()
    unit = [[x / math.hypot(*row) for x in row] for row in rows]
    deviations = []
    for d in range(5):
        mean = sum(row[d] for row in unit) / 30
        deviations.append(math.sqrt(sum((row[d] - mean) ** 2 for row in unit) / 30))
    expected = math.sqrt(5) * sum(deviations) / 5
    assert embedding_spread(torch.tensor(rows)) == pytest.approx(expected, rel=1e-12)
    assert 0.1 < expected < 0.9


def test_effective_rank_from_its_definition() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 4)) * [3, 1, 0.5, 0.1] + 10
    # singular values are the roots of the scatter matrix's eigenvalues
    values = np.sqrt(np.linalg.eigvalsh(np.cov(features.T) * 39))
    shares = [v / values.sum() for v in values.tolist()]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(torch.from_numpy(features)) == pytest.approx(expected, rel=1e-9)
    assert 1.5 < expected < 3.5
