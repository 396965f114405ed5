"""What is injected where, drawn from a seed, and what came of each fault."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from dp4tl_ray.specs.steps import STAGES, Stage

Kind = Literal["driver", "trial", "worker", "controller", "raylet", "readonly", "full", "frozen"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANINGS: dict[Kind, str] = {
    "driver": "SIGKILL of the driver",
    "trial": "SIGKILL of a Tune trial",
    "worker": "SIGKILL of the Train worker at the step",
    "controller": "SIGKILL of the Train controller of the lane at the step",
    "raylet": "SIGKILL of the raylet of the node at the step",
    "readonly": "store read-only for a while",
    "full": "store full for a while",
    "frozen": "the step's lease holder stopped past its lease, a second driver takes over",
}
MOUNTS: tuple[Kind, ...] = ("readonly", "full")
"""Kinds that need root, to mount a file system for the store."""
WINDOW_SECONDS = 2.0
"""Faults come at most so long after their step has begun, which then is in its work or at its end
but has not ended."""


@dataclass
class Fault:
    """One fault, and what came of it."""

    kind: Kind
    stage: Stage
    delay: float
    """Seconds after the step has begun."""
    round: int = 0
    step: str = ""
    """Stage and folder of the step that was hit."""
    came: float | None = None
    """Seconds since the campaign began; null while it is to come."""
    seconds: float | None = None
    """Until the step was done; null while it is not."""
    reran: bool = False
    """Whether the study had to be run again."""
    note: str = ""

    def line(self) -> str:
        """Return what happened, for people."""
        outcome = "rerun needed" if self.reran else "survived in place"
        seconds = "never" if self.seconds is None else f"{self.seconds:.1f} s"
        note = f"; {self.note}" if self.note else ""
        return (
            f"round {self.round}, at {self.came or 0:.0f} s: {self.kind} x {self.stage}, "
            f"{self.delay:.2f} s into {self.step}: {outcome}, step done after {seconds}{note}"
        )


def draw_rounds(
    rng: random.Random, kinds: Collection[str], stages: Collection[str]
) -> list[dict[Stage, Fault]]:
    """Return rounds, each with at most one fault per stage, that hold every pair once.

    A whole campaign is a Latin square: in every round every kind comes once.
    """
    order = list(KINDS)
    rng.shuffle(order)
    rounds: list[dict[Stage, Fault]] = []
    for turn in range(len(order)):
        faults = {
            stage: Fault(order[(place + turn) % len(order)], stage, rng.uniform(0, WINDOW_SECONDS))
            for place, stage in enumerate(STAGES)
        }
        chosen = {s: f for s, f in faults.items() if s in stages and f.kind in kinds}
        with_room = next((r for r in rounds if not r.keys() & chosen.keys()), None)
        if with_room is not None:
            with_room.update(chosen)
        elif chosen:
            rounds.append(chosen)
    return rounds
