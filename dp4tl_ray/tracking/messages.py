"""What the driver tells the mirror, until it has no more to say, and what the mirror answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal["online", "offline"]
Lines = tuple[list[list[float]], list[list[float]], list[str]]
"""Ratios and accuracies, a list each per line, and the methods that the lines are of."""
Histogram = tuple[list[int], list[float]]
"""Counts, and the edges of their bins."""
COUNT = "report"
"""Number of a report, for steps that count their epochs more than once."""


@dataclass(frozen=True)
class Setup:
    """Where runs go; the first message."""

    mode: Mode
    project: str
    entity: str | None
    group: str
    """Name of the study."""
    folder: Path
    """Where runs are written, in a subfolder `wandb`."""
    sweep: dict[str, Any] | None = None
    """Configuration of the sweep that every cell joins; null has none."""
    sweep_ids: Mapping[str, str] = field(default_factory=dict)
    """Destination -> sweep that an earlier run of the study has created there."""
    written: Mapping[str, str] = field(default_factory=dict)
    """Run -> outcome of what was written offline before; a new sweep takes in what was sent."""


@dataclass(frozen=True)
class Curve:
    """How the reports of a step are shown."""

    prefix: str
    """Section of the dashboard: surrogate, pretrain or finetune."""
    x: str
    """What they are drawn over."""


@dataclass(frozen=True)
class Entry:
    """A run of Weights & Biases, before anything has happened in it."""

    id: str
    name: str
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Digest of a step -> how its reports are shown."""
    in_sweep: bool = True


@dataclass(frozen=True)
class Row:
    """A report of a running step."""

    key: str
    values: dict[str, float | int | str]


@dataclass(frozen=True)
class Item:
    """An artifact that a run made, or used."""

    name: str
    kind: Literal["dataset", "model"]
    made: bool
    metadata: dict[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name -> small file that is sent."""
    references: Mapping[str, str] = field(default_factory=dict)
    """Name -> URI of what is not."""


@dataclass(frozen=True)
class End:
    """How a run ended."""

    id: str
    outcome: str
    """Changes when the same cell ends in another way."""
    failed: bool
    summary: dict[str, Any]
    reused: tuple[str, ...] = ()
    """Steps that were found in the store."""
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Overview:
    """What the summary run of a study shows."""

    entry: Entry
    outcome: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    """The table of results."""
    curves: Mapping[str, Lines]
    """Title -> accuracies over ratios."""
    scores: Mapping[str, Histogram]
    """Name -> how the scores of classes, clusters or examples are spread."""
    pictures: tuple[Path, ...]


Message = Setup | Entry | Row | End | Overview


@dataclass(frozen=True)
class Ready:
    """What became of the setup; the first answer."""

    mode: Mode
    destination: str
    """Host, entity and project; what was tracked at one is not known to another."""
    why: str = ""
    """Why it is not the mode that was asked for."""
    sweep_id: str | None = None


@dataclass(frozen=True)
class Tracked:
    """A run is whole: at the server, or on disk."""

    id: str
    outcome: str
    destination: str


@dataclass(frozen=True)
class Said:
    """Something for people."""

    text: str
    url: bool = False
    """Whether it is where the dashboard is."""


Answer = Ready | Tracked | Said
