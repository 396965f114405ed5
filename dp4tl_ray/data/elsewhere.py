"""Datasets that other packages list: functions that they announce as entry points.

A loader is a function `loader(path: str, role: "source" | "target", **options) -> Pictures`
(dp4tl_ray.data.pictures) that decodes nothing; `of_files`, there, makes them of pictures that are a
file each. Its package announces it:

    [project.entry-points."dp4tl_ray.datasets"]
    my_dataset = "my_package.data:my_dataset"

A study then says `{dataset: custom, loader: my_dataset, path: /data/mine}`; a path with a scheme,
such as mine:NAME or s3://BUCKET, is handed over as it is. It runs wherever the package is
installed: on a cluster, on every node.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dp4tl_ray.data.images import SPLITS, Role
from dp4tl_ray.data.pictures import DatasetError, Pictures
from dp4tl_ray.plugins import PluginError, find_plugin, package_of
from dp4tl_ray.specs.data import Custom

GROUP = "dp4tl_ray.datasets"


def list_custom(spec: Custom, role: Role) -> Pictures:
    """List the pictures that a loader gives; the version of its package is part of what they are.

    Raises:
        DatasetError: No installed package announces it, or it fails, or gives something else.
    """
    whose = f"custom: loader {spec.loader!r}"
    try:
        point = find_plugin(GROUP, spec.loader)
    except PluginError as error:
        raise DatasetError(f"custom: loader {error}") from error
    package = package_of(point)
    try:
        loader: Callable[..., Any] = point.load()
        pictures: Pictures = loader(spec.path, role, **spec.options)
    except DatasetError:
        raise
    except Exception as error:  # it is not ours
        raise DatasetError(f"{whose} ({package}): {type(error).__name__}: {error}") from error
    if wrong := _wrong(pictures):
        raise DatasetError(f"{whose} ({package}) gave {wrong}")
    return replace(pictures, version=f"{package} {pictures.version}".strip())


def is_installed(name: str) -> bool:
    """Say whether a package here announces a loader."""
    try:
        find_plugin(GROUP, name)
    except PluginError:
        return False
    return True


def _wrong(pictures: Any) -> str:
    """Say what is wrong with pictures; empty if nothing is."""
    if not isinstance(pictures, Pictures):
        return f"{type(pictures).__name__}, not Pictures"
    total, num_classes = len(pictures.ids), len(pictures.class_names)
    arrays: dict[str, tuple[Any, int]] = {
        "labels": (pictures.labels, num_classes),
        "splits": (pictures.splits, len(SPLITS)),
    }
    if pictures.groups is not None:
        arrays["groups"] = pictures.groups, len(pictures.group_names)
    for name, (array, bound) in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "i" or array.shape != (total,):
            return f"{name} that are no whole numbers of shape ({total},), one per id"
        if total and (array.min() < 0 or array.max() >= bound):
            return f"{name} from {array.min()} to {array.max()}; 0 to {bound - 1} are allowed"
    if not all(isinstance(id, str) for id in pictures.ids):
        return "ids that are no strings"
    if pictures.one_file_each and len(pictures.files) != total:
        return f"{len(pictures.files)} files and {total} ids, and says one_file_each"
    if len(set(pictures.class_names)) != num_classes:
        return "a class name twice"
    return ""
