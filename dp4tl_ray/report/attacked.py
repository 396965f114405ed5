"""Results under attack, as results of their own: what reads accuracies then reads robust ones."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dp4tl_ray.report.curves import Panel, build_panels
from dp4tl_ray.specs.base import pixels_text
from dp4tl_ray.specs.records import Result, RobustAccuracy


class Attacked(Protocol):
    """Tells which test examples of a result are correct under its n-th attack, (N,)."""

    def __call__(self, result: Result, n: int) -> NDArray[np.bool_]:
        """Read them."""
        ...


def attack_name(robust: RobustAccuracy) -> str:
    """Name an attack for people."""
    attack = "AutoAttack" if robust.attack == "autoattack" else f"PGD-{robust.steps}"
    return f"{attack} {robust.norm} {pixels_text(robust.eps)}"


def panels_under_attack(
    results: Sequence[Result], margin: float, predictions: Attacked | None, confidence: float
) -> list[tuple[str, Panel]]:
    """Return a panel per attack and setting, with the name of the attack."""
    found = []
    most = max((len(r.metrics.robust) for r in results if r.metrics), default=0)
    for n in range(most):
        attacked = [r for r in results if r.metrics and len(r.metrics.robust) > n]
        kept = partial(predictions, n=n) if predictions is not None else None
        panels = build_panels([_under(r, n) for r in attacked], margin, kept, confidence)
        assert attacked[0].metrics is not None
        name = attack_name(attacked[0].metrics.robust[n])
        found += [(name, panel) for panel in panels]
    return found


def _under(result: Result, n: int) -> Result:
    """Return a result whose accuracy is that under its n-th attack."""
    assert result.metrics is not None
    robust = result.metrics.robust[n].accuracy
    metrics = result.metrics.model_copy(update={"accuracy": robust})
    return result.model_copy(update={"metrics": metrics})
