"""How runs of Weights & Biases are begun, and how long the server may take."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import wandb

from dp4tl_ray.tracking.messages import Entry, Mode, Setup

PATIENCE_SECONDS = 20.0
"""How long the server may take to accept a run, or the last of its data."""
KILLED = 255
"""Exit code that Weights & Biases shows as killed instead of failed."""
MISTAKES = (ValueError, TypeError, KeyError, wandb.errors.UsageError)
"""Errors that are not the server's."""
SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "symlink": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,  # the command line among it
    "x_disable_stats": True,
    "x_save_requirements": False,
    "init_timeout": float(os.environ.get("WANDB_INIT_TIMEOUT", PATIENCE_SECONDS)),
    "finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", PATIENCE_SECONDS)),
    "finish_timeout_raises": True,
}


def begin(entry: Entry, setup: Setup, mode: Mode, sweep_id: str | None) -> Any:
    """Begin a run, or go on with it."""
    # an overview is drawn afresh; everything else goes on
    goes_on = mode == "online" and entry.job_type != "summary"
    run = wandb.init(
        id=entry.id,
        name=entry.name,
        project=setup.project,
        entity=setup.entity,
        group=setup.group,
        job_type=entry.job_type,
        tags=entry.tags,
        config=entry.config,
        dir=setup.folder,
        mode=mode,
        resume="allow" if goes_on else None,
        reinit="create_new",
        settings=wandb.Settings(sweep_id=sweep_id if entry.in_sweep else None, **SETTINGS),
    )
    for curve in entry.curves.values():
        x = f"{curve.prefix}/{curve.x}"
        run.define_metric(x, hidden=True)
        run.define_metric(f"{curve.prefix}/*", step_metric=x)
    return run


def in_time(work: Callable[[], None]) -> None:
    """Do what may block: the client waits for an artifact without end.

    Raises:
        TimeoutError: It is not done; whatever it waits for, nobody does any longer.
    """
    done = Future[None]()

    def do() -> None:
        try:
            work()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=do, daemon=True).start()
    try:
        done.result(SETTINGS["finish_timeout"])
    except TimeoutError:
        raise TimeoutError("it did not answer in time") from None
