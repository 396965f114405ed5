"""Python imports this by itself where its folder is on PYTHONPATH: the product knows nothing of it.

Steps of a tiny study take milliseconds. Here they take a second or two, so that a fault can hit
them, and leases are as short as such steps need. A step does not end before the fault meant for it
has come: while there is a file hold-<stage> in the folder that DP4TL_FAULTS names. A file
worked-<stage>-<pid> there says that a step's work is done, or has failed.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PAUSE_SECONDS = 0.7
"""Before a step's work, and again between its work and its manifest."""
EPOCH_SECONDS = 0.15
HOLD_SECONDS = 120.0
"""A step is not held for longer: the campaign may have died."""
LEASE_SECONDS, HEARTBEAT_SECONDS = 6.0, 1.0


def slow_stages(module: ModuleType) -> None:
    """Make every stage take a while, spread over its work where that goes in epochs."""
    run_stage, folder = module.run_stage, Path(os.environ["DP4TL_FAULTS"])

    def slowly(spec: Any, job: Any) -> Any:
        def report(progress: Any) -> bool:
            time.sleep(EPOCH_SECONDS)
            return bool(job.worker.report(progress))

        time.sleep(PAUSE_SECONDS)
        try:
            metrics = run_stage(spec, replace(job, worker=replace(job.worker, report=report)))
        finally:
            (folder / f"worked-{spec.stage}-{os.getpid()}").touch()
        time.sleep(PAUSE_SECONDS)
        latest = time.monotonic() + HOLD_SECONDS
        while (folder / f"hold-{spec.stage}").exists() and time.monotonic() < latest:
            time.sleep(0.05)
        return metrics

    module.run_stage = slowly  # type: ignore[attr-defined]


def short_leases(module: ModuleType) -> None:
    """Let leases run out soon."""
    module.LEASE_SECONDS = LEASE_SECONDS  # type: ignore[attr-defined]
    module.HEARTBEAT_SECONDS = HEARTBEAT_SECONDS  # type: ignore[attr-defined]


CHANGES = {"dp4tl_ray.stages.run": slow_stages, "dp4tl_ray.lease": short_leases}


class Changes(MetaPathFinder):
    """Changes modules of the product when they are first imported, and imports nothing itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in CHANGES:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            CHANGES[fullname](module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


if "DP4TL_FAULTS" in os.environ:
    sys.meta_path.insert(0, Changes())
