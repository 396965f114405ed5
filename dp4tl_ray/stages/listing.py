"""What a dataset lists, of which its data step may have left some out."""

from pathlib import Path

import numpy as np

from dp4tl_ray.data.pictures import read_ids
from dp4tl_ray.scoring.given import Listing
from dp4tl_ray.specs.data import OnDisk
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.store import Artifact


def listing_of(data: Artifact) -> Listing:
    """Return where the examples of a dataset are in its listing, and what else that has."""
    rows = np.asarray(data.array("listed_rows"))
    return Listing(rows, [*skipped_ids(data), *(excluded_ids(data) or ())])


def skipped_ids(data: Artifact) -> list[str]:
    """Return the ids of the pictures that do not decode."""
    if "skipped.json" not in data.manifest.files:
        return []
    return [id for id, _ in data.json("skipped")]


def excluded_ids(data: Artifact) -> list[str] | None:
    """Return the ids that `exclude` left out; null where its file is not here.

    The file is still what it was: other ids would be another dataset, with another data step.
    """
    spec = data.manifest.spec
    assert isinstance(spec, DataStep)
    if not isinstance(spec.dataset, OnDisk) or spec.dataset.exclude is None:
        return []
    try:
        return sorted({*read_ids(Path(spec.dataset.exclude))})
    except OSError:
        return None
