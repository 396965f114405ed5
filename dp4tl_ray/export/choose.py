"""Which subset of a study is meant: a method, a ratio, a target and a seed, named as people do."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from dp4tl_ray.plan import Cell, Plan
from dp4tl_ray.specs.base import did_you_mean, label
from dp4tl_ray.specs.data import OnDisk

OPTIONS = ("method", "ratio", "seed", "target")
"""In the order in which they are asked: methods that know of no target leave one subset for all."""


class ExportError(ValueError):
    """A subset cannot be exported as asked; the message says why and what can."""


def choose(plan: Plan, asked: Mapping[str, str | None]) -> Cell:
    """Return a cell whose subset is meant.

    Args:
        plan: With cells.
        asked: Option -> what was written; null where it was left out, which will do where the study
            has but one, and takes the first seed.

    Raises:
        ExportError: What is written is not there, or means several; with the choices.
    """
    cells = [cell for cell in plan.cells if "prune" in cell.steps]
    if not cells:
        raise ExportError(f"{plan.study.name} keeps the whole source: no pruning_ratio is above 0")
    for option in OPTIONS:
        cells = _narrow(cells, option, asked[option])
    return cells[0]


def _narrow(cells: Sequence[Cell], option: str, text: str | None) -> list[Cell]:
    """Keep the cells that one option means."""
    names = {_names(cell, option)[0]: _names(cell, option) for cell in cells}
    if text is None:
        one_subset = len({cell.steps["prune"] for cell in cells}) == 1
        if option == "seed" or one_subset or len(names) == 1:
            text = next(iter(names))
        else:
            raise ExportError(f"--{option}: which one? {_listed(names)}")
    if option == "ratio":
        with contextlib.suppress(ValueError):
            text = f"{float(text):g}"
    found = [text] if text in names else [name for name, short in names.items() if text in short]
    if len(found) > 1:
        raise ExportError(f"--{option} {text}: means several: {_listed(found)}")
    if not found:
        raise ExportError(f"--{option} {text}: the study has none; {did_you_mean(text, names)}")
    return [cell for cell in cells if _names(cell, option)[0] == found[0]]


def _names(cell: Cell, option: str) -> tuple[str, ...]:
    """Return what a cell may be called: its label as in results, then shorter names."""
    method, target = cell.method, cell.target
    assert method is not None
    match option:
        case "method":
            return label(method), method.method
        case "ratio":
            return (f"{cell.pruning_ratio:g}",)
        case "seed":
            return (str(cell.seed),)
    folder = (PurePath(target.path).name,) if isinstance(target, OnDisk) else ()
    return label(target), target.dataset, *folder


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
