"""A study as a sweep of Weights & Biases, and the one cell of it that an agent asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.plan import Cell, Plan
from dp4tl_ray.specs.base import did_you_mean, label
from dp4tl_ray.specs.load import StudyError
from dp4tl_ray.specs.pretraining import Supervised
from dp4tl_ray.specs.study import Study
from dp4tl_ray.specs.training import Training
from dp4tl_ray.store import Store


def axes_of_sweep(study: Study) -> dict[str, list[Any]]:
    """Return the axes of a study by their names in a run's configuration."""
    return {
        "target": [label(target) for target in study.targets],
        "method": [label(method) for method in study.methods],
        "pruning_ratio": [*study.pruning_ratios],
        "pretraining": [label(pretraining) for pretraining in study.pretraining],
        "adversarial": [label(adversarial) for adversarial in study.adversarial],
        "transfer": [label(transfer) for transfer in study.transfers],
        "seed": [*study.seeds],
    }


def sweep_config(study: Study, command: Sequence[str] = ()) -> dict[str, Any]:
    """Describe a study as a sweep.

    Args:
        study: The study.
        command: What an agent runs for a point of the grid; the point's `axis=value` follow.
    """
    config: dict[str, Any] = {
        "name": study.name,
        "description": "one cell of a dp4tl_ray study per run",
        # who chooses: the study's own runner. An agent that comes along takes the same grid.
        "method": "grid" if study.search == "grid" else "custom",
        "metric": {"name": "accuracy", "goal": "maximize"},
        "parameters": {name: {"values": values} for name, values in axes_of_sweep(study).items()},
    }
    if command:
        # an agent that searches needs a method of the server's
        config |= {"method": "grid", "program": command[0]}
        config["command"] = ["${env}", "${program}", *command[1:], "--only", "${args_no_hyphens}"]
    return config


def write_sweep(study: Study, store: Store, path: Path, options: Sequence[str]) -> Path:
    """Write the sweep whose agents run the cells of a study; returns where it is.

    Args:
        study: The study.
        store: Where agents look for what is done, and leave what they do.
        path: Of the study's file.
        options: Of the command that reads it.
    """
    command = ["dp4tl", "run", str(path), f"--store={store.uri}", *options]
    command.append("--set=tracking.wandb.mode=online")
    to = store.study_folder(study.name) / "wandb_sweep.yaml"
    to.parent.mkdir(parents=True, exist_ok=True)
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    write_atomically(to, lambda part: yaml.dump(sweep_config(study, command), part))
    store.publish(to)
    return to


def only(plan: Plan, point: Sequence[str]) -> Plan:
    """Return the part of a plan that some points on its axes need.

    Points that mean the same share a cell: at ratio 0 methods do not differ, and an untrained
    network has neither method nor ratio.

    Args:
        plan: With cells.
        point: Texts axis=value; of several values of an axis any will do, and one that is left out
            is not restricted.

    Raises:
        StudyError: An axis or a value that the study does not have.
    """
    axes = axes_of_sweep(plan.study)
    wanted: dict[str, list[str]] = {}
    for text in point:
        name, given, value = text.partition("=")
        if name not in axes or not given:
            raise StudyError(f"--only {text}: write AXIS=VALUE; {did_you_mean(name, axes)}")
        values = [str(known) for known in axes[name]]
        if value not in values and not any(_equal(value, known) for known in values):
            raise StudyError(f"--only {text}: {did_you_mean(value, values)}")
        wanted.setdefault(name, []).append(value)
    cells = [cell for cell in plan.cells if _meant(cell, wanted)]
    keys = frozenset[str]().union(
        *(plan.closure(key) for cell in cells for key in cell.steps.values())
    )
    return Plan(plan.study, {k: s for k, s in plan.steps.items() if k in keys}, cells, plan.naive)


def _meant(cell: Cell, wanted: Mapping[str, Sequence[str]]) -> bool:
    """Whether a cell is at one of the points."""
    place: dict[str, Any] = {
        "target": label(cell.target),
        "pretraining": label(cell.pretraining),
        "transfer": label(cell.transfer),
        "seed": cell.seed,
    }
    if isinstance(cell.pretraining, Training):
        place["pruning_ratio"] = cell.pruning_ratio
    if isinstance(cell.pretraining, Supervised):
        place["adversarial"] = label(cell.adversarial)
    if cell.method is not None:
        place["method"] = label(cell.method)
    return all(
        any(_equal(value, str(place[name])) for value in values)
        for name, values in wanted.items()
        if name in place
    )


def _equal(one: str, other: str) -> bool:
    """Compare values as an agent and a study write them: 0 is 0.0."""
    if one == other:
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False
