from itertools import pairwise

import numpy as np
import pytest

from dp4tl_ray.algorithms.label_mapping import label_mapping_scores
from dp4tl_ray.algorithms.selection import Scores, kept_indices


def scores(seed: int, units: int = 9, n: int = 100) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores(
        score_U=rng.integers(0, 3, units).astype(float),  # many ties
        tie_break_U=rng.integers(0, 2, units).astype(float),
        unit_of_N=rng.integers(0, units, n),
        priority_N=rng.random(n),
    )


def kept_by_hand(s: Scores, ratio: float) -> list[int]:
    """The definition, in loops: best unit first, in it the highest priority first."""
    units = sorted(range(len(s.score_U)), key=lambda u: (-s.score_U[u], -s.tie_break_U[u], u))
    order = []
    for unit in units:
        members = [i for i in range(len(s.unit_of_N)) if s.unit_of_N[i] == unit]
        order += sorted(members, key=lambda i: -s.priority_N[i])
    return sorted(order[: round((1 - ratio) * len(order))])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.77, 0.95])
def test_kept_examples_match_the_definition(seed: int, ratio: float) -> None:
    s = scores(seed)
    assert kept_indices(s, ratio, whole_units=False).tolist() == kept_by_hand(s, ratio)


@pytest.mark.parametrize("whole_units", [False, True])
def test_pruning_more_keeps_a_subset(whole_units: bool) -> None:
    s = scores(1)
    kept = [set(kept_indices(s, r / 20, whole_units).tolist()) for r in range(20)]
    assert all(more >= less for more, less in pairwise(kept))
    assert len(kept[0]) == 100


def test_whole_units_keeps_the_papers_number_of_classes_whole() -> None:
    s = scores(2, units=10)
    kept = kept_indices(s, 0.7, whole_units=True)
    classes = np.unique(s.unit_of_N[kept])
    assert len(classes) == 3
    assert len(kept) == np.isin(s.unit_of_N, classes).sum()
    worst_kept = min(s.score_U[classes])
    assert worst_kept >= max(np.delete(s.score_U, classes))


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2.0, float("nan")])
def test_a_ratio_outside_the_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="pruning_ratio"):
        kept_indices(scores(0), ratio, whole_units=False)


@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_the_order_of_the_classes_does_not_leak_into_what_is_kept(ratio: float) -> None:
    """With few votes most kept classes are ties; renumbering them must keep the same ones."""
    classes, per_class = 40, 5
    logits = np.random.default_rng(0).normal(0, 3, (8, classes)).astype(np.float32)
    names = np.arange(classes)
    permutation = np.random.default_rng(1).permutation(classes)
    kept_names = []
    for order in (names, permutation):
        votes, mass = label_mapping_scores(logits[:, order])
        assert (votes == 0).sum() >= classes - 8
        unit_of_N = np.repeat(np.arange(classes), per_class)
        s = Scores(votes.astype(float), mass, unit_of_N, np.zeros(len(unit_of_N)))
        kept = np.unique(unit_of_N[kept_indices(s, ratio, whole_units=True)])
        kept_names.append(set(names[order][kept].tolist()))
    assert kept_names[0] == kept_names[1]
