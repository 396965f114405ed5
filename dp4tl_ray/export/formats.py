"""The formats of an export: what other training code reads.

An index counts what the source's dataset lists, before anything was left out of it: to other code
that is the same picture. Shapes: n kept examples of N.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import assert_never

import numpy as np
import numpy.typing as npt

from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.export.choose import ExportError
from dp4tl_ray.export.order import indexed_dataset
from dp4tl_ray.scoring.given import SUBSET_FORMAT
from dp4tl_ray.specs.data import Dataset, OnDisk
from dp4tl_ray.specs.records import ExportFormat

COLUMNS = ("index", "id", "class_index", "class_name", "score", "rank")
ASCENDING: tuple[ExportFormat, ...] = ("ffcv-indices", "imagefolder-symlinks")
"""Formats in the order of the source; the others list the most wanted first."""
INDICES_ONLY: tuple[ExportFormat, ...] = ("npy", "ffcv-indices")
"""Formats without ids."""


@dataclass(frozen=True)
class Kept:
    """The kept examples, most wanted first."""

    rows: npt.NDArray[np.int64]
    """Among the source's examples, (n,)."""
    listed_rows: npt.NDArray[np.int64]
    """Row of each of the N examples among all that the source's dataset lists, ascending."""
    ids: list[str]
    """Name of each of the N examples."""
    labels: npt.NDArray[np.int64]
    """Class of each of the N examples."""
    class_names: list[str]
    scores: npt.NDArray[np.float64]
    """Score of each of the N examples, or of the class or cluster that it is in."""
    source: Dataset
    """Where the examples are."""

    @property
    def indexed(self) -> str | None:
        """The dataset whose items an index counts; null where there is none."""
        return indexed_dataset(self.source, self.ids[0])

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """What the kept examples are in the source's dataset, (n,), ascending."""
        return self.listed_rows[np.sort(self.rows)]

    def records(self) -> Iterator[tuple[int | None, str, int, str, float, int]]:
        """Give COLUMNS of each kept example; rank 0 is the most wanted one."""
        has_index = self.indexed is not None
        for rank, row in enumerate(self.rows.tolist()):
            index, k = int(self.listed_rows[row]) if has_index else None, int(self.labels[row])
            yield index, self.ids[row], k, self.class_names[k], float(self.scores[row]), rank


