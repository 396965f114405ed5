import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dp4tl_ray.algorithms.knn_classifier import best_k, knn_predict
from tests.algorithms.test_linear_probe import problem

TEMPERATURE = 0.07


def by_loops(
    train: tuple[torch.Tensor, torch.Tensor], query: torch.Tensor, k: int, temperature: float
) -> list[int]:
    predicted = []
    for q in query.double():
        cosines = [float(q @ t / (q.norm() * t.norm())) for t in train[0].double()]
        nearest = sorted(range(len(cosines)), key=lambda n: -cosines[n])[:k]
        votes = dict.fromkeys(range(4), 0.0)
        for n in nearest:
            votes[int(train[1][n])] += math.exp(cosines[n] / temperature)
        predicted.append(max(votes, key=lambda label: votes[label]))
    return predicted


@pytest.mark.parametrize("temperature", [TEMPERATURE, 1.0])
def test_votes_agree_with_loops(temperature: float) -> None:
    train, (query, _) = problem(0), problem(1, n=25)
    found = knn_predict(train, query, 4, (9, 1, 30), temperature, chunk_bytes=2000)
    assert set(found) == {1, 9, 30}
    for k, predicted in found.items():
        assert predicted.tolist() == by_loops(train, query, k, temperature), k


def test_votes_agree_with_scikit_learn() -> None:
    train, (query, _) = problem(2, n=80), problem(3, n=40)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / TEMPERATURE)

    for k in (1, 7, 80):
        oracle = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
        oracle.fit(train[0].double().numpy(), train[1].numpy())
        found = knn_predict(train, query, 4, [k], TEMPERATURE)[k]
        assert np.array_equal(found.numpy(), oracle.predict(query.double().numpy()))


def test_lengths_of_features_do_not_matter_and_zeros_are_near_nothing() -> None:
    x, y = problem(4)
    query = torch.cat([problem(5, n=20)[0], torch.zeros(1, 7)])
    plain = knn_predict((x, y), query, 4, [5], TEMPERATURE)[5]
    scaled = knn_predict((x * torch.arange(1, 61)[:, None], y), query * 9, 4, [5], TEMPERATURE)[5]
    assert torch.equal(plain, scaled)
    beside = torch.tensor([[0.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 1])
    assert knn_predict(beside, torch.tensor([[1.0, 0.0]]), 2, [1], TEMPERATURE)[1].tolist() == [1]


def test_a_tiny_temperature_is_the_nearest_neighbour() -> None:
    train, (query, _) = problem(6), problem(7)
    found = knn_predict(train, query, 4, [1, 60], 1e-9)
    assert torch.equal(found[60], found[1])


def test_validation_chooses_and_ties_go_to_the_smaller_number() -> None:
    train, val = problem(8), problem(8, n=80)
    ks = (200, 1, 5, 20)
    right = {
        k: float((knn_predict(train, val[0], 4, [k], TEMPERATURE)[k] == val[1]).double().mean())
        for k in (1, 5, 20, 60)
    }
    k, accuracy = best_k(train, val, 4, ks, TEMPERATURE)
    assert accuracy == max(right.values()) == right[k]
    assert k == min(n for n in right if right[n] == accuracy)
    alone = train[0][:3], torch.zeros(3, dtype=torch.int64)
    assert best_k(alone, alone, 4, (200, 5, 2), TEMPERATURE) == (2, 1.0)
    assert best_k(alone, alone, 4, (200, 5), TEMPERATURE) == (3, 1.0)


def test_more_neighbours_than_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[9, 61\] neighbours among 60 examples"):
        knn_predict(problem(0), problem(1)[0], 4, (61, 9), TEMPERATURE)
