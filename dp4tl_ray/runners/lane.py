"""A lane: one Ray Train run whose workers take step after step until there are none."""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

from dp4tl_ray.plan import is_wide
from dp4tl_ray.runners.admission import Resources
from dp4tl_ray.runners.desk import RemoteDesk
from dp4tl_ray.specs.study import Runtime
from dp4tl_ray.store import open_store

POLL_SECONDS = 0.2
COLLECTIVE_TIMEOUT_SECONDS = 7 * 24 * 3600
"""A worker of a lane may wait this long for another one, who works on a step of its own; that a
worker died is noticed by Train, not by a timeout."""


class Lane:
    """One Train run in a thread of the driver.

    Args:
        name: Of the lane, and of the run.
        desk: Where it asks for work and reports.
        store: URI of the store.
        runtime: Workers, threads, and how they share a step.
        single: Whether it has one worker and takes only steps that no workers share.
        worker: What a worker reserves.
        folder: Where Train keeps its own files.
        max_restarts: Times that Train may start its workers again.
    """

    def __init__(
        self,
        name: str,
        desk: Any,
        store: str,
        runtime: Runtime,
        single: bool,
        worker: Resources,
        folder: Path | str,
        max_restarts: int,
    ) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from dp4tl_ray.runners.raytrain import LaneTrainer, OnRaysNetwork

        cuda = "GPU" in worker and runtime.device != "cpu"
        width = 1 if single else runtime.pretrain_workers
        fewest = min(width, runtime.min_workers or width)
        trainer = LaneTrainer(
            lane_loop,
            train_loop_config={
                "lane": name,
                "desk": desk,
                "store": store,
                "single": single,
                "cuda": cuda,
                "runtime": runtime,
                "folder": os.getcwd(),
            },
            torch_config=OnRaysNetwork(
                backend="nccl" if cuda else "gloo", timeout_s=COLLECTIVE_TIMEOUT_SECONDS
            ),
            scaling_config=ScalingConfig(
                num_workers=width if fewest == width else (fewest, width),
                use_gpu="GPU" in worker,
                resources_per_worker=dict(worker),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=max_restarts),
            ),
        )
        self.name, self.single, self.workers, self.error = name, single, width, ""
        self.requester = f"train-{trainer.train_run_context.run_id}"
        """How an elastic run calls itself where it asks for resources."""
        self.thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether the run has not ended."""
        return self.thread.is_alive()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # the thread's end is what the driver watches
            self.error = f"{self.name} ended: {type(error).__name__}: {error}"


def lane_loop(config: dict[str, Any]) -> None:
    """Take step after step from the board; runs in every worker of a lane."""
    import ray
    import torch
    import torch.distributed as dist

    from dp4tl_ray.runners.step import Outcome, run_step
    from dp4tl_ray.training.worker import Worker

    runtime: Runtime = config["runtime"]
    torch.set_num_threads(runtime.threads_per_worker)
    with contextlib.suppress(OSError):  # where paths of a study that are relative begin
        os.chdir(config["folder"])
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if config["cuda"] else torch.device("cpu")
    actor, store = config["desk"], open_store(config["store"])
    desk = RemoteDesk(actor)
    steps = ray.get(ray.get(actor.plan.remote())).steps
    nodes: list[Any] = [None] * size
    dist.all_gather_object(nodes, ray.get_runtime_context().get_node_id())

    def share(value: Any) -> Any:
        box = [value]
        if size > 1:
            dist.broadcast_object_list(box, src=0, device=device)
        return box[0]

    def share_outcome(outcome: Outcome) -> Outcome:
        shared: Outcome = share(outcome)
        return shared

    def next_work() -> list[str] | None:
        """Wait for work; None when there will be none."""
        pause = 0.01
        while True:
            keys: list[str] | None = ray.get(
                actor.take.remote(config["lane"], size, config["single"], nodes)
            )
            if keys or keys is None:
                return keys
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS)

    together = Worker(
        rank,
        size,
        device,
        sharding=runtime.sharding,
        # a lane that shrank to one worker goes on with the arithmetic of all of them
        shards=runtime.pretrain_workers if size == 1 and not config["single"] else 1,
        microbatch=runtime.microbatch,
        compile=runtime.compile,
        checkpoint_steps=runtime.checkpoint_steps,
    )
    while (keys := share(next_work() if rank == 0 else None)) is not None:
        if is_wide(steps[keys[0]]):
            run_step(keys[0], steps, store, together, desk, share_outcome)
        elif rank < len(keys):
            run_step(keys[rank], steps, store, Worker(device=device), desk)
        if size > 1:
            dist.barrier()  # the lane's next work is asked for when all of this is reported
