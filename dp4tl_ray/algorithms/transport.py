"""Target mappings as semi-relaxed optimal transport: how much of the target maps to each unit?

Every target example is one unit of mass and is sent to source units at least cost. Label mapping,
feature mapping (Zhang et al. 2023, arXiv:2310.08782), their soft forms and balanced forms differ
only in cost, temperature and capacity. Shapes: N target examples, U source units (classes or
clusters), C classes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.memory import CHUNK_BYTES, require_memory, row_chunks

Floats = npt.NDArray[np.float64]
Costs = npt.NDArray[np.floating[Any]]

LIMIT_BYTES = 4 * 2**30
TOLERANCE = 1e-9
"""Share of the mass that may be off capacity when the solver stops; it is then moved exactly."""
LOOSE_TOLERANCE = 1e-3
"""The same at temperatures passed on the way down, which only provide a start."""
MIN_TEMPERATURE = 1e-6
"""As a share of the range of costs: colder is beyond what float64 potentials resolve."""
MAX_STEPS = 500


def transport_mapping(
    cost_NU: Costs,
    *,
    temperature: float = 0.0,
    capacity: float | None = None,
    prior_U: Floats | None = None,
    limit_bytes: float = LIMIT_BYTES,
    chunk_bytes: int = CHUNK_BYTES,
) -> Floats:
    """Return the mass of the target that each source unit receives, (U,); it sums to N.

    Minimises sum(plan * cost) + temperature * sum(plan * (log(plan) - 1)) over plans (N, U) whose
    rows sum to 1. At temperature 0 each example votes for its cheapest unit (the lower index on
    ties): label mapping with -logits as cost, feature mapping with squared distances. Above 0 a
    row of the plan is softmax(-cost / temperature). With a capacity, unit u absorbs at most
    capacity * prior_u * N, and what does not fit goes to the next best units: coverage.

    Adding a constant to a row of costs changes nothing, so -logits and -log p are the same cost.

    Args:
        cost_NU: Finite costs; read in chunks where there is no capacity.
        temperature: In the unit of the cost; 0 or more.
        capacity: Times its share of the source that a unit may absorb, 1 or more; None or inf
            is no limit. Needs a temperature above 0. At 1 every unit receives its share, whatever
            the cost.
        prior_U: Share of the source in each unit, sums to 1; uniform if None. Only a capacity
            uses it: a unit without source examples then receives nothing.
        limit_bytes: Memory that a capacity may use.
        chunk_bytes: Memory of a chunk where there is no capacity.

    Raises:
        ValueError: A cost is not finite, or temperature, capacity or prior is out of range.
        MemoryLimitError: 20 N U + 24 U^2 bytes are more than limit_bytes (only with a capacity).

    Higher is kept. Memory: O(chunk) without capacity, 20 N U + 24 U^2 bytes with one.
    """
    num_rows, num_units = _checked_shape(cost_NU)
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if capacity is None or capacity == np.inf:
        return _unlimited(cost_NU, temperature, chunk_bytes)
    if temperature == 0:
        raise ValueError("a capacity needs a temperature above 0; a small one such as 0.05 will do")
    if not capacity >= 1:
        raise ValueError(
            f"capacity must be 1 or more, got {capacity}: less than all of the target would fit"
        )
    share_U = np.full(num_units, 1 / num_units) if prior_U is None else _checked(prior_U, num_units)
    if capacity == 1:
        return share_U * num_rows
    (units,) = share_U.nonzero()
    plan = capacitated_plan(
        cost_NU if len(units) == num_units else cost_NU[:, units],
        capacity * num_rows * share_U[units],
        temperature,
        limit_bytes=limit_bytes,
    )
    mass_U = np.zeros(num_units)
    mass_U[units] = plan.sum(axis=0)
    return mass_U


def capacitated_plan(
    cost_NU: Costs, capacity_U: Floats, temperature: float, *, limit_bytes: float = LIMIT_BYTES
) -> Floats:
    """Return the plan (N, U) of least entropic cost whose columns stay within capacity.

    The plan is softmax((potential - cost) / temperature) per row, with a potential of at most 0
    per unit: the solution of a convex dual, reached by damped Newton steps while the temperature
    halves from the range of costs down. Alternate scaling (Sinkhorn) solves the same dual, but
    needs tens of thousands of passes at low temperatures.

    Args:
        cost_NU: Finite costs.
        capacity_U: Mass that each unit may absorb, above 0; sums to N or more.
        temperature: Above 0. One below 1e-6 of the range of costs counts as that.
        limit_bytes: Memory that may be used.

    Raises:
        ValueError: A cost is not finite, or the solver does not converge.
        MemoryLimitError: 20 N U + 24 U^2 bytes are more than limit_bytes.
    """
    num_rows, num_units = _checked_shape(cost_NU)
    require_memory(
        20 * num_rows * num_units + 24 * num_units**2,
        limit_bytes,
        f"capacity for {num_rows} target examples and {num_units} units, 20 N U + 24 U^2",
        "use no capacity, or a part of the target",
    )
    cost = np.asarray(cost_NU, np.float64)
    _require_finite(cost)
    plan = np.empty_like(cost)
    potential_U = np.zeros(num_units)
    target = max(temperature, MIN_TEMPERATURE * float(np.ptp(cost)))
    current = max(target, float(np.ptp(cost)))
    while current > target:
        potential_U = _newton(cost, capacity_U, current, potential_U, LOOSE_TOLERANCE, plan)
        current = max(target, current / 2)
    _newton(cost, capacity_U, target, potential_U, TOLERANCE, plan)
    return _moved_within(plan, capacity_U)


def importance(mass_U: Floats, prior_U: Floats) -> Floats:
    """Return P_target / P_source of each unit, (U,): its share of the mass over its prior.

    Corrects for the size of a unit, which otherwise attracts mass. A unit without source examples
    gets 0. Ngiam et al. 2018, arXiv:1811.07056. Higher is kept.

    Args:
        mass_U: Mass of the target per unit, such as transport_mapping returns.
        prior_U: Share of the source in each unit, sums to 1.

    Raises:
        ValueError: The prior is not a distribution over the units.
    """
    share_U = _checked(prior_U, len(mass_U))
    ratio_U = np.zeros(len(mass_U))
    np.divide(mass_U, mass_U.sum() * share_U, out=ratio_U, where=share_U > 0)
    return ratio_U


def _unlimited(cost_NU: Costs, temperature: float, chunk_bytes: int) -> Floats:
    num_rows, num_units = cost_NU.shape
    mass_U = np.zeros(num_units)
    for part in row_chunks(num_rows, 24 * num_units, chunk_bytes):
        cost = np.asarray(cost_NU[part], np.float64)
        _require_finite(cost)
        if temperature == 0:
            mass_U += np.bincount(cost.argmin(axis=1), minlength=num_units)
        else:
            plan = np.empty_like(cost)
            _fill_plan(cost, np.zeros(num_units), temperature, plan)
            mass_U += plan.sum(axis=0)
    return mass_U


def _fill_plan(cost_NU: Floats, potential_U: Floats, temperature: float, plan_NU: Floats) -> float:
    """Write softmax((potential - cost) / temperature) into plan; return the sum of soft maxima."""
    np.subtract(potential_U, cost_NU, out=plan_NU)
    top_N1 = plan_NU.max(axis=1, keepdims=True)
    plan_NU -= top_N1
    with np.errstate(over="ignore"):  # far behind the best, at a tiny temperature: exp(-inf) is 0
        plan_NU /= temperature
    np.exp(plan_NU, out=plan_NU)
    total_N1 = plan_NU.sum(axis=1, keepdims=True)
    plan_NU /= total_N1
    return float(top_N1.sum() + temperature * np.log(total_N1).sum())


def _newton(
    cost_NU: Floats,
    capacity_U: Floats,
    temperature: float,
    potential_U: Floats,
    tolerance: float,
    plan_NU: Floats,
) -> Floats:
    """Minimise the dual, sum of soft maxima - capacity . potential, over potentials <= 0.

    Its gradient is mass - capacity, its Hessian (diag(mass) - plan^T plan) / temperature. Leaves
    the plan of the solution in plan_NU.
    """

    def dual(potential_U: Floats) -> float:
        soft_maxima = _fill_plan(cost_NU, potential_U, temperature, plan_NU)
        return soft_maxima - float(capacity_U @ potential_U)

    damping = 1e-3
    value = dual(potential_U)
    for _ in range(MAX_STEPS):
        mass_U = plan_NU.sum(axis=0)
        excess_U = mass_U - capacity_U
        free_U = _is_free(potential_U, excess_U)
        off = np.abs(excess_U[free_U]).sum()
        if off <= tolerance * len(cost_NU):
            return potential_U
        hessian = (plan_NU.T @ plan_NU)[np.ix_(free_U, free_U)]
        np.negative(hessian, out=hessian)
        # diag(mass) bounds the Hessian, and alone gives a step of scaling; the rest avoids 0 / 0
        bound_U = mass_U[free_U] + 1e-12 * len(cost_NU)
        while True:
            damped = hessian.copy()
            damped[np.diag_indices_from(damped)] += mass_U[free_U] + damping * bound_U
            step_U = np.linalg.solve(damped, temperature * excess_U[free_U])
            trial_U = potential_U.copy()
            trial_U[free_U] = np.minimum(0, potential_U[free_U] - step_U)
            trial_value = dual(trial_U)
            trial_excess_U = plan_NU.sum(axis=0) - capacity_U
            trial_off = np.abs(trial_excess_U[_is_free(trial_U, trial_excess_U)]).sum()
            decrease = excess_U @ (potential_U - trial_U)
            # near the solution the value only rounds, and the excess still tells
            if trial_value <= value - 1e-4 * decrease or trial_off < off / 2:
                break
            damping *= 10
        potential_U, value, damping = trial_U, trial_value, max(damping / 10, 1e-10)
    raise ValueError(
        f"no convergence at temperature {temperature:g}: choose a higher temperature or a capacity "
        "further above 1"
    )


def _is_free(potential_U: Floats, excess_U: Floats) -> npt.NDArray[np.bool_]:
    """Say which potentials may still move: not those at 0 whose unit has room left."""
    free: npt.NDArray[np.bool_] = (potential_U < 0) | (excess_U > 0)
    return free


def _moved_within(plan_NU: Floats, capacity_U: Floats) -> Floats:
    """Move the last excess, in place, to where there is room: rows and columns then hold."""
    mass_U = plan_NU.sum(axis=0)
    kept_U = np.ones_like(mass_U)
    np.divide(capacity_U, mass_U, out=kept_U, where=mass_U > capacity_U)
    plan_NU *= kept_U
    missing_N = 1 - plan_NU.sum(axis=1)
    room_U = np.maximum(capacity_U - mass_U, 0)
    if room_U.any():
        room_U /= room_U.sum()
        for part in row_chunks(len(plan_NU), 8 * len(room_U)):
            plan_NU[part] += missing_N[part, None] * room_U
    return plan_NU


def _checked_shape(cost_NU: Costs) -> tuple[int, int]:
    if cost_NU.ndim != 2 or 0 in cost_NU.shape:
        raise ValueError(f"needs examples by units, at least one of each, got {cost_NU.shape}")
    return cost_NU.shape[0], cost_NU.shape[1]


def _checked(prior_U: Floats, num_units: int) -> Floats:
    share_U = np.asarray(prior_U, np.float64)
    if share_U.shape != (num_units,):
        raise ValueError(f"prior must have one share for each of {num_units} units")
    if not (share_U >= 0).all() or abs(share_U.sum() - 1) > 1e-6:
        raise ValueError("prior must be shares of the source: 0 or more, with sum 1")
    return share_U


def _require_finite(cost: Floats) -> None:
    if not np.isfinite(cost).all():
        raise ValueError("costs must be finite, as -logits or squared distances are")
