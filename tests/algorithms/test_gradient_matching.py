from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from dp4tl_ray.algorithms import gradient_matching
from dp4tl_ray.algorithms.gradient_matching import (
    gradient_gram,
    gradient_matching_scores,
    map_labels,
    target_gradient,
)
from dp4tl_ray.algorithms.memory import MemoryLimitError, row_chunks

GIB = 2.0**30
CLASSES, DIM = 6, 5


class Examples(NamedTuple):
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> "Examples":
        return Examples(self.logits[rows], self.features[rows], self.labels[rows])


def examples(seed: int, n: int = 40) -> Examples:
    """Logits of a linear head that is the same for every seed."""
    generator = np.random.default_rng(seed)
    head = np.random.default_rng(99).normal(size=(DIM, CLASSES))
    features = generator.normal(size=(n, DIM)).astype(np.float32)
    logits = (features @ head).astype(np.float32)
    return Examples(logits, features, generator.integers(0, CLASSES, n))


def errors(e: Examples) -> npt.NDArray[np.float32]:
    error = torch.softmax(torch.from_numpy(e.logits), dim=1).numpy()
    error[np.arange(len(e.labels)), e.labels] -= 1
    return error


def autograd(e: Examples) -> npt.NDArray[np.float64]:
    """The gradient of each example with respect to a head that yields its logits, (N, C, D+1)."""
    gradients = []
    for logits, features, label in zip(*e, strict=True):
        weight = torch.zeros(CLASSES, DIM + 1, dtype=torch.float64, requires_grad=True)
        h1 = torch.from_numpy(np.append(features, 1).astype(float))
        loss = F.cross_entropy(torch.from_numpy(logits).double() + weight @ h1, torch.tensor(label))
        gradients.append(torch.autograd.grad(loss, weight)[0].numpy())
    return np.stack(gradients)


