"""Check the datasets of a study: what is unreadable, doubled, odd, or in source and test alike."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dp4tl_ray.algorithms.near_duplicates import near_duplicates
from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.data.check import Inspection, inspect
from dp4tl_ray.data.images import SPLITS, Role
from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.specs.base import did_you_mean, label
from dp4tl_ray.specs.data import Dataset, channels, located
from dp4tl_ray.specs.load import StudyError
from dp4tl_ray.specs.study import Study

SHOWN = 10
"""Pictures of a kind that are named; the lists have all."""
LONG = 3.0
"""Ratio of the sides from which on a picture is called long: cropping loses most of it."""


def check_study(study: Study, folder: Path, against: str | None = None) -> tuple[str, bool]:
    """Decode every picture of a study's datasets; write data_check.md, and lists of ids.

    Args:
        study: What names the datasets.
        folder: Where to write.
        against: The one target whose test pictures are looked for in the source; None looks for
            those of all.

    Returns:
        The report, and whether every picture can be read.
    """
    targets = [target for target in study.targets if against in (None, *_names(target))]
    if not targets:
        known = [target.dataset for target in study.targets]
        raise StudyError(f"--against {against}: no such target; {did_you_mean(against, known)}")
    folder.mkdir(parents=True, exist_ok=True)
    source = _inspect(study, study.source, "source")
    text, sound = [*_findings(source, study.source, "source", folder)], not source.unreadable
    for n, target in enumerate(targets):
        found = _inspect(study, target, "target")
        sound = sound and not found.unreadable
        text += _findings(found, target, f"target-{n}", folder)
        text += _shared(source, found, target, folder / f"near_duplicates-{n}.txt")
    report = "\n".join([f"# Datasets of {study.name}", "", *text, ""])
    _write(folder / "data_check.md", report)
    return report, sound


def _names(dataset: Dataset) -> tuple[str, str]:
    return dataset.dataset, label(dataset)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def _inspect(study: Study, dataset: Dataset, role: Role) -> Inspection:
    pictures = open_pictures(located(dataset, study.data_root), role)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{role} {dataset.dataset}", total=len(pictures))
        reach = partial(bar.update, task)
        threads = os.cpu_count() or 1
        return inspect(pictures, channels(dataset), threads, lambda row: reach(completed=row))


def _findings(found: Inspection, dataset: Dataset, name: str, folder: Path) -> Iterator[str]:
    """Word what was found in one dataset."""
    pictures, ids = found.pictures, found.pictures.ids
    yield f"## {name.partition('-')[0]}: {label(dataset)}"
    yield ""
    for split in SPLITS:
        if len(rows := pictures.rows(split)):
            each = np.bincount(pictures.labels[rows], minlength=len(pictures.class_names))
            fewest = pictures.class_names[each.argmin()]
            yield (
                f"- {split}: {len(rows):,} pictures of {(each > 0).sum()} classes, {each.min()} to "
                f"{each.max()} each (median {np.median(each):g}; fewest: {fewest})"
            )
    unreadable = [f"{pictures.place(row)} {reason}" for row, reason in found.unreadable.items()]
    yield from _listed("cannot be read", unreadable, folder / f"unreadable-{name}.txt")
    same = found.same()
    doubled = [" = ".join(ids[row] for row in rows) for rows in same]
    yield from _listed("are there more than once", doubled, folder / f"doubled-{name}.txt")
    torn = [rows for rows in same if len({*pictures.labels[rows]}) > 1]
    if torn:
        example = " = ".join(ids[row] for row in torn[0][:2])
        yield f"- **{len(torn)} of these have several classes**, such as {example}"
    leaks = [rows for rows in same if len({*pictures.splits[rows]}) > 1]
    if leaks:
        example = " = ".join(ids[row] for row in leaks[0][:2])
        yield f"- **{len(leaks)} of these are in several splits**, such as {example}"
    sizes = found.sizes_N2[found.readable]
    if len(sizes):
        short, long = sizes.min(axis=1), sizes.max(axis=1)
        yield f"- shorter sides: {short.min()} to {short.max()} pixels, median {np.median(short):g}"
        if few := int((short < dataset.image_size).sum()):
            yield f"- {few:,} are smaller than image_size {dataset.image_size}, and are enlarged"
        if odd := int((long / short > LONG).sum()):
            yield f"- {odd:,} are more than {LONG:g} times as long as wide, or the reverse"
    yield ""


def _listed(what: str, lines: list[str], path: Path) -> Iterator[str]:
    """Write a list, and name its first entries; nothing is written where it is empty."""
    path.unlink(missing_ok=True)
    if not lines:
        yield f"- none {what}"
        return
    _write(path, "".join(f"{line}\n" for line in lines))
    yield f"- **{len(lines)} {what}** ({path.name}):"
    yield from (f"    - {line}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"    - … and {len(lines) - SHOWN} more"


def _shared(source: Inspection, target: Inspection, dataset: Dataset, path: Path) -> Iterator[str]:
    """Look for test pictures of a target in the source, and list the source's ids."""
    ours = np.flatnonzero(source.readable)
    test = target.pictures.rows("test")
    test = test[target.readable[test]]
    pairs = near_duplicates(
        source.hash_N[ours], source.small_NSS[ours], target.hash_N[test], target.small_NSS[test]
    )
    name = dataset.dataset
    path.unlink(missing_ok=True)
    if not len(pairs):
        yield f"- no test picture of {name} looks like one of the source"
        yield ""
        return
    rows = sorted({int(ours[i]) for i, _ in pairs})
    _write(path, "".join(f"{source.pictures.ids[row]}\n" for row in rows))
    tested = len({int(j) for _, j in pairs})
    yield (
        f"- **{tested} of {len(test):,} test pictures of {name} look like {len(rows)} of the "
        f"source** ({path.name}):"
    )
    for i, j in pairs[:SHOWN]:
        pair = source.pictures.ids[int(ours[i])], target.pictures.ids[int(test[j])]
        yield f"    - {pair[0]} ≈ {pair[1]}"
    yield f"- the study without them: `--set source.exclude={path}`"
    yield ""
