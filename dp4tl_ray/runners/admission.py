"""How many lanes a cluster holds: arithmetic, before any work. Knows no Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dp4tl_ray.specs.study import Runtime

Resources = Mapping[str, float]


class InfeasibleError(ValueError):
    """What the study's runtime asks for is not there."""


@dataclass(frozen=True)
class Formation:
    """The lanes that a cluster should have, and what a worker of them reserves."""

    lanes: int
    """Of `pretrain_workers` workers each."""
    single_lanes: int
    """Of one worker each, for steps that no workers share."""
    worker: Resources


def worker_resources(runtime: Runtime, nodes: Sequence[Resources]) -> dict[str, float]:
    """Return what one worker of a lane reserves: its threads, and a GPU where there are some."""
    worker = {"CPU": float(runtime.threads_per_worker)}
    gpus = any(node.get("GPU", 0) for node in nodes)
    if runtime.device == "cuda" or (gpus and runtime.device == "auto"):
        worker["GPU"] = 1.0
    return worker | dict(runtime.worker_resources)


def workers_that_fit(worker: Resources, nodes: Sequence[Resources]) -> int:
    """Count the workers that the nodes hold; a worker does not span nodes."""
    return sum(
        min(int(node.get(kind, 0) // amount) for kind, amount in worker.items()) for node in nodes
    )


def form_lanes(runtime: Runtime, nodes: Sequence[Resources], may_grow: bool = False) -> Formation:
    """Return the lanes to have on a cluster.

    Args:
        runtime: Workers and threads per lane, and how many lanes are asked for.
        nodes: What each node of the cluster has, as Ray counts it.
        may_grow: Whether lanes that are asked for by number may wait for nodes to come, as those
            of an autoscaled cluster do.

    Raises:
        InfeasibleError: The lanes do not fit; said with the arithmetic.
    """
    worker = worker_resources(runtime, nodes)
    fit, width = workers_that_fit(worker, nodes), runtime.pretrain_workers
    fewest = runtime.min_workers or width
    lanes = runtime.lanes or max(fit // width, int(fit >= fewest))
    left_over = max(0, fit - lanes * width) if runtime.lanes is None and width > 1 else 0
    singles = left_over if runtime.single_lanes is None else runtime.single_lanes
    needed = max(lanes, 1) * fewest + singles
    if needed > fit and not (may_grow and runtime.lanes):
        raise InfeasibleError(_arithmetic(runtime, worker, nodes, singles, fit))
    return Formation(lanes, singles, worker)


def _arithmetic(
    runtime: Runtime, worker: Resources, nodes: Sequence[Resources], singles: int, fit: int
) -> str:
    """Say what is asked for, what is there, and what to change."""
    fewest = runtime.min_workers or runtime.pretrain_workers
    lanes = runtime.lanes or 1
    and_singles = f" + {singles} single lane(s)" if singles else ""
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in worker.items())
    have = "; ".join(
        " and ".join(f"{node.get(kind, 0):g} {kind}" for kind in worker) for node in nodes
    )
    return (
        f"runtime asks for {lanes} lane(s) x {fewest} worker(s){and_singles} = "
        f"{lanes * fewest + singles} workers of {each} each; the cluster ({have}) holds {fit}; "
        "lower runtime.lanes, runtime.pretrain_workers or runtime.threads_per_worker"
    )
