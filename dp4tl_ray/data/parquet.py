"""Parquet files with a row per picture; of their pictures, row groups are read as rows are."""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from dp4tl_ray.data.files import find_files
from dp4tl_ray.data.images import Role, Split
from dp4tl_ray.data.pictures import DatasetError, Pictures
from dp4tl_ray.data.tables import Table, joined
from dp4tl_ray.specs.data import Parquet

KEPT_BYTES = 2**28
"""Of row groups that are kept besides the last one: threads read rows near each other."""


def list_parquet(spec: Parquet, role: Role) -> Pictures:
    """List the rows of all files, by file and row; of the pictures nothing is read yet.

    Raises:
        DatasetError: A file is missing, or is not Parquet, or lacks a column.
    """
    holding = f"columns {spec.image!r}, encoded pictures, and {spec.label!r}"
    files = find_files(spec.path, ".parquet", holding)
    pictures = _RowGroups(spec.image)
    tables, class_names = list[Table](), list[str]()
    for split, name, file in files:
        if role == "source" and split != "train":
            continue
        try:
            table, names = _table(spec, split, name, file, pictures)
        except (OSError, ValueError) as error:  # pyarrow's own errors are such
            raise DatasetError(f"parquet: {file} cannot be read: {error}") from error
        tables.append(table)
        class_names = class_names or names
    whose = f"parquet: {spec.path}, column {spec.label!r}"
    listed = joined(tables, role, whose, class_names)
    return replace(listed, files=[str(file) for _, _, file in files])


def _table(
    spec: Parquet, split: Split, name: str, file: Path, pictures: "_RowGroups"
) -> tuple[Table, list[str]]:
    """Read everything of a file but its pictures; and the names of classes, where it has them."""
    from pyarrow.parquet import ParquetFile

    wanted = [column for column in (spec.label, spec.id) if column is not None]
    with ParquetFile(file) as parquet:
        for column in (spec.image, *wanted):
            if column not in parquet.schema_arrow.names:
                there = ", ".join(parquet.schema_arrow.names)
                raise DatasetError(f"parquet: {file} has no column {column!r}; it has {there}")
        columns = parquet.read(columns=wanted, use_threads=False)
        groups = [parquet.metadata.row_group(n) for n in range(parquet.num_row_groups)]
        class_names = _class_names(parquet.schema_arrow.metadata or {}, spec.label)
    ends = [*accumulate(group.num_rows for group in groups)]

    def read(row: int) -> bytes:
        group = bisect_right(ends, row)
        return pictures.read(file, group, row - ends[group] + groups[group].num_rows)

    ids: Sequence[str] = [f"{name}#{row}" for row in range(columns.num_rows)]
    if spec.id is not None:
        ids = [str(id) for id in columns[spec.id].to_pylist()]
    return Table(split, ids, columns[spec.label].to_pylist(), read), class_names


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str]:
    """Return the names that Hugging Face's writer left for the numbers of a column."""
    with suppress(KeyError, ValueError, TypeError):
        info = json.loads(metadata[b"huggingface"])["info"]
        return [str(name) for name in info["features"][label]["names"]]
    return []


class _RowGroups:
    """The pictures of row groups, of which the last ones are kept.

    Args:
        column: Of the pictures.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._kept: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        self._lock = Lock()

    def read(self, file: Path, group: int, row: int) -> bytes:
        """Return what the picture of a row of a row group holds.

        Raises:
            DecodeError: The row holds none.
            DatasetError: The column is not one of pictures.
        """
        from dp4tl_ray.data.decode import DecodeError  # needs torch, which listing does not

        with self._lock:
            pictures = self._group(file, group)
        content = pictures[row].as_py()
        content = content.get("bytes") if isinstance(content, dict) else content
        if content is None:
            raise DecodeError(f"is empty: column {self.column!r} holds null")
        if not isinstance(content, bytes):
            raise DatasetError(f"parquet: column {self.column!r} of {file} does not hold pictures")
        return content

    def _group(self, file: Path, group: int) -> Any:
        from pyarrow.parquet import ParquetFile

        if (file, group) not in self._kept:
            with ParquetFile(file) as parquet:
                table = parquet.read_row_group(group, columns=[self.column], use_threads=False)
            self._kept[file, group] = table[self.column]
            while len(self._kept) > 1 and sum(c.nbytes for c in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end((file, group))
        return self._kept[file, group]
