import math

import pytest
import torch
from torch import Tensor

from dp4tl_ray.algorithms.non_contrastive import negative_cosine, vicreg

Rows = list[list[float]]


def views(batch: int, dim: int, scale: float) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(batch)
    shared = torch.randn(batch, dim, generator=g, dtype=torch.float64)
    own = torch.randn(2, batch, dim, generator=g, dtype=torch.float64)
    return scale * (shared + 0.3 * own[0]), scale * (shared + 0.3 * own[1])


def test_cosines_are_averaged() -> None:
    prediction, target = views(6, 4, 2.0)
    cosines = []
    for p, t in zip(prediction.tolist(), target.tolist(), strict=True):
        inner = sum(a * b for a, b in zip(p, t, strict=True))
        cosines.append(inner / math.hypot(*p) / math.hypot(*t))
    actual = float(negative_cosine(prediction, target))
    assert actual == pytest.approx(-sum(cosines) / 6, rel=1e-12)


def test_the_squared_distance_of_unit_vectors_is_two_plus_twice_the_negative_cosine() -> None:
    prediction, target = views(5, 3, 4.0)
    distances = []
    for p, t in zip(prediction.tolist(), target.tolist(), strict=True):
        p, t = [a / math.hypot(*p) for a in p], [b / math.hypot(*t) for b in t]
        distances.append(math.dist(p, t) ** 2)
    actual = 2 + 2 * float(negative_cosine(prediction, target))
    assert actual == pytest.approx(sum(distances) / 5, rel=1e-12)


def covariance(rows: Rows, j: int, k: int) -> float:
    n = len(rows)
    mean = [sum(row[d] for row in rows) / n for d in range(len(rows[0]))]
    return sum((row[j] - mean[j]) * (row[k] - mean[k]) for row in rows) / (n - 1)


def vicreg_terms(first: Rows, second: Rows) -> tuple[float, float, float]:
    n, dim = len(first), len(first[0])
    distance = sum((first[i][d] - second[i][d]) ** 2 for i in range(n) for d in range(dim))
    lack, shared = 0.0, 0.0
    for rows in (first, second):
        for j in range(dim):
            lack += max(0.0, 1 - math.sqrt(covariance(rows, j, j) + 1e-4)) / dim
            shared += sum(covariance(rows, j, k) ** 2 for k in range(dim) if k != j) / dim
    return distance / (n * dim), lack / 2, shared


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (25, 24, 2)])
def test_vicreg_weighs_its_three_terms(weights: tuple[float, float, float]) -> None:
    first, second = views(7, 5, 0.9)
    terms = vicreg_terms(first.tolist(), second.tolist())
    assert min(terms) > 0.01  # else the hinge would hide what it is made of
    expected = sum(w * term for w, term in zip(weights, terms, strict=True))
    assert float(vicreg(first, second, *weights)) == pytest.approx(expected, rel=1e-12)


def test_vicreg_asks_for_nothing_where_dimensions_vary_and_differ() -> None:
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert float(vicreg(signs, signs, 25, 25, 1)) == 0
    assert float(vicreg(signs, -signs, 25, 25, 1)) == 25 * 4
    # a constant is worth 1 - sqrt(1e-4) in every dimension
    assert float(vicreg(0 * signs, 0 * signs, 25, 25, 1)) == pytest.approx(25 * 0.99)
    repeated = signs[:, :1].expand(4, 2)  # two dimensions, each variance and covariance 4/3
    assert float(vicreg(repeated, repeated, 25, 25, 1)) == pytest.approx(2 * (4 / 3) ** 2)


def test_gradients_are_those_of_the_losses() -> None:
    inputs = [x.requires_grad_() for x in views(5, 3, 0.8)]
    assert torch.autograd.gradcheck(negative_cosine, inputs)
    assert torch.autograd.gradcheck(lambda a, b: vicreg(a, b, 25, 25, 1), inputs)


def test_equal_embeddings_have_finite_gradients() -> None:
    same = torch.ones(4, 3, requires_grad=True)
    vicreg(same, same, 25, 25, 1).backward()  # type: ignore[no-untyped-call]
    assert same.grad is not None and same.grad.isfinite().all()


def test_half_precision_and_autocast_cost_no_bits() -> None:
    first, second = (x.bfloat16() for x in views(8, 6, 0.9))
    expected = vicreg(first.float(), second.float(), 25, 25, 1)
    cosine = negative_cosine(first.float(), second.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vicreg(first, second, 25, 25, 1), expected)
        assert torch.equal(negative_cosine(first, second), cosine)
    assert expected.dtype == cosine.dtype == torch.float32
