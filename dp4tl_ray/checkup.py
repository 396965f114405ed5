"""Check the datasets of a study: what is unreadable, doubled, odd, or in source and test alike."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from dp4tl_ray.algorithms.near_duplicates import first_alike
from dp4tl_ray.atomic import write_text
from dp4tl_ray.data.check import Inspection, inspect
from dp4tl_ray.data.images import SPLITS, Role
from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.data.pictures import Pictures
from dp4tl_ray.specs.base import did_you_mean, label
from dp4tl_ray.specs.data import Dataset, OnDisk, channels, located
from dp4tl_ray.specs.load import StudyError
from dp4tl_ray.specs.study import Study

SHOWN = 10
"""Pictures of a kind that are named; the lists have all."""
LONG = 3.0
"""Ratio of the sides from which on a picture is called long: cropping loses most of it."""


@dataclass(frozen=True)
class _Checked:
    """One dataset of a study, and what its pictures are like."""

    role: Role
    dataset: Dataset
    found: Inspection

    def ids(self, rows: Iterable[int]) -> list[str]:
        """Return the ids of pictures."""
        return [self.found.pictures.ids[row] for row in rows]


def check_study(study: Study, folder: Path, against: str | None = None) -> tuple[str, bool]:
    """Decode every picture of a study's datasets; write data_check.md, and lists of ids.

    What `exclude` leaves out is looked at like the rest, so that a list which the study already
    uses stays the same.

    Args:
        study: What names the datasets.
        folder: Where to write.
        against: Dataset or label of the targets that are checked beside the source; None checks
            all.

    Returns:
        The report, and whether every picture can be read.

    Raises:
        DatasetError: A dataset is missing; nothing has been decoded then.
        StudyError: The study has no such target.
    """
    targets = [target for target in study.targets if against in (None, *_names(target))]
    if not targets:
        known = sorted({name for target in study.targets for name in _names(target)})
        raise StudyError(f"--against {against}: no such target; {did_you_mean(against, known)}")
    sets: list[tuple[Role, Dataset]] = [("source", study.source)]
    listed = [
        (role, dataset, open_pictures(_whole(dataset, study.data_root), role))
        for role, dataset in sets + [("target", target) for target in targets]
    ]
    source, *others = (_Checked(role, data, _inspect(role, data, p)) for role, data, p in listed)
    folder.mkdir(parents=True, exist_ok=True)
    text, similar = list[str](), set[int]()
    for n, checked in enumerate((source, *others)):
        name = f"target-{study.targets.index(checked.dataset)}" if n else "source"
        text += _findings(checked, name, folder)
        if n:
            lines, rows = _shared(source, checked)
            text += lines
            similar |= rows
    only = f"-{study.targets.index(targets[0])}" if against else ""
    path = folder / f"near_duplicates{only}.txt"
    _write_list(path, source.ids(sorted(similar)))
    if similar:
        text += [f"The study without them: `--set source.exclude={path}`", ""]
    report = "\n".join([f"# Datasets of {study.name}", "", *text])
    write_text(folder / "data_check.md", report)
    return report, not any(one.found.unreadable for one in (source, *others))


def _whole(dataset: Dataset, root: str) -> Dataset:
    """Return a dataset of which nothing is left out."""
    found = located(dataset, root)
    return found.model_copy(update={"exclude": None}) if isinstance(found, OnDisk) else found


def _names(dataset: Dataset) -> tuple[str, str]:
    return dataset.dataset, label(dataset)


def _write_list(path: Path, ids: list[str]) -> None:
    """Write ids, one per line; an empty list is no file."""
    if ids:
        write_text(path, "".join(f"{id}\n" for id in ids))
    else:
        path.unlink(missing_ok=True)


def _inspect(role: Role, dataset: Dataset, pictures: Pictures) -> Inspection:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{role} {dataset.dataset}", total=len(pictures))
        reach = partial(bar.update, task)
        threads = os.cpu_count() or 1
        return inspect(pictures, channels(dataset), threads, lambda row: reach(completed=row))


def _findings(checked: _Checked, name: str, folder: Path) -> Iterator[str]:
    """Word what was found in one dataset, and write its lists."""
    found, pictures = checked.found, checked.found.pictures
    yield f"## {checked.role}: {label(checked.dataset)}"
    yield ""
    for split in SPLITS:
        if len(rows := pictures.rows(split)):
            each = np.bincount(pictures.labels[rows], minlength=len(pictures.class_names))
            yield f"- {split}: {len(rows):,} pictures of {_spread(each, pictures.class_names)}"
    reasons = [f"{pictures.place(row)} {reason}" for row, reason in found.unreadable.items()]
    path = folder / f"unreadable-{name}.txt"
    _write_list(path, checked.ids(found.unreadable))
    yield from _shown("cannot be read", reasons, path.name)
    same, alike = found.same(), found.alike()
    listed = _leave_out(checked, same, folder / f"doubled-{name}.txt", "of each")
    yield from _copies(checked, "have copies", " = ", same, listed)
    # whoever leaves out what looks like a test picture wants its exact copies left out, too
    every, path = same + alike if alike else [], folder / f"alike-{name}.txt"
    listed = _leave_out(checked, every, path, "of each and of the copies above")
    yield from _copies(checked, "have near-duplicates, mirrored or not", " ≈ ", alike, listed)
    if faint := sum(found.is_faint(rows[0]) for rows in alike):
        yield f"- {faint} of these are nearly of one colour, and may show different things"
    yield from _sizes(found.sizes_N2[found.readable], checked.dataset.image_size)
    yield ""


def _leave_out(checked: _Checked, groups: list[list[int]], path: Path, of: str) -> str:
    """List all but the first of each group, but none of test, which others have evaluated on."""
    test = {*checked.found.pictures.rows("test").tolist()}
    others = [row for rows in groups for row in rows[1:] if row not in test]
    _write_list(path, checked.ids(others))
    if not others:
        return "all in test"
    return f"{path.name}: all but the first {of}" + (", none of test" if test else "")


def _copies(
    checked: _Checked, what: str, sign: str, groups: list[list[int]], listed: str
) -> Iterator[str]:
    """Word which pictures are there more than once.

    The groups that tear splits apart are named first, and then those that tear classes apart.
    """
    pictures = checked.found.pictures
    splits_and_classes: dict[str, npt.NDArray[np.integer]] = {
        "splits": pictures.splits,
        "classes": pictures.labels,
    }

    def torn(rows: list[int]) -> list[bool]:
        return [bool((of[rows] != of[rows[0]]).any()) for of in splits_and_classes.values()]

    groups = sorted(groups, key=torn, reverse=True)
    yield from _shown(what, [_joined(checked.ids(rows), sign) for rows in groups], listed)
    for n, (parts, of) in enumerate(splits_and_classes.items()):
        if apart := [rows for rows in groups if torn(rows)[n]]:
            first = apart[0][0]
            other = next(row for row in apart[0] if of[row] != of[first])
            example = sign.join(checked.ids([first, other]))
            yield f"- **{len(apart)} of these are in several {parts}**, such as {example}"


def _joined(ids: list[str], sign: str) -> str:
    """Name the first of a group."""
    more = f" … and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return sign.join(ids[:SHOWN]) + more


def _spread(each: npt.NDArray[np.int64], class_names: Sequence[str]) -> str:
    """Say how many pictures the classes have."""
    classes = f"{(each > 0).sum():,} classes"
    if each.min() == each.max():
        return f"{classes}, {each[0]} each"
    fewest = class_names[int(each.argmin())]
    return f"{classes}, {each.min()} ({fewest}) to {each.max()} each, median {np.median(each):g}"


def _sizes(sizes_N2: npt.NDArray[np.int64], image_size: int) -> Iterator[str]:
    """Say how large pictures are."""
    if not len(sizes_N2):
        return
    short, long = sizes_N2.min(axis=1), sizes_N2.max(axis=1)
    yield f"- shorter sides: {short.min()} to {short.max()} pixels, median {np.median(short):g}"
    if few := int((short < image_size).sum()):
        yield f"- smaller than image_size {image_size}, and enlarged: {few:,}"
    if odd := int((long / short > LONG).sum()):
        yield f"- more than {LONG:g} times as long as wide, or the reverse: {odd:,}"


def _shown(what: str, lines: list[str], listed: str) -> Iterator[str]:
    """Name the first of a list."""
    if not lines:
        yield f"- none {what}"
        return
    yield f"- **{len(lines)} {what}** ({listed}):"
    yield from (f"    - {line}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"    - … and {len(lines) - SHOWN} more"


def _shared(source: _Checked, target: _Checked) -> tuple[list[str], set[int]]:
    """Look for test pictures of a target in the source; return what to say, and the rows."""
    ours, theirs = source.found, target.found
    rows, test = np.flatnonzero(ours.readable), theirs.pictures.rows("test")
    test = test[theirs.readable[test]]
    first_n, first_m = first_alike(ours.looks.take(rows), theirs.looks.take(test))
    tested = np.flatnonzero(first_m >= 0)
    seen, count = rows[first_m[tested]], f"{len(tested)} of {len(test):,}"
    text = [f"- test pictures of {label(target.dataset)} that look like one of the source: {count}"]
    text += [
        f"    - {one} ≈ {other}"
        for one, other in zip(
            source.ids(seen[:SHOWN]), target.ids(test[tested[:SHOWN]]), strict=True
        )
    ]
    return [*text, ""], {*rows[first_n >= 0].tolist()}
