import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linprog
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax

from dp4tl_ray.algorithms.label_mapping import label_mapping_scores
from dp4tl_ray.algorithms.memory import MemoryLimitError
from dp4tl_ray.algorithms.transport import (
    capacitated_plan,
    importance,
    transport_mapping,
)

Floats = npt.NDArray[np.float64]
UNIFORM_PRIOR = np.full(8, 1 / 8)
SKEWED_PRIOR = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.06, 0.04])


def costs(seed: int, n: int = 60, units: int = 8) -> Floats:
    """Return costs of a target that prefers some units to others."""
    rng = np.random.default_rng(seed)
    cost: Floats = rng.normal(0, 2, (n, units)) + rng.normal(0, 2, units)
    return cost


def objective(plan: Floats, cost: Floats, temperature: float) -> float:
    entropic = np.where(plan > 0, plan * (np.log(np.maximum(plan, 1e-300)) - 1), 0)
    return float((plan * cost).sum() + temperature * entropic.sum())


def scaled_plan(cost: Floats, capacity: Floats, temperature: float) -> Floats:
    """Solve by 1500 alternate scalings, straight from the definition."""
    potential = np.zeros(cost.shape[1])
    for _ in range(1500):
        row = -temperature * logsumexp((potential - cost) / temperature, axis=1)
        column = logsumexp((row[:, None] - cost) / temperature, axis=0)
        potential = np.minimum(0, temperature * (np.log(capacity) - column))
    plan: Floats = softmax((potential - cost) / temperature, axis=1)
    return plan


@pytest.mark.parametrize("seed", range(3))
def test_zero_temperature_is_label_mapping(seed: int) -> None:
    logits = costs(seed).astype(np.float32)
    votes, mass = label_mapping_scores(logits)
    assert (transport_mapping(-logits) == votes).all()
    np.testing.assert_allclose(transport_mapping(-logits, temperature=1), mass, rtol=1e-6)


def test_zero_temperature_with_squared_distances_is_feature_mapping() -> None:
    rng = np.random.default_rng(0)
    cost = cdist(rng.normal(size=(50, 4)), rng.normal(size=(7, 4)), "sqeuclidean")
    votes = [sum(row.tolist().index(min(row)) == unit for row in cost) for unit in range(7)]
    assert transport_mapping(cost).tolist() == votes


def test_votes_go_to_the_lower_of_tied_units() -> None:
    assert transport_mapping(np.array([[1.0, 0.0, 0.0], [2.0, 2.0, 2.0]])).tolist() == [1, 1, 0]


def test_a_soft_mapping_sums_the_softmax_of_each_row() -> None:
    cost = costs(1)
    by_hand = softmax(-cost / 0.7, axis=1).sum(axis=0)
    np.testing.assert_allclose(transport_mapping(cost, temperature=0.7), by_hand, rtol=1e-12)


def test_temperature_leads_from_the_vote_to_uniform() -> None:
    cost = costs(2)
    votes = transport_mapping(cost)
    for tiny in (1e-6, 1e-300):
        np.testing.assert_allclose(transport_mapping(cost, temperature=tiny), votes, atol=1e-9)
    np.testing.assert_allclose(transport_mapping(cost, temperature=1e9), 60 / 8, rtol=1e-6)


def test_a_capacity_that_binds_nowhere_changes_nothing() -> None:
    cost = costs(3)
    free = transport_mapping(cost, temperature=0.5)
    for capacity in (np.inf, 1e6, 8.0):
        limited = transport_mapping(cost, temperature=0.5, capacity=capacity)
        np.testing.assert_allclose(limited, free, rtol=1e-9)


@pytest.mark.parametrize("temperature", [1e-9, 1e-3, 0.05, 1.0])
@pytest.mark.parametrize("capacity", [1.0, 1.01, 1.5, 3.0])
@pytest.mark.parametrize("prior", [UNIFORM_PRIOR, SKEWED_PRIOR])
def test_no_unit_exceeds_its_capacity(temperature: float, capacity: float, prior: Floats) -> None:
    mass = transport_mapping(costs(4), temperature=temperature, capacity=capacity, prior_U=prior)
    assert (mass <= capacity * 60 * prior * (1 + 1e-12)).all()
    assert (mass >= 0).all()
    assert abs(mass.sum() - 60) < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_a_cold_plan_costs_what_the_linear_program_does(seed: int) -> None:
    cost, capacity = costs(seed, 20, 6), np.full(6, 1.3 * 20 / 6)
    rows = np.kron(np.eye(20), np.ones(6))
    columns = np.kron(np.ones(20), np.eye(6))
    program = linprog(cost.ravel(), columns, capacity, rows, np.ones(20), method="highs")
    plan = capacitated_plan(cost, capacity, 1e-4)
    assert (plan * cost).sum() >= program.fun - 1e-9
    assert (plan * cost).sum() <= program.fun + 1e-4 * 20 * np.log(6)
    mass = transport_mapping(cost, temperature=1e-4, capacity=1.3)
    np.testing.assert_allclose(mass, program.x.reshape(20, 6).sum(axis=0), atol=1e-3)


