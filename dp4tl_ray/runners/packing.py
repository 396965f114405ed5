"""Pack datasets on Ray: a task per shard, on all machines that share the store's folder."""

import contextlib
import os
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.data.pack import pack_shard
from dp4tl_ray.data.pictures import Pictures
from dp4tl_ray.plan import PlannedStep
from dp4tl_ray.runners.session import quiet, ray_session
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.stages.data import check_unchanged, notes_of, packing_of
from dp4tl_ray.store import Store, StoreError

Shard = tuple[DataStep, int, Path, Path]
"""Dataset, number, and where shards and notes go."""
AGAIN = "run it again, whole shards are kept"
AHEAD = 4
"""Tasks per CPU that wait in Ray; a million pictures are hundreds of shards."""


def pack_on_ray(steps: list[PlannedStep], store: Store) -> None:
    """Write the shards of datasets that are not there yet; the data steps then only finish.

    No more shards than this machine has cores are left to the data steps as a whole.

    Args:
        steps: Data steps that are not done.
        store: In a folder that all machines share.

    Raises:
        DatasetError: A picture does not decode; the message names it.
        LeaseHeldError: Somebody else packs one of them.
        StoreError: A process of Ray died; whole shards are kept.
    """
    log = store.root / "ray-pack.log"
    with contextlib.ExitStack() as held:
        tasks = list[Shard]()
        for step in steps:
            held.enter_context(store.lease(step))
            spec, bench = step.spec, store.workbench(step)
            assert isinstance(spec, DataStep)
            pictures = open_pictures(spec.dataset, spec.role)
            for number in range(len(packing_of(spec.dataset).shards(len(pictures)))):
                tasks.append((spec, number, bench.folder, notes_of(bench.checkpoint)))
        if len(tasks) <= (os.cpu_count() or 1):
            return  # done before Ray has started
        with quiet(log), ray_session():
            _run(tasks)
    log.unlink(missing_ok=True)


def _run(tasks: list[Shard]) -> None:
    import ray

    remote = ray.remote(max_retries=3)(_pack)
    most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("shards", total=len(tasks))
        left, running = iter(tasks), list[Any]()
        start = partial(next, left, None)
        while (task := start()) is not None or running:
            if task is not None:
                running.append(remote.remote(*task))
            if task is None or len(running) >= most:
                done, running = ray.wait(running)
                try:
                    ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    raise StoreError(f"a process died while packing: {error}; {AGAIN}") from error
                bar.advance(shown, len(done))


def _pack(spec: DataStep, number: int, folder: Path, notes: Path) -> None:
    """Write one shard; runs on some machine."""
    pictures = _opened(spec.model_dump_json())
    pack_shard(pictures, packing_of(spec.dataset), number, folder, notes, threads=1)


@lru_cache(maxsize=2)
def _opened(spec: str) -> Pictures:
    """List a dataset once per process: of a million files that takes seconds."""
    step = DataStep.model_validate_json(spec)
    pictures = open_pictures(step.dataset, step.role)
    check_unchanged(step, pictures)
    return pictures
