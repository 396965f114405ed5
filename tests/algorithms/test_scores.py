import math

import numpy as np
import pytest

from dp4tl_ray.algorithms.example_scores import el2n_scores
from dp4tl_ray.algorithms.label_mapping import label_mapping_scores


def logits(seed: int, n: int = 30, classes: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (n, classes)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_label_mapping_matches_its_definition(seed: int) -> None:
    z = logits(seed)
    votes, mass = label_mapping_scores(z)
    votes_by_hand = [0] * 8
    mass_by_hand = [0.0] * 8
    for row in z:
        values = [float(v) for v in row]
        votes_by_hand[values.index(max(values))] += 1
        total = sum(math.exp(v) for v in values)
        for k, v in enumerate(values):
            mass_by_hand[k] += math.exp(v) / total
    assert votes.tolist() == votes_by_hand
    np.testing.assert_allclose(mass, mass_by_hand, rtol=1e-9)


def test_votes_of_two_targets_add_up() -> None:
    a, b = logits(1), logits(2)
    both, _ = label_mapping_scores(np.concatenate([a, b]))
    assert (both == label_mapping_scores(a)[0] + label_mapping_scores(b)[0]).all()


def test_permuting_the_classes_permutes_the_scores() -> None:
    z = logits(3)
    order = np.random.default_rng(0).permutation(8)
    votes, mass = label_mapping_scores(z)
    permuted_votes, permuted_mass = label_mapping_scores(z[:, order])
    assert (permuted_votes == votes[order]).all()
    np.testing.assert_allclose(permuted_mass, mass[order])


def test_huge_logits_do_not_overflow() -> None:
    _, mass = label_mapping_scores(np.array([[1e4, 0.0]], np.float32))
    assert mass.tolist() == [1.0, 0.0]


def test_el2n_matches_its_definition() -> None:
    z, labels = logits(4), np.arange(30) % 8
    for row, label, score in zip(z, labels, el2n_scores(z, labels), strict=True):
        p = [math.exp(float(v)) for v in row]
        p = [v / sum(p) for v in p]
        p[label] -= 1
        assert math.isclose(score, math.sqrt(sum(v * v for v in p)), rel_tol=1e-6)