@pytest.mark.parametrize("prior", [UNIFORM_PRIOR, SKEWED_PRIOR])
def test_the_plan_is_the_fixed_point_of_alternate_scaling(prior: Floats) -> None:
    cost, capacity = costs(5, 15), 1.2 * 15 * prior
    expected = scaled_plan(cost, capacity, 1.0)
    np.testing.assert_allclose(capacitated_plan(cost, capacity, 1.0), expected, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_no_feasible_plan_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, capacity = costs(seed), 1.5 * 60 * SKEWED_PRIOR
    plan = capacitated_plan(cost, capacity, 0.3)
    best = objective(plan, cost, 0.3)
    np.testing.assert_allclose(plan.sum(axis=1), 1, rtol=1e-12)
    for size in (1.0, 0.1, 1e-3):
        for _ in range(25):
            other = capacitated_plan(rng.normal(size=cost.shape), capacity, 1.0)
            assert objective(plan + size * (other - plan), cost, 0.3) > best


@pytest.mark.parametrize("capacity", [None, 1.5])
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_permutations_and_row_constants_pass_through(
    capacity: float | None, temperature: float
) -> None:
    rng = np.random.default_rng(0)
    cost = costs(6)

    def mapped(cost: Floats, prior: Floats = SKEWED_PRIOR) -> Floats:
        return transport_mapping(cost, temperature=temperature, capacity=capacity, prior_U=prior)

    mass = mapped(cost)
    units = rng.permutation(8)
    np.testing.assert_allclose(mapped(cost[:, units], SKEWED_PRIOR[units]), mass[units], atol=1e-6)
    np.testing.assert_allclose(mapped(cost[rng.permutation(60)]), mass, atol=1e-6)
    np.testing.assert_allclose(mapped(cost + rng.normal(0, 9, (60, 1))), mass, atol=1e-6)


def test_a_cheaper_unit_receives_more() -> None:
    cost = costs(7)
    cheaper = cost - np.eye(8)[2]
    for capacity in (None, 2.5):
        before = transport_mapping(cost, temperature=1.0, capacity=capacity)
        assert transport_mapping(cheaper, temperature=1.0, capacity=capacity)[2] > before[2]


def test_capacity_spreads_what_would_pile_up() -> None:
    cost = np.tile([0.0, 1.0, 2.0, 3.0], (10, 1))
    assert transport_mapping(cost).tolist() == [10, 0, 0, 0]
    mass = transport_mapping(cost, temperature=0.01, capacity=2.0)
    np.testing.assert_allclose(mass, [5, 5, 0, 0], atol=1e-6)


def test_a_unit_without_source_examples_receives_nothing_under_a_capacity() -> None:
    prior = np.array([0.0, 0.5, 0.5])
    mass = transport_mapping(costs(8, 20, 3), temperature=0.1, capacity=1.5, prior_U=prior)
    assert mass[0] == 0
    assert abs(mass.sum() - 20) < 1e-9


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_chunks_do_not_change_the_mass(temperature: float) -> None:
    cost = costs(9).astype(np.float16)
    whole = transport_mapping(cost, temperature=temperature)
    pieces = transport_mapping(cost, temperature=temperature, chunk_bytes=700)
    np.testing.assert_allclose(pieces, whole, rtol=1e-12)


def test_importance_is_the_ratio_of_shares() -> None:
    ratio = importance(np.array([6.0, 2.0, 2.0]), np.array([0.5, 0.5, 0.0]))
    np.testing.assert_allclose(ratio, [1.2, 0.4, 0.0])
    with pytest.raises(ValueError, match="sum 1"):
        importance(np.ones(2), np.ones(2))


def test_settings_that_cannot_work_are_refused() -> None:
    cost = costs(0)
    with pytest.raises(ValueError, match=r"such as 0\.05"):
        transport_mapping(cost, capacity=2.0)
    with pytest.raises(ValueError, match="1 or more"):
        transport_mapping(cost, temperature=1.0, capacity=0.9)
    with pytest.raises(ValueError, match="temperature"):
        transport_mapping(cost, temperature=-1.0)
    with pytest.raises(ValueError, match="8 units"):
        transport_mapping(cost, temperature=1.0, capacity=2.0, prior_U=np.ones(3) / 3)
    with pytest.raises(ValueError, match="finite"):
        transport_mapping(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="examples by units"):
        transport_mapping(np.empty((0, 3)))
    with pytest.raises(MemoryLimitError, match="no capacity"):
        transport_mapping(cost, temperature=1.0, capacity=2.0, limit_bytes=100)
