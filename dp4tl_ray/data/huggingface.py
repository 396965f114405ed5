"""Datasets of Hugging Face's `datasets`, from a folder or from its cache; never from the web."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp4tl_ray.data.images import Role, Split
from dp4tl_ray.data.pictures import DatasetError, Pictures
from dp4tl_ray.data.tables import WORDS, Table, joined
from dp4tl_ray.specs.data import HuggingFace

HUB = "hub:"
"""Start of a path that is a name of the hub."""
IMAGES, LABELS = ("image", "img"), ("label", "labels", "fine_label")
"""Names of columns, the likeliest first."""
SAVED = ("dataset_dict.json", "state.json")
"""Files that save_to_disk leaves."""


def list_huggingface(spec: HuggingFace, role: Role) -> Pictures:
    """List the rows of all splits; pictures are read one by one, as they are encoded.

    Raises:
        DatasetError: It is not here, the package is missing, or columns are not as they should be.
    """
    splits, whose = _load(spec), f"huggingface: {spec.path}"
    features = next(iter(splits.values())).features
    image = _column(features, spec.image, "Image", IMAGES, f"{whose}: image")
    label = _column(features, spec.label, "ClassLabel", LABELS, f"{whose}: label")
    tables = [
        _table(WORDS[name], name, rows, image, label)
        for name, rows in splits.items()
        if name in WORDS and (role == "target" or WORDS[name] == "train")
    ]
    class_names = getattr(features[label], "names", None) or ()
    listed = joined(tables, role, f"{whose}, column {label!r}", class_names)
    if not spec.path.startswith(HUB):
        # the package itself leaves cache-*.arrow beside what was saved
        below = (file for file in Path(spec.path).rglob("*") if not file.name.startswith("cache-"))
        files = sorted(file for file in below if file.is_file())
        return replace(listed, files=[str(file) for file in files])
    # its files are as old as the cache, but lie in a folder that names the revision
    used = {Path(file["filename"]).parent for rows in splits.values() for file in rows.cache_files}
    return replace(listed, version=" ".join(sorted(folder.name for folder in used)))


def _table(split: Split, name: str, rows: Any, image: str, label: str) -> Table:
    pictures = rows.select_columns([image])
    if type(rows.features[image]).__name__ == "Image":
        pictures = pictures.cast_column(image, type(rows.features[image])(decode=False))

    def read(row: int) -> bytes:
        from dp4tl_ray.data.decode import DecodeError  # needs torch, which listing does not

        content = pictures[row][image]
        if isinstance(content, dict):
            content, path = content["bytes"], content["path"]
            content = Path(path).read_bytes() if path and not content else content
        if content is None:
            raise DecodeError(f"is empty: column {image!r} holds null")
        if not isinstance(content, bytes):
            raise DatasetError(f"huggingface: column {image!r} does not hold pictures")
        return content

    return Table(split, [f"{name}/{row:05d}" for row in range(len(rows))], rows[label][:], read)


def _column(
    features: Mapping[str, Any], asked: str | None, kind: str, names: Sequence[str], field: str
) -> str:
    """Find the column that is asked for, or the likeliest one."""
    of_kind = [name for name, feature in features.items() if type(feature).__name__ == kind]
    likely = of_kind if len(of_kind) == 1 else [n for n in names if n in (of_kind or features)]
    if asked is not None:
        likely = [name for name in features if name == asked]
    if not likely:
        there = ", ".join(features)
        raise DatasetError(f"{field}: {asked or 'none'} of its columns is meant; it has {there}")
    return likely[0]


def is_cached(spec: HuggingFace) -> bool:
    """Say whether a dataset of the hub was loaded on this machine before."""
    try:
        from datasets.config import HF_DATASETS_CACHE
        from datasets.naming import camelcase_to_snakecase
    except ImportError:
        return False
    *user, name = spec.path.removeprefix(HUB).split("/")
    folder = "___".join([*user, camelcase_to_snakecase(name)])
    return os.path.isdir(os.path.join(HF_DATASETS_CACHE, folder))


def _load(spec: HuggingFace) -> dict[str, Any]:
    """Load every split."""
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            "huggingface needs the package datasets: pip install 'dp4tl_ray[huggingface]'"
        ) from error
    name, folder = spec.path.removeprefix(HUB), Path(spec.path)
    if name == spec.path and not folder.is_dir():
        raise DatasetError(
            f"huggingface: {spec.path} is not a folder; expected what save_to_disk writes, or "
            "files that load_dataset reads; a dataset of the hub is hub:USER/NAME"
        )
    try:
        with _offline(datasets):
            if name == spec.path and any((folder / file).exists() for file in SAVED):
                found = datasets.load_from_disk(name)
            else:
                found = datasets.load_dataset(name, spec.config)
    except Exception as error:  # that package raises what it likes
        told = f"huggingface: {spec.path} cannot be loaded: {type(error).__name__}: {error}"
        if name != spec.path:
            words = ", ".join(repr(word) for word in (name, spec.config) if word is not None)
            command = f"from datasets import load_dataset; load_dataset({words})"
            told += f'. Nothing is downloaded in a run: python -c "{command}" does it first'
        raise DatasetError(told) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Keep the package away from the web, and quiet."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