def write_format(kept: Kept, form: ExportFormat, folder: Path, out: Path) -> tuple[list[str], str]:
    """Write a subset into an empty folder.

    Args:
        kept: The subset.
        form: Format.
        folder: Where to write.
        out: Where the folder will be in the end.

    Returns:
        The files to be listed with their checksums, and how to read them in one line of code.

    Raises:
        ExportError: The source has no files, or no order that other code shares, as a format needs.
    """
    dataset = kept.indexed
    if form in INDICES_ONLY and dataset is None:
        raise ExportError(
            f"--format {form} has indices alone, and the pictures of {kept.source.dataset} are "
            "sorted by their names here, as in no other library: there an index would be another "
            "picture; these carry ids: txt, csv, hf, dp4tl, and imagefolder-symlinks of files"
        )
    match form:
        case "npy":
            np.save(folder / "kept.npy", kept.listed_rows[kept.rows], allow_pickle=False)
            return ["kept.npy"], (
                f'torch.utils.data.Subset(dataset, numpy.load("kept.npy"))  # dataset: {dataset}'
            )
        case "txt":
            text = "".join(f"{kept.ids[row]}\n" for row in kept.rows)
            (folder / "kept.txt").write_text(text, encoding="utf-8")
            return ["kept.txt"], 'open("kept.txt", encoding="utf-8").read().split("\\n")[:-1]'
        case "csv":
            with (folder / "kept.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *kept.records()])
            return ["kept.csv"], 'pandas.read_csv("kept.csv")'
        case "imagefolder-symlinks":
            return _write_links(kept, folder)
        case "ffcv-indices":
            return _write_ffcv(kept, folder, str(dataset))
        case "hf":
            return _write_json_lines(kept, folder, dataset)
        case "dp4tl":
            content = {"format": SUBSET_FORMAT, "ids": [kept.ids[row] for row in kept.rows]}
            (folder / "kept.json").write_text(json.dumps(content, indent=0), encoding="utf-8")
            path = json.dumps(str(out / "kept.json"), ensure_ascii=False)  # quoted, as YAML too
            return ["kept.json"], f"methods: [{{method: given, path: {path}}}]"
        case _:
            assert_never(form)


def _write_ffcv(kept: Kept, folder: Path, dataset: str) -> tuple[list[str], str]:
    """Write a tensor of indices, which is what the paper's code loads and hands to FFCV's Loader.

    They count the samples of a .beton in the order in which they were written, which must be the
    dataset's: DatasetWriter.from_indexed_dataset without shuffle_indices.
    """
    import torch

    torch.save(torch.from_numpy(kept.indices), folder / "kept.indices")
    return ["kept.indices"], (
        'ffcv.loader.Loader("train.beton", indices=torch.load("kept.indices", weights_only=True)'
        ".numpy(), ...)  # of a .beton that from_indexed_dataset wrote without shuffle_indices, of "
        f"{dataset}"
    )


def _write_json_lines(kept: Kept, folder: Path, dataset: str | None) -> tuple[list[str], str]:
    """Write an object per line, as `datasets.load_dataset("json", ...)` reads them.

    JSON has no infinite numbers: such scores are null.
    """
    with (folder / "kept.jsonl").open("w", encoding="utf-8") as file:
        for record in kept.records():
            fields = dict(zip(COLUMNS, record, strict=True))
            fields["score"] = fields["score"] if math.isfinite(record[4]) else None
            file.write(json.dumps(fields, allow_nan=False) + "\n")
    lines = 'datasets.load_dataset("json", data_files="kept.jsonl", split="train")'
    if dataset is None:
        return ["kept.jsonl"], (
            f'dataset.filter(set({lines}["id"]).__contains__, input_columns="id")  # dataset: any '
            "that has these ids in a column id"
        )
    return ["kept.jsonl"], f'dataset.select(sorted({lines}["index"]))  # dataset: {dataset}'


def _write_links(kept: Kept, folder: Path) -> tuple[list[str], str]:
    """Link to the pictures from train/CLASS/, under the names that they have in their class.

    The list of links is a file of its own, because links have no checksums.
    """
    source = kept.source
    pictures = open_pictures(source, "source")
    if not isinstance(source, OnDisk) or not pictures.one_file_each:
        indices = "" if kept.indexed is None else ", npy, ffcv-indices"
        raise ExportError(
            f"--format imagefolder-symlinks links to pictures, and those of {source.dataset} have "
            f"no files; allowed: txt, csv, hf, dp4tl{indices}"
        )
    files, places = dict(zip(pictures.ids, pictures.files, strict=True)), _places(kept)
    lines = []
    for row in np.sort(kept.rows).tolist():
        if kept.ids[row] not in files:
            raise ExportError(
                f"--format imagefolder-symlinks: {source.path} has no {kept.ids[row]} any more"
            )
        picture = Path(files[kept.ids[row]]).absolute()
        link = folder / "train" / places[row]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(picture)
        lines.append(f"train/{places[row]}\t{picture}\n")
    (folder / "links.tsv").write_text("".join(lines), encoding="utf-8")
    return ["links.tsv"], 'torchvision.datasets.ImageFolder("train")'


def _places(kept: Kept) -> dict[int, str]:
    """Return row -> CLASS/NAME: as in the source, where it has a folder per class."""
    rows = np.sort(kept.rows).tolist()
    parts = {row: _parts(kept.ids[row].removeprefix("train/")) for row in rows}
    pairs = {(parts[row][0], int(kept.labels[row])) for row in rows}
    folders, classes = ({pair[n] for pair in pairs} for n in (0, 1))
    if len(pairs) == len(folders) == len(classes) and min(map(len, parts.values())) > 1:
        places = ["/".join(parts[row]) for row in rows]
    else:
        names = _distinct(name.replace("/", "_") for name in kept.class_names)
        places = [f"{names[kept.labels[row]]}/{'_'.join(parts[row])}" for row in rows]
    return dict(zip(rows, _distinct(places), strict=True))


def _parts(id: str) -> list[str]:
    """Split an id that looks like a path, without what would lead out of a folder."""
    return [part for part in PurePosixPath(id).parts if part not in ("/", "//", "..")] or ["_"]


def _distinct(names: Iterable[str]) -> list[str]:
    """Number the names that were there before, in front of their ending."""
    taken = dict[str, None]()
    for name in names:
        stem, ending = os.path.splitext(name)
        numbered = (f"{stem}-{n}{ending}" for n in count(2))
        taken[next(new for new in chain([name], numbered) if new not in taken)] = None
    return list(taken)
