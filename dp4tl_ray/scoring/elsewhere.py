"""Scores that this package does not compute: plug-ins of other packages, and files.

A plug-in is a function `scorer(inputs: ScorerInputs, **options) -> scores (N,)`, higher = keep,
that its package announces under the entry point group `dp4tl_ray.scorers`:

    [project.entry-points."dp4tl_ray.scorers"]
    my_scorer = "my_package.scores:my_scorer"

A study then says `methods: [{method: plugin, scorer: my_scorer}]`. It runs wherever the package is
installed: on a cluster, on every node.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dp4tl_ray.plugins import PluginError, find_plugin, package_of
from dp4tl_ray.specs.pretraining import Pretrained

GROUP = "dp4tl_ray.scorers"
Floats = npt.NDArray[np.float64]


class ScorerError(ValueError):
    """A plug-in or a file of scores cannot be used; the message names it and says why."""


def find_scorer(name: str) -> EntryPoint:
    """Find the entry point of a plug-in.

    Raises:
        ScorerError: No installed package announces it.
    """
    try:
        return find_plugin(GROUP, name)
    except PluginError as error:
        raise ScorerError(f"plug-in {error}") from error


def scorer_version(name: str) -> str:
    """Name the package of a plug-in with its version, part of the identity of its scores."""
    return package_of(find_scorer(name))


def checked_scores(scores: Any, num_examples: int, whose: str) -> Floats:
    """Return scores as (N,) float64.

    Raises:
        ScorerError: Wrong shape, not numbers, or not comparable; `whose` names their origin.
    """
    array = np.asarray(scores)
    if array.shape != (num_examples,):
        raise ScorerError(
            f"{whose} gave scores of shape {array.shape}; the source has {num_examples} examples, "
            f"so it must be ({num_examples},)"
        )
    if array.dtype.kind not in "fiub":
        raise ScorerError(f"{whose} gave scores of type {array.dtype}; numbers are needed")
    if np.isnan(array := array.astype(np.float64)).any():
        raise ScorerError(f"{whose} gave NaN as score of example {int(np.isnan(array).argmax())}")
    return array


def file_fingerprint(path: str, whose: str) -> str:
    """Return the checksum of a file.

    Raises:
        ScorerError: It cannot be read; `whose` says what it is of.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ScorerError(f"{whose} {path}: {error.strerror}") from error


def is_file(spec: Pretrained) -> bool:
    """Say whether weights are in a file, and not known to a package by name."""
    return spec.weights != "timm" and not spec.weights.startswith("torchvision:")


def pretrained_fingerprint(spec: Pretrained) -> str:
    """Return the checksum of a file of weights, "" for weights that a package knows by name.

    Raises:
        ScorerError: It cannot be read.
    """
    if not is_file(spec):
        return ""
    try:
        return file_fingerprint(spec.weights, "weights")
    except ScorerError as error:
        raise ScorerError(
            f"{error}; weights are a file, torchvision:NAME (such as torchvision:IMAGENET1K_V1), "
            "or timm"
        ) from error.__cause__


def scores_from_file(path: str, ids: Sequence[str]) -> Floats:
    """Read scores of an .npz with `ids` (M,) and `scores` (M,), in any order, joined by id.

    It may have more than the N examples, such as those that `exclude` leaves out.

    Raises:
        ScorerError: Not such a file, or of another dataset.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names, scores = file["ids"], file["scores"]
    except (OSError, KeyError, ValueError, TypeError, EOFError) as error:
        raise ScorerError(
            f"scores_file {path}: needs arrays ids and scores in an .npz, as "
            f"numpy.savez({path!r}, ids=ids, scores=scores) writes it ({error})"
        ) from error
    if names.dtype.kind != "U":
        raise ScorerError(f"scores_file {path}: ids are {names.dtype}; they must be texts")
    values = checked_scores(scores, len(names), f"scores_file {path}")
    of = dict(zip(names.tolist(), values.tolist(), strict=True))
    if len(of) < len(names):
        twice = Counter(names.tolist()).most_common(1)[0][0]
        raise ScorerError(f"scores_file {path}: has {twice!r} more than once")
    if missing := [name for name in ids if name not in of]:
        raise ScorerError(
            f"scores_file {path} is of another dataset: {len(missing)} of the source's {len(ids)} "
            f"examples are not in it, such as {missing[0]!r}; its ids look like {names[0]!r}"
        )
    return np.array([of[name] for name in ids], np.float64)
