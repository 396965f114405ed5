"""The faults themselves: each hits what is there while a step runs."""

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dp4tl_ray.lease import Holder, file_holders
from tests.faults.faults import Kind
from tests.faults.world import StoreFolder, World, titles

TRIAL = "ray::ImplicitFunc"
"""How the process of a Tune trial is called."""
BRIEFLY_SECONDS, WRITES_SECONDS = 2.0, 20.0
"""A store is out of order for this time and, if it comes soon enough, over the end of the step's
work, where its files are written, and its manifest."""
TAKEOVER_SECONDS = 90.0
"""Time for the second driver to start and for the lease to run out."""


@dataclass(frozen=True)
class Scene:
    """A step that runs now, and all that runs it."""

    world: World
    store: StoreFolder
    driver: subprocess.Popen[bytes]
    holder: Holder
    """Of the step's lease."""
    stale: set[int]
    """Processes of runs before this one."""
    rng: random.Random
    log: Path
    """Where a second driver writes."""
    release: Callable[[], None]
    """Lets the step end; to be called when the fault has come."""
    wait: Callable[[Callable[[], bool], float], bool]
    """Waits until something is so, at most for some seconds; returns whether it came to be."""

    def victim(self, kind: Kind) -> int | None:
        """Return the process to shoot; null while there is none: trials start later than steps."""
        match kind:
            case "driver":
                return self.driver.pid
            case "worker":
                return self.holder.pid
            case "controller":
                return self.world.owner_of(self.holder.pid)
            case "trial":
                trials = [p for p, t in titles().items() if TRIAL in t and p not in self.stale]
                return self.rng.choice(sorted(trials)) if trials else None
            case _:
                return None


SHOTS: tuple[Kind, ...] = ("driver", "trial", "worker", "controller")


def ready(kind: Kind, scene: Scene) -> bool:
    """Whether there is what a fault would hit."""
    return kind not in SHOTS or scene.victim(kind) is not None


def inject(kind: Kind, scene: Scene) -> str:
    """Let a fault come, and what belongs to it; returns a note for people."""
    note = ""
    match kind:
        case "driver" | "trial" | "worker" | "controller":
            if (pid := scene.victim(kind)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        case "raylet":
            scene.world.shoot_node(scene.holder.pid)
        case "readonly":
            with scene.store.read_only():
                scene.release()
                _last(scene, lambda: None)
        case "full":
            with scene.store.full():
                scene.release()
                # a file that is removed would leave enough room for a small one
                _last(scene, scene.store.shrink)
        case "frozen":
            note = _freeze(scene)
    scene.release()
    return note


def _last(scene: Scene, renew: Callable[[], None]) -> None:
    """Wait until a fault of the store has hit what the step writes, renewing it all the while."""
    stage, pid = scene.holder.step.partition("/")[0], scene.holder.pid
    worked = scene.world.control / f"worked-{stage}-{pid}"

    def over(so: bool) -> bool:
        renew()
        return so or scene.driver.poll() is not None

    scene.wait(lambda: over(worked.exists()), WRITES_SECONDS)
    scene.wait(lambda: over(False), BRIEFLY_SECONDS)


def _freeze(scene: Scene) -> str:
    """Stop the holder, let a second driver take its step over, and wake it up meanwhile."""
    holder, root = scene.holder, scene.store.path
    second = scene.world.start(root, scene.log, "--local")

    def taken() -> bool:
        owners = {h.step: h.pid for h in file_holders(root)}
        return owners.get(holder.step) == second.pid or second.poll() is not None

    try:
        os.kill(holder.pid, signal.SIGSTOP)
        scene.release()
        if not scene.wait(taken, TAKEOVER_SECONDS):
            raise RuntimeError(f"nobody took {holder.step} over from a stopped holder")
        # it may wake up while the other one works, writes, or has finished
        scene.wait(lambda: False, scene.rng.uniform(0, 2))
        os.kill(holder.pid, signal.SIGCONT)
        scene.wait((root / holder.step / "manifest.json").exists, TAKEOVER_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder.pid, signal.SIGCONT)
        if second.poll() is None:
            second.terminate()  # in the middle of whatever it does next
        code = second.wait(timeout=60)
    if code in (0, 130):
        return ""
    last = scene.log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"the second driver ended with {code}: {' '.join(last)}"
