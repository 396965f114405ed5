"""The server: where it is, whether it takes runs, and the sweep that is created there."""

import urllib.error
import urllib.request
from typing import Any

import wandb

from dp4tl_ray.tracking.messages import Setup

REACH_SECONDS = 5.0


def host() -> str:
    """Return the address that the environment and the user's settings name."""
    return wandb.setup().settings.base_url


def destination(project: str, entity: str | None) -> str:
    """Name where runs go; what was tracked at one destination is not known to another."""
    return f"{host()} {entity or ''}/{project}"


def refusal() -> str:
    """Say why runs cannot be sent; empty when they can."""
    try:
        # first, because the client tries for long
        with urllib.request.urlopen(host(), timeout=REACH_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        return f"{host()} cannot be reached ({getattr(error, 'reason', error)})"
    try:
        if not wandb.login(verify=True, prompt=False):
            return f"there is no API key for {host()} (`wandb login`, or WANDB_API_KEY)"
    except Exception as error:  # of many kinds, each with its reason
        return str(error)
    return ""


def outgrown(setup: Setup, sweep_id: str) -> list[str]:
    """Return the axes that have got values since the study's sweep was created.

    The server lets only sweeps change that no run has joined.
    """
    assert setup.sweep is not None
    api: Any = wandb.Api()
    path = f"{setup.entity or api.default_entity}/{setup.project}/{sweep_id}"
    known = api.sweep(path).config["parameters"]
    return [
        name
        for name, axis in setup.sweep["parameters"].items()
        if not set(axis["values"]) <= set(known.get(name, {}).get("values", ()))
    ]


def create_sweep(setup: Setup) -> str | None:
    """Create the study's sweep; runs that were written offline, and sent since, are part of it."""
    assert setup.sweep is not None
    return wandb.sweep(setup.sweep, setup.entity, setup.project, [*setup.written])
