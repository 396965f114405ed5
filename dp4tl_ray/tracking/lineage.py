"""What a cell rests on, as artifacts: surrogate, subset and pretrained weights."""

from collections.abc import Mapping
from typing import Literal

from dp4tl_ray.plan import PlannedStep
from dp4tl_ray.store import Artifact, Store
from dp4tl_ray.tracking.messages import Item

LARGEST_BYTES = 1_000_000
"""A larger file stays where it is, and is referred to."""


def model_item(store: Store, kind: str, step: PlannedStep, artifact: Artifact, made: bool) -> Item:
    """Describe the network that a step left; its weights, if they are large, by reference."""
    files = {name: (step, artifact) for name in artifact.manifest.files if "_EN" not in name}
    return _item(store, f"{kind}-{step.digest[:12]}", "model", step, files, made)


def subset_item(
    store: Store, steps: Mapping[str, PlannedStep], found: Mapping[str, Artifact], made: bool
) -> Item:
    """Describe what pruning left: kept indices, with the scores and the names of the classes.

    Args:
        store: Where they are.
        steps: Of the cell, by role.
        found: Their artifacts.
        made: Whether the cell made it.
    """
    files = {
        name: (steps[role], found[role])
        for role, name in (
            ("prune", "kept_indices.npy"),
            ("score", "score_U.npy"),
            ("source", "class_names.json"),
        )
        if role in found
    }
    prune = steps["prune"]
    return _item(store, f"subset-{prune.digest[:12]}", "dataset", prune, files, made)


def _item(
    store: Store,
    name: str,
    kind: Literal["dataset", "model"],
    step: PlannedStep,
    files: Mapping[str, tuple[PlannedStep, Artifact]],
    made: bool,
) -> Item:
    small = {
        file: artifact.file(file)
        for file, (_, artifact) in files.items()
        if artifact.manifest.files[file].size <= LARGEST_BYTES
    }
    large = {file: uri_of(store, s, file) for file, (s, _) in files.items() if file not in small}
    artifact = next(a for s, a in files.values() if s is step)
    metadata = {
        "digest": step.digest,
        "uri": uri_of(store, step),
        "spec": step.spec.model_dump(mode="json"),
        **artifact.manifest.metrics,
    }
    return Item(name, kind, made, metadata, small, large)


def uri_of(store: Store, step: PlannedStep, file: str = "") -> str:
    """Return where a file of an artifact is, for other machines; in object storage its folder,
    where names carry a checksum."""
    if "://" in store.uri:
        return f"{store.uri.rstrip('/')}/{store.name(step)}"
    return (store.folder(step) / file).as_uri()
