"""Shards of WebDataset: one pass over the heads of a tar says where in it each picture lies.

https://github.com/webdataset/webdataset: files that share a name up to its first dot are a sample.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dp4tl_ray.data.files import find_files
from dp4tl_ray.data.images import SPLITS, Role, Split
from dp4tl_ray.data.pictures import DatasetError, Pictures, fingerprint, of_files
from dp4tl_ray.data.tables import Table, joined
from dp4tl_ray.specs.data import WebDataset

PICTURES, LABELS = ("jpg", "jpeg", "png", "webp"), ("cls", "json")
NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
"""Key and ending."""


class _Sample(NamedTuple):
    """Where a picture lies in its tar, and its class."""

    key: str
    offset: int
    size: int
    label: int | float | str


def list_webdataset(spec: WebDataset, role: Role) -> Pictures:
    """List the pictures of all shards, by shard and place in it.

    Raises:
        DatasetError: A shard is missing or damaged, or a picture has no class.
    """
    shards, names = _shards(spec, role), _class_names(spec)
    tables = [_table(split, name, file) for split, name, file in shards]
    class_names = names.read_text(encoding="utf-8").splitlines() if names.is_file() else ()
    listed = joined(tables, role, f"webdataset: {spec.path}", class_names)
    return replace(listed, files=[str(file) for _, _, file in shards])


def fingerprint_shards(spec: WebDataset, role: Role) -> str:
    """Identify the shards as files, because a million heads of a tar take minutes to read.

    Raises:
        DatasetError: There are none.
    """
    shards = _shards(spec, role)
    also = [path for path in (_class_names(spec), Path(spec.exclude or "")) if path.is_file()]
    splits = [SPLITS.index(split) for split, _, _ in shards]
    names = [name for _, name, _ in shards]
    as_pictures = of_files(Path(), names, [0] * len(names), splits, ())
    files = [str(file) for file in (*(file for _, _, file in shards), *also)]
    return fingerprint(replace(as_pictures, files=files, one_file_each=False))


def _shards(spec: WebDataset, role: Role) -> list[tuple[Split, str, Path]]:
    """Return the shards that a role reads."""
    found = find_files(spec.path, ".tar", "KEY.jpg and KEY.cls")
    return [shard for shard in found if role == "target" or shard[0] == "train"]


def _class_names(spec: WebDataset) -> Path:
    """Return where names of classes lie, if they do."""
    return Path(spec.path) / "classnames.txt"


def _table(split: Split, name: str, file: Path) -> Table:
    try:
        samples = [*_samples(file)]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"webdataset: {file} cannot be read: {error!r}") from error

    def read(row: int) -> bytes:
        with file.open("rb", buffering=0) as shard:
            return os.pread(shard.fileno(), samples[row].size, samples[row].offset)

    ids = [f"{name}#{sample.key}" for sample in samples]
    return Table(split, ids, [sample.label for sample in samples], read)


def _samples(file: Path) -> Iterator[_Sample]:
    """Read where pictures lie, and the classes; no picture is read."""
    pictures: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, Any] = {}
    with tarfile.open(file, "r:") as shard:  # not compressed: pictures are read where they lie
        for member in shard:
            if not member.isfile() or (parts := NAME.fullmatch(member.name)) is None:
                continue
            key, ending = parts[1], parts[2].lower()
            if key in pictures and ending in PICTURES:
                raise DatasetError(
                    f"webdataset: {file} has {key} twice: samples of a shard differ in their keys"
                )
            if ending in PICTURES:
                pictures[key] = member
            elif ending in LABELS and (ending == "cls" or key not in labels):
                content = shard.extractfile(member)
                assert content is not None
                label = _label(ending, content.read())
                if label is not None:
                    labels[key] = label
    for key, member in pictures.items():
        if key not in labels:
            raise DatasetError(
                f"webdataset: {key} of {file} has no class: {key}.cls, or `label` in {key}.json"
            )
        if type(label := labels[key]) not in (int, float, str):
            raise DatasetError(
                f"webdataset: `label` in {key}.json of {file} is {label!r} "
                f"({type(label).__name__}): it must be a whole number or a name"
            )
        yield _Sample(key, member.offset_data, member.size, labels[key])


def _label(ending: str, content: bytes) -> Any:
    """Read a class; None where a file says none, as JSON that is something else does."""
    if ending == "json":
        sample = json.loads(content)
        return sample.get("label") if isinstance(sample, dict) else None
    text = content.decode().strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else text
