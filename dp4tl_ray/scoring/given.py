"""A list of examples that comes from elsewhere: read, checked against the source, made a score.

The first of a list are the most wanted. By the ending of the file:

    .txt    ids, one per line
    .csv    with a header, of which the column `id`, or else `index`, is read
    .npy    indices, whole numbers, (n,)
    .json   what `dp4tl export --format dp4tl` writes

An index counts what the source's dataset lists, before `exclude` and `corrupt: skip` leave some
out: it then means the same picture whatever is left out, as in an export.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dp4tl_ray.data.load import count_source, is_absent
from dp4tl_ray.data.pictures import read_ids
from dp4tl_ray.scoring.elsewhere import Floats, ScorerError
from dp4tl_ray.specs.data import OnDisk, located
from dp4tl_ray.specs.example_methods import Given
from dp4tl_ray.specs.load import StudyError
from dp4tl_ray.specs.study import Study

SUBSET_FORMAT = "dp4tl_ray subset"
"""What a .json says of itself under `format`."""
MILLIONTH = 10**6
Ints = npt.NDArray[np.int64]
Listed = Ints | list[str]
"""Indices into what the source's dataset lists, or ids; most wanted first."""


@dataclass(frozen=True)
class Listing:
    """What the dataset of a source of N examples lists: these, and those that were left out."""

    rows: Ints
    """Row of each example among all that are listed, (N,), ascending."""
    left_out: Sequence[str] = ()
    """Ids of the others, as far as they are known."""

    def __len__(self) -> int:
        """Count what is listed, as far as it is known."""
        least = int(self.rows[-1]) + 1 if len(self.rows) else 0
        return max(least, len(self.rows) + len(self.left_out))


def read_list(path: str) -> Listed:
    """Read a list, most wanted first.

    Raises:
        ScorerError: Not such a file.
    """
    readers: dict[str, Callable[[Path], Listed]] = {
        ".txt": read_ids,
        ".csv": _read_csv,
        ".npy": _read_npy,
        ".json": _read_json,
    }
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise ScorerError(
            f"given {path}: its name ends in {suffix or 'nothing'!r}; allowed: "
            ".txt (ids, one per line), .csv (a column id or index), .npy (indices), "
            ".json (of `dp4tl export --format dp4tl`)"
        )
    try:
        listed = readers[suffix](Path(path))
    except OSError as error:
        raise ScorerError(f"given {path}: {error.strerror or error}") from error
    # also of what is no text, no JSON, or no array
    except (ValueError, EOFError, OverflowError, csv.Error) as error:
        raise ScorerError(f"given {path}: {error}") from error
    if not len(listed):
        raise ScorerError(f"given {path}: lists no example")
    return listed


def _read_csv(path: Path) -> Listed:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        columns = list(rows.fieldnames or ())
        column = next((name for name in ("id", "index") if name in columns), None)
        if column is None:
            raise ValueError(f"needs a column id or index; its first line has {', '.join(columns)}")
        values = list[str]()
        for row in rows:
            if not row[column]:  # also of a line that is too short
                raise ValueError(f"line {rows.line_num} has no {column}")
            if column == "index" and not row[column].strip().isdecimal():
                raise ValueError(f"line {rows.line_num}: index {row[column]!r} is no whole number")
            values.append(row[column])
    return values if column == "id" else np.array([int(value) for value in values], np.int64)


def _read_npy(path: Path) -> Ints:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        kind = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "more"
        raise ValueError(f"needs one array of indices, whole numbers (n,); it holds {kind}")
    return array.astype(np.int64)


def _read_json(path: Path) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("format") != SUBSET_FORMAT:
        raise ValueError(f"is not of `dp4tl export --format dp4tl`: no format {SUBSET_FORMAT!r}")
    ids = content.get("ids")
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise ValueError("needs ids, a list of texts")
    return ids


