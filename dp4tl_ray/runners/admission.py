"""How many lanes a cluster holds: arithmetic, before any work. Knows no Ray."""

from collections.abc import Mapping, Sequence

from dp4tl_ray.specs.study import Runtime

Resources = Mapping[str, float]


class InfeasibleError(ValueError):
    """What the study's runtime asks for is not there."""


def worker_resources(runtime: Runtime, nodes: Sequence[Resources]) -> dict[str, float]:
    """Return what one worker of a lane reserves: its threads, and a GPU where there are some."""
    worker = {"CPU": float(runtime.threads_per_worker)}
    gpus = any(node.get("GPU", 0) for node in nodes)
    if runtime.device == "cuda" or (gpus and runtime.device == "auto"):
        worker["GPU"] = 1.0
    return worker


def lanes_that_fit(
    runtime: Runtime, nodes: Sequence[Resources], may_grow: bool = False
) -> tuple[int, dict[str, float]]:
    """Return how many lanes to start and what one worker of them reserves.

    Args:
        runtime: Workers and threads per lane, and how many lanes are asked for.
        nodes: What each node of the cluster has, as Ray counts it.
        may_grow: Whether lanes that are asked for by number may wait for nodes to come, as those
            of an autoscaled cluster do.

    Raises:
        InfeasibleError: The lanes do not fit; said with the arithmetic.
    """
    worker = worker_resources(runtime, nodes)
    if may_grow and runtime.lanes:
        return runtime.lanes, worker
    workers = sum(
        min(int(node.get(kind, 0) // amount) for kind, amount in worker.items()) for node in nodes
    )
    wanted = runtime.pretrain_workers * (runtime.lanes or 1)
    if wanted > workers:
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in worker.items())
        have = "; ".join(
            " and ".join(f"{node.get(kind, 0):g} {kind}" for kind in worker) for node in nodes
        )
        raise InfeasibleError(
            f"runtime asks for {runtime.lanes or 1} lane(s) x {runtime.pretrain_workers} worker(s) "
            f"= {wanted} workers of {each} each; the cluster ({have}) holds {workers}; lower "
            "runtime.lanes, runtime.pretrain_workers or runtime.threads_per_worker"
        )
    return runtime.lanes or workers // runtime.pretrain_workers, worker
