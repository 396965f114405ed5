"""Successive halving: give many candidates a short trial, and few of them a long one."""

import math
from collections.abc import Mapping
from typing import TypeVar

SHARE_KEPT = 3
"""Of the candidates of a rung, one in three goes on, to three times the epochs."""
NUM_RUNGS = 3

Candidate = TypeVar("Candidate")


def rungs(epochs: int) -> list[int]:
    """Return the epochs of each rung, rising to all of them; short budgets have fewer rungs."""
    trials = {round(epochs / SHARE_KEPT**n) for n in range(NUM_RUNGS)}
    return sorted(trials - {0})


def survivors(scores: Mapping[Candidate, float]) -> list[Candidate]:
    """Return the better third, rounded up, in the order given; ties go to the earlier ones."""
    ranked = sorted(scores, key=lambda candidate: -scores[candidate])
    kept = ranked[: math.ceil(len(ranked) / SHARE_KEPT)]
    return [candidate for candidate in scores if candidate in kept]