def rows_of_list(path: str, ids: Callable[[], Sequence[str]], listing: Listing) -> Ints:
    """Return the rows of the source that a file lists, most wanted first, (n,).

    What was left out of the source has none; `left_out_alarm` says how many these are.

    Args:
        path: File of the list.
        ids: Names of the source's examples; read only for a list of names.
        listing: What the source's dataset lists.

    Raises:
        ScorerError: Not such a file, of another dataset, or it lists an example twice; names the
            first such example.
    """
    listed, num_source = read_list(path), len(listing.rows)
    if isinstance(listed, list):
        names = list(ids())
        row_of = {name: num_source + n for n, name in enumerate(listing.left_out)}
        row_of |= {name: row for row, name in enumerate(names)}
        unknown = [name for name in listed if name not in row_of]
        if unknown:
            raise ScorerError(
                f"given {path} is of another dataset: {len(unknown)} of its {len(listed)} ids are "
                f"not the source's, such as {unknown[0]!r}; the source's are like {names[0]!r}"
            )
        rows = np.array([row_of[name] for name in listed], np.int64)
    else:
        outside = listed[(listed < 0) | (listed >= len(listing))]
        if len(outside):
            raise ScorerError(
                f"given {path} is of another dataset: index {outside[0]} is not among the "
                f"source's, 0 to {len(listing) - 1}"
            )
        row_at = num_source + np.arange(len(listing))
        row_at[listing.rows] = np.arange(num_source)
        rows = row_at[listed]
    values, first, count = np.unique(rows, return_index=True, return_counts=True)
    if (twice := count > 1).any():
        at = int(first[twice].min())
        what = f"id {listed[at]!r}" if isinstance(listed, list) else f"index {listed[at]}"
        raise ScorerError(
            f"given {path} lists {what} more than once: {len(values)} of its {len(rows)} examples "
            "differ"
        )
    return rows[rows < num_source]


def left_out_alarm(path: str, scores: Floats) -> str:
    """Say how much of a list was left out of the source, by its scores; empty if nothing was."""
    length = len(read_list(path))
    missing = length - int(np.isfinite(scores).sum())
    if not missing:
        return ""
    return (
        f"{missing} of the {length} examples that {path} lists were left out of the source, by "
        "exclude or corrupt: skip, and count as not listed"
    )


def list_scores(rows: Ints, num_source: int) -> Floats:
    """Score the first of a list highest, (N,); what it does not list has -inf."""
    scores = np.full(num_source, -np.inf)
    scores[rows] = -np.arange(len(rows), dtype=np.float64)
    return scores


def shortage(path: str, length: int, num_source: int, pruning_ratio: float) -> str:
    """Say why a list is too short for a ratio; empty if it is long enough.

    Args:
        path: File of the list.
        length: Examples that it lists.
        num_source: Examples of the source.
        pruning_ratio: Share of them to remove.
    """
    needed = round((1 - pruning_ratio) * num_source)
    if length >= needed:
        return ""
    # rounded up, in whole numbers: the ratio that is named is served
    least = -(-(num_source - length) * MILLIONTH // num_source) / MILLIONTH
    return (
        f"given {path} lists {length} examples, and pruning_ratio {pruning_ratio:g} keeps {needed} "
        f"of {num_source}: it serves ratios from {least:g} on"
    )


def check_lists(study: Study, absent: list[str] | None = None) -> None:
    """Refuse lists that are too short for one of a study's ratios, before any work.

    A source that may skip pictures is left to the prune step, which knows how many there are.

    Args:
        study: What is asked for.
        absent: Whether files may be missing: what cannot be checked for want of them is then left
            to the prune step.

    Raises:
        StudyError: With the arithmetic.
        ScorerError: A file cannot be read.
        DatasetError: The source is missing.
    """
    lists = [(n, method) for n, method in enumerate(study.methods) if isinstance(method, Given)]
    if not lists:
        return
    source = located(study.source, study.data_root)
    if absent is not None and isinstance(source, OnDisk) and is_absent(source):
        return
    may_skip = isinstance(source, OnDisk) and source.corrupt == "skip"
    total = 0 if may_skip else count_source(source)  # of none, any list is long enough
    for n, method in lists:
        if absent is not None and not Path(method.path).exists():
            continue
        length = len(read_list(method.path))
        for ratio in (ratio for ratio in study.pruning_ratios if ratio > 0):
            if problem := shortage(method.path, length, total, ratio):
                raise StudyError(f"methods[{n}].path: {problem}")
