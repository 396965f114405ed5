"""What a lane does with one step, alone or with other workers. Knows no Ray."""

import contextlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, Protocol

import torch

from dp4tl_ray.lease import Lease, LeaseHeldError
from dp4tl_ray.plan import PlannedStep, title
from dp4tl_ray.runners.admission import InfeasibleError
from dp4tl_ray.runners.log import StepLog
from dp4tl_ray.specs.study import Runtime
from dp4tl_ray.stages.bench import StageError
from dp4tl_ray.stages.run import compute
from dp4tl_ray.store import Store, StoreError
from dp4tl_ray.training.fit import Halted
from dp4tl_ray.training.networks import NetworkError
from dp4tl_ray.training.passes import TrainingError
from dp4tl_ray.training.worker import Progress, Worker

Outcome = Literal["ran", "found", "held", "failed", "halted"]


ENDINGS: dict[Outcome, str] = {
    "ran": "done",
    "held": "taken over by another driver",
    "failed": "failed",
    "halted": "halted: nobody waits for it",
}
"""What the log of a step says in the end."""


class Desk(Protocol):
    """Where a lane reports; the board, or a handle of it."""

    def finish(self, key: str, ran: bool = True) -> None:
        """Note that a step's artifact is in the store."""

    def fail(self, key: str, error: str) -> None:
        """Give a step up."""

    def blame(self, key: str, error: str) -> None:
        """Remember why this lane is about to crash."""

    def postpone(self, key: str) -> None:
        """Put a step back because another driver computes it."""

    def put_back(self, key: str) -> None:
        """Put a step back that was halted because nobody waits for it."""

    def progress(self, key: str, progress: Progress) -> bool:
        """Note how far a step is; returns whether somebody still waits for it."""
        ...


def alone(outcome: Outcome) -> Outcome:
    """Share an outcome with nobody."""
    return outcome


def run_step(
    key: str,
    steps: Mapping[str, PlannedStep],
    store: Store,
    worker: Worker,
    desk: Desk,
    share: Callable[[Outcome], Outcome] = alone,
) -> None:
    """Compute a step unless it is done or another driver is at it, and report what came of it.

    All workers of a step call this together; rank 0 holds the lease and tells the others through
    `share` whether to start. What goes wrong on all of them alike fails the step. Anything else
    fails it too where one worker works alone; where several do, it must end the whole lane,
    because the others may be waiting for this worker for ever.
    """
    step = steps[key]
    name = title(step, steps)
    outcome: Outcome = "ran"
    error = trace = ""
    log = StepLog(store.folder(step))
    lease: Lease | None = None

    def report(progress: Progress) -> bool:
        log.progress(progress)
        return desk.progress(key, progress) and not _is_lost(lease)

    worker = replace(worker, report=report)
    try:
        with contextlib.ExitStack() as stack:
            if worker.rank == 0:
                try:
                    lease = stack.enter_context(store.lease(step))
                    outcome = "ran" if store.find(step) is None else "found"
                except LeaseHeldError:
                    outcome = "held"
            outcome = share(outcome)
            if outcome == "ran":
                if worker.rank == 0:
                    log.start(worker)
                try:
                    compute(step, steps, store, worker, lease)
                except Exception as problem:
                    if worker.world_size == 1 and _is_lost(lease):
                        # what broke may be the work of whoever took the step over
                        raise LeaseHeldError(name) from problem
                    raise
    except LeaseHeldError:
        outcome = "held"  # lost while working: whoever took it over computes the same
    except Halted:
        outcome = "halted"
    except (StageError, TrainingError, NetworkError) as problem:
        outcome, error = "failed", f"{name}: {problem}"
    except Exception as problem:
        outcome, error = "failed", f"{name}: {type(problem).__name__}: {problem}"
        trace = traceback.format_exc()
        if worker.world_size > 1:
            log.write(f"worker {worker.rank} ends its lane: {error}\n{trace}")
            desk.blame(key, error)
            raise
    if worker.rank == 0:
        if lease is not None and outcome != "found":
            log.write(ENDINGS[outcome] + (f": {error}\n{trace}" if error else ""))
            with contextlib.suppress(OSError, StoreError):  # a log is not worth a step
                store.publish(log.path)
        if outcome == "failed":
            store.note_failure(step, error, trace)
        _report(key, outcome, error, desk)


def _is_lost(lease: Lease | None) -> bool:
    """Whether somebody took a step over, as after this machine slept."""
    try:
        if lease is not None:
            lease.check()
    except LeaseHeldError:
        return True
    except (OSError, StoreError):  # nobody can tell while the store is away
        return False
    return False


def _report(key: str, outcome: Outcome, error: str, desk: Desk) -> None:
    match outcome:
        case "ran" | "found":
            desk.finish(key, ran=outcome == "ran")
        case "held":
            desk.postpone(key)
        case "halted":
            desk.put_back(key)
        case "failed":
            desk.fail(key, error)


def choose_device(runtime: Runtime) -> torch.device:
    """Return the device that the runtime asks for.

    Raises:
        InfeasibleError: A GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if runtime.device == "cuda" and not available:
        raise InfeasibleError(
            "runtime.device is cuda, but torch sees no GPU here; allowed: auto, cpu"
        )
    return torch.device("cuda" if available and runtime.device != "cpu" else "cpu")