def greedy_by_hand(g: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < len(g):
        aim = (len(chosen) + 1) * target - g[chosen].sum(axis=0)
        left = [j for j in range(len(g)) if j not in chosen]
        chosen.append(min(left, key=lambda j: float(np.linalg.norm(aim - g[j]))))
    return chosen


def whole(n: int) -> npt.NDArray[np.int64]:
    return np.zeros(n, np.int64)


def scores(
    source: Examples,
    target: npt.NDArray[np.float64],
    block: npt.NDArray[np.int64],
    limit_bytes: float = GIB,
) -> npt.NDArray[np.float64]:
    return gradient_matching_scores(*source, target, block, limit_bytes=limit_bytes)


def order_of(score: npt.NDArray[np.float64]) -> list[int]:
    return [int(i) for i in np.argsort(-score, kind="stable")]


def test_the_gram_matrix_matches_explicit_gradients() -> None:
    a, b = examples(0), examples(1, n=25)
    gram = gradient_gram(errors(a), a.features, errors(b), b.features)
    explicit = np.einsum("acd,bcd->ab", autograd(a), autograd(b))
    np.testing.assert_allclose(gram, explicit, atol=1e-5)


def test_the_target_gradient_matches_autograd() -> None:
    e = examples(2)
    np.testing.assert_allclose(target_gradient(*e), autograd(e).mean(axis=0), atol=1e-6)


def test_the_target_gradient_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    e = examples(3)
    half = (e.logits.astype(np.float16), e.features.astype(np.float16), e.labels)
    expected = target_gradient(*half)
    mapped = map_labels(half[0], e.labels)
    monkeypatch.setattr(gradient_matching, "row_chunks", partial(row_chunks, budget=300))
    np.testing.assert_allclose(target_gradient(*half), expected, atol=1e-6)
    assert (map_labels(half[0], e.labels) == mapped).all()


def test_a_target_class_takes_the_source_class_of_most_of_its_examples() -> None:
    votes = [3, 3, 1, 4, 0, 2, 2, 0]
    labels = np.array([7, 7, 7, 2, 2, 5, 5, 5])
    logits = np.eye(CLASSES, dtype=np.float32)[votes]
    # class 7: 3 by two to one; class 2: 0 and 4 tie; class 5: 2 by two to one
    assert map_labels(logits, labels).tolist() == [3, 3, 3, 0, 0, 2, 2, 2]


def test_two_target_classes_may_share_a_source_class() -> None:
    assert map_labels(np.eye(3)[[1, 1]], np.array([0, 1])).tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_matches_greedy_over_explicit_gradients(seed: int) -> None:
    source, target = examples(seed), target_gradient(*examples(seed + 10))
    score = scores(source, target, whole(40))
    order = greedy_by_hand(autograd(source), target)
    assert order_of(score) == order
    np.testing.assert_allclose(score[order], [-(i + 0.5) / 40 for i in range(40)])


def test_blocks_are_ordered_apart() -> None:
    source, target = examples(4), target_gradient(*examples(5))
    block = np.random.default_rng(0).integers(0, 3, 40) * 2
    score = scores(source, target, block)
    for b in (0, 2, 4):
        rows = np.flatnonzero(block == b)
        part = scores(source.take(rows), target, whole(len(rows)))
        assert score[rows].tolist() == part.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_coreset_matches_the_target_better_than_random(seed: int) -> None:
    """Most of all when the target is the source itself."""
    source = examples(seed, n=200)
    target, gradients = target_gradient(*source), autograd(source)
    order = order_of(scores(source, target, whole(200)))

    def distance(chosen: list[int]) -> float:
        return float(np.linalg.norm(gradients[chosen].mean(axis=0) - target))

    generator = np.random.default_rng(seed)
    drawn = [distance(generator.permutation(200)[:30].tolist()) for _ in range(50)]
    assert distance(order[:30]) < 0.6 * min(drawn)


def test_examples_of_the_targets_kind_come_first() -> None:
    """A third of the source has the target's labels, and pulls the head the way that it does."""
    target = examples(6, n=60)._replace(labels=np.ones(60, np.int64))
    source = examples(7, n=60)._replace(labels=np.arange(60) % 3)
    first = order_of(scores(source, target_gradient(*target), whole(60)))[:12]
    assert np.mean(source.labels[first] == 1) > 0.6


def test_permuting_the_examples_permutes_the_scores() -> None:
    source, target = examples(8), target_gradient(*examples(9))
    block = np.random.default_rng(1).integers(0, 2, 40)
    permutation = np.random.default_rng(2).permutation(40)
    moved_score = scores(source.take(permutation), target, block[permutation])
    assert moved_score.tolist() == scores(source, target, block)[permutation].tolist()


def test_ties_go_to_the_lower_index() -> None:
    e = Examples(np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32), np.array([0, 0, 1, 1]))
    assert order_of(scores(e, np.zeros((2, 2)), whole(4))) == [0, 2, 1, 3]


def test_a_block_that_does_not_fit_is_refused() -> None:
    source, target = examples(0), target_gradient(*examples(1))
    needed = 8 * 40 * (40 + CLASSES + DIM)
    scores(source, target, whole(40), limit_bytes=needed)
    with pytest.raises(MemoryLimitError, match="smaller blocks"):
        scores(source, target, whole(40), limit_bytes=needed - 1)


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    source, target = examples(0), target_gradient(*examples(1))
    with pytest.raises(ValueError, match="39 and 40 examples"):
        target_gradient(source.logits, source.features[:39], source.labels)
    with pytest.raises(ValueError, match=r"in \[0, 6\)"):
        target_gradient(source.logits, source.features, source.labels + 1)
    with pytest.raises(ValueError, match="no examples"):
        target_gradient(source.logits[:0], source.features[:0], source.labels[:0])
    with pytest.raises(ValueError, match="39 labels for 40"):
        map_labels(source.logits, source.labels[:39])
    with pytest.raises(ValueError, match=r"must be \(6, 6\)"):
        scores(source, target[:, 1:], whole(40))
    with pytest.raises(ValueError, match="one block per example"):
        scores(source, target, whole(39))
