"""Run one planned step: lease, inputs, stage, manifest. The same for every runner."""

import contextlib
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import assert_never

import torch

from dp4tl_ray.lease import Lease
from dp4tl_ray.plan import PlannedStep
from dp4tl_ray.specs.steps import (
    ClusterStep,
    DataStep,
    EmbedStep,
    FinetuneStep,
    PretrainStep,
    PruneStep,
    ScoreStep,
    StepSpec,
    SurrogateStep,
)
from dp4tl_ray.stages.bench import Job, Metrics
from dp4tl_ray.stages.cluster import run_cluster
from dp4tl_ray.stages.data import run_data
from dp4tl_ray.stages.embed import run_embed
from dp4tl_ray.stages.finetune import run_finetune
from dp4tl_ray.stages.pretrain import run_pretrain
from dp4tl_ray.stages.prune import run_prune
from dp4tl_ray.stages.score import run_score
from dp4tl_ray.stages.surrogate import run_surrogate
from dp4tl_ray.store import Store, StoreError
from dp4tl_ray.training.worker import Worker

VERSIONS = ("torch", "torchvision", "timm", "numpy", "dp4tl_ray")


def run_stage(spec: StepSpec, job: Job) -> Metrics:
    """Run the stage that a spec asks for."""
    match spec:
        case DataStep():
            return run_data(spec, job)
        case SurrogateStep():
            return run_surrogate(spec, job)
        case EmbedStep():
            return run_embed(spec, job)
        case ClusterStep():
            return run_cluster(spec, job)
        case ScoreStep():
            return run_score(spec, job)
        case PruneStep():
            return run_prune(spec, job)
        case PretrainStep():
            return run_pretrain(spec, job)
        case FinetuneStep():
            return run_finetune(spec, job)
        case _:
            assert_never(spec)


def compute(
    step: PlannedStep,
    steps: Mapping[str, PlannedStep],
    store: Store,
    worker: Worker,
    lease: Lease | None,
) -> None:
    """Run a step's stage on this worker; the worker of rank 0 writes the artifact.

    Args:
        step: What to run.
        steps: The plan's steps by digest, to find the inputs.
        store: Where inputs are and the artifact goes.
        worker: One of those that share the step.
        lease: Held for the step by the worker of rank 0; None on the others.

    Raises:
        StageError, TrainingError, NetworkError: The step cannot be done; alike on every worker.
        StoreError: An input is missing or damaged, as this worker sees it.
    """
    inputs = {}
    for role, key in step.inputs.items():
        if (artifact := store.find(steps[key])) is None:
            # not a StageError: on a shared file system the other workers may see it
            raise StoreError(f"input {role} ({store.folder(steps[key])}) is not there")
        inputs[role] = artifact
    bench = store.workbench(step, lease)
    if worker.rank == 0:
        store.clear(step)
    bench.fetch_checkpoint()
    started = time.perf_counter()
    try:
        metrics = run_stage(step.spec, Job(inputs, bench, worker))
    except BaseException:
        bench.leave()
        raise
    if worker.rank == 0:
        before = float(metrics.get("seconds_before") or 0.0)
        facts = {
            "seconds": time.perf_counter() - started + before,
            "device": device_name(worker.device),
            "num_workers": worker.world_size,
            "metrics": metrics,
            "versions": versions(),
            "resumed": before > 0,
        }
        assert lease is not None
        store.finish(step, bench, lease, facts)
    else:
        bench.leave()


def versions() -> dict[str, str]:
    """Return the versions of what could change a result, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def device_name(device: torch.device) -> str:
    """Name a device for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} thread(s))"
