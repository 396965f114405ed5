"""One round: a study, a fault at each of its stages, reruns until it is done, and the checks."""

import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from dp4tl_ray.lease import Holder, file_holders
from dp4tl_ray.specs.steps import Stage
from tests.faults.checks import OURS, Finished, differences, left_behind
from tests.faults.faults import Fault
from tests.faults.inject import Scene, inject, ready
from tests.faults.world import StoreFolder, World, titles
from tests.processes import parents

POLL_SECONDS = 0.05
RUN_SECONDS = 300.0
"""A run that takes longer hangs."""
PATIENCE_SECONDS = 60.0
"""The next fault comes when the last one is overcome, or after this time: both may need a lane."""
MORE_RERUNS = 3
"""Reruns beyond one per fault."""


class Round:
    """A store of its own, and the faults to come by stage.

    Args:
        world: Where Ray is.
        number: Of the round, from 1.
        faults: Noted there what came of them.
        rng: Draws which of several processes is hit.
    """

    def __init__(
        self, world: World, number: int, faults: dict[Stage, Fault], rng: random.Random
    ) -> None:
        self.world, self.number, self.rng = world, number, rng
        self.faults, self.pending = list(faults.values()), dict(faults)
        self.logs = world.folder / f"round{number}"
        self.store: StoreFolder = world.store(number)
        self.finished = Finished(self.store.path)
        self.begun: dict[tuple[str, int], float] = {}
        self.stale: set[int] = set()
        self.open: list[Fault] = []
        """Faults whose step is not done yet."""
        self.came: list[Fault] = []
        """Faults of the present run."""
        self.problems: list[str] = []

    def play(self) -> list[str]:
        """Run the study until it is done; returns what is lost, wrong or left behind."""
        self.logs.mkdir()
        with self.store:
            for stage in self.pending:
                self._hold(stage).touch()
            try:
                self._run_until_done()
            finally:
                for stage in self.pending:
                    self._hold(stage).unlink(missing_ok=True)
            self.problems += self.finished.problems
            self.problems += differences(self.store.path, self.world.reference)
            self.problems += left_behind(self.world, self.store.path)
            if self.problems:
                names = shutil.ignore_patterns("ray", "*.part")
                shutil.copytree(self.store.path, self.logs / "store", ignore=names)
        return [f"round {self.number}: {problem}" for problem in self.problems]

    def _run_until_done(self) -> None:
        most = len(self.faults) + MORE_RERUNS
        for attempt in range(most):
            code = self._run(self.logs / f"run{attempt}.txt")
            if code == 0:
                return
            blamed = self.open or self.came[-1:]
            for fault in blamed:
                fault.reran = True
            if not blamed:
                self.problems.append(f"run {attempt} ended with {code}, and no fault had come")
        self.problems.append(f"not done after {most} runs")

    def _run(self, log: Path) -> int:
        self.came = []
        self.stale = {pid for pid, name in titles().items() if any(a in name for a in OURS)}
        driver = self.world.start(self.store.path, log)
        deadline = time.monotonic() + RUN_SECONDS
        while driver.poll() is None:
            self._look()
            if aim := self._aim(driver):
                self._fire(*aim)
                deadline = time.monotonic() + RUN_SECONDS
            if time.monotonic() > deadline:
                self.problems.append(f"a run hangs: {log}")
                driver.terminate()
                driver.wait(timeout=60)
            time.sleep(POLL_SECONDS)
        self._look()
        self._tell(f"a run ended with {driver.returncode}")
        if driver.returncode > 0 and self.came:
            self.came[-1].note = self.came[-1].note or _reason(log)
        return driver.returncode

    def _look(self) -> None:
        """See what has become done, and bury the dead."""
        self.world.reap()
        self.finished.look()
        for fault in [fault for fault in self.open if fault.step in self.finished]:
            fault.seconds = self.world.seconds - (fault.came or 0.0)
            self.open.remove(fault)
            self._tell(f"{fault.step} is done, {fault.seconds:.1f} s after {fault.kind}")

    def _aim(self, driver: "Popen[bytes]") -> tuple[Fault, Scene] | None:
        """Return the fault whose time has come, with the step that it hits."""
        if self.open and self.world.seconds - (self.open[-1].came or 0.0) < PATIENCE_SECONDS:
            return None
        for holder in self._holders():
            begun = self.begun.setdefault((holder.step, holder.pid), time.monotonic())
            stage: Stage = holder.step.partition("/")[0]  # type: ignore[assignment]
            fault = self.pending[stage]
            if time.monotonic() - begun < fault.delay:
                continue
            scene = Scene(
                self.world,
                self.store,
                driver,
                holder,
                self.stale,
                self.rng,
                self.logs / f"second-{stage}.txt",
                lambda stage=stage: self._hold(stage).unlink(missing_ok=True),  # type: ignore[misc]
                self._wait,
            )
            if ready(fault.kind, scene):
                fault.delay = time.monotonic() - begun
                return fault, scene
        return None

    def _holders(self) -> list[Holder]:
        """Return the steps that run and whose fault is to come."""
        alive = parents().keys() - self.stale
        return [
            holder
            for holder in file_holders(self.store.path)
            if holder.step.partition("/")[0] in self.pending and holder.pid in alive
        ]

    def _fire(self, fault: Fault, scene: Scene) -> None:
        fault.round, fault.step, fault.came = self.number, scene.holder.step, self.world.seconds
        del self.pending[fault.stage]
        self.open.append(fault)
        self.came.append(fault)
        self._tell(f"{fault.kind} x {fault.stage}, {fault.delay:.2f} s into {fault.step}")
        try:
            fault.note = inject(fault.kind, scene)
        except Exception as error:
            self.problems.append(f"{fault.kind} x {fault.stage}: {error!r}")
            scene.release()

    def _wait(self, so: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not so():
            if time.monotonic() > deadline:
                return False
            self._look()
            time.sleep(POLL_SECONDS)
        return True

    def _hold(self, stage: Stage) -> Path:
        return self.world.control / f"hold-{stage}"

    def _tell(self, text: str) -> None:
        print(f"[{self.world.seconds:6.1f}] round {self.number}: {text}", file=sys.stderr)


def _reason(log: Path) -> str:
    """Return why a run ended, for people."""
    lines = log.read_text(errors="replace").strip().splitlines()
    failed = [line for line in lines if line.startswith("failed: ")]
    return f"{(failed or lines)[-1][:200]}" if lines else ""
