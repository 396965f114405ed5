import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from dp4tl_ray.algorithms.contrastive import info_nce, info_nce_in_batch, nt_xent
from dp4tl_ray.algorithms.key_queue import enqueue

TEMPERATURES = (0.07, 0.5, 1.0)


def embeddings(*rows: int, dim: int = 4) -> list[Tensor]:
    """Draw embeddings that are not of unit length."""
    g = torch.Generator().manual_seed(sum(rows))
    return [3 * torch.randn(n, dim, generator=g, dtype=torch.float64) for n in rows]


def cosine(x: Tensor, y: Tensor) -> float:
    a, b = x.tolist(), y.tolist()
    inner = sum(p * q for p, q in zip(a, b, strict=True))
    return float(inner / math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(q * q for q in b)))


def cross_entropy(own: float, others: Sequence[float], temperature: float) -> float:
    total = math.exp(own / temperature) + sum(math.exp(s / temperature) for s in others)
    return -math.log(math.exp(own / temperature) / total)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_query_is_told_from_the_queue(temperature: float) -> None:
    query, key, queue = embeddings(5, 5, 7)
    losses = [
        cross_entropy(cosine(query[i], key[i]), [cosine(query[i], q) for q in queue], temperature)
        for i in range(5)
    ]
    expected = sum(losses) / 5
    assert float(info_nce(query, key, queue, temperature)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_query_is_told_from_the_keys_of_the_batch(temperature: float) -> None:
    query, key = embeddings(6, 6)
    losses = []
    for i in range(6):
        others = [cosine(query[i], key[j]) for j in range(6) if j != i]
        losses.append(cross_entropy(cosine(query[i], key[i]), others, temperature))
    expected = 2 * temperature * sum(losses) / 6
    assert float(info_nce_in_batch(query, key, temperature)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_view_is_told_from_all_views_but_itself(temperature: float) -> None:
    first, second = embeddings(5, 5)
    views = [(i, view) for view in (0, 1) for i in range(5)]
    rows = {(i, view): (first, second)[view][i] for i, view in views}
    losses = []
    for i, view in views:
        partner = (i, 1 - view)
        others = [cosine(rows[i, view], rows[v]) for v in views if v not in (partner, (i, view))]
        losses.append(cross_entropy(cosine(rows[i, view], rows[partner]), others, temperature))
    expected = sum(losses) / 10
    assert float(nt_xent(first, second, temperature)) == pytest.approx(expected, rel=1e-12)


def test_after_a_collapse_the_loss_counts_the_candidates() -> None:
    same = torch.ones(4, 3)
    assert float(info_nce(same, same, torch.ones(9, 3), 0.1)) == pytest.approx(math.log(1 + 9))
    assert float(info_nce_in_batch(same, same, 0.1)) == pytest.approx(0.2 * math.log(4))
    assert float(nt_xent(same, same, 0.1)) == pytest.approx(math.log(8 - 1))


@pytest.mark.parametrize(
    ("loss", "rows"), [(info_nce, (3, 3, 4)), (info_nce_in_batch, (4, 4)), (nt_xent, (3, 3))]
)
def test_gradients_are_those_of_the_loss(loss: Callable[..., Tensor], rows: list[int]) -> None:
    inputs = [x.requires_grad_() for x in embeddings(*rows)]
    assert torch.autograd.gradcheck(partial(loss, temperature=0.3), inputs)


@pytest.mark.parametrize(
    ("loss", "rows"), [(info_nce, (8, 8, 9)), (info_nce_in_batch, (8, 8)), (nt_xent, (8, 8))]
)
def test_half_precision_and_autocast_cost_no_bits(
    loss: Callable[..., Tensor], rows: list[int]
) -> None:
    half = [x.bfloat16() for x in embeddings(*rows)]
    expected = loss(*(x.float() for x in half), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(*half, 0.1)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_keys_may_be_enqueued_before_the_backward_pass() -> None:
    query, key, queue = embeddings(4, 4, 8)
    query.requires_grad_()
    (expected,) = torch.autograd.grad(info_nce(query, key, queue, 0.2), query)
    loss = info_nce(query, key, queue, 0.2)
    enqueue(queue, torch.tensor(6), key)
    assert torch.equal(torch.autograd.grad(loss, query)[0], expected)
