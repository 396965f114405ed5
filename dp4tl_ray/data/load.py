"""Dataset specs -> their pictures, listed; nothing is decoded."""

import glob
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from dp4tl_ray.data.coop import list_coop
from dp4tl_ray.data.elsewhere import is_installed, list_custom
from dp4tl_ray.data.files import numbered
from dp4tl_ray.data.huggingface import is_cached, list_huggingface
from dp4tl_ray.data.image_folder import list_image_folder
from dp4tl_ray.data.imagenet import list_imagenet
from dp4tl_ray.data.images import SPLITS, LabeledImages, Role
from dp4tl_ray.data.parquet import list_parquet
from dp4tl_ray.data.pictures import (
    UNWRITABLE,
    DatasetError,
    Pictures,
    with_all_splits,
    without,
)
from dp4tl_ray.data.pictures import fingerprint as fingerprint_of
from dp4tl_ray.data.torchvision_sets import folder_of, list_torchvision
from dp4tl_ray.data.waterbirds import list_waterbirds
from dp4tl_ray.data.webdataset import fingerprint_shards, list_webdataset
from dp4tl_ray.specs.data import (
    SCHEME,
    AnyOnDisk,
    CoOp,
    Custom,
    Dataset,
    GlyphsAndTextures,
    HandwrittenDigits,
    HeldOutLetters,
    HeldOutTextures,
    HuggingFace,
    ImageFolder,
    ImageNet,
    OnDisk,
    Parquet,
    Source,
    TorchvisionDataset,
    Waterbirds,
    WebDataset,
)

Embedded = GlyphsAndTextures | HeldOutLetters | HandwrittenDigits | HeldOutTextures


def open_pictures(spec: Dataset, role: Role) -> Pictures:
    """List or render the pictures of a dataset; a target comes with train, val and test splits.

    Args:
        spec: Dataset.
        role: What it is for. A source gives only what it trains on.

    Raises:
        DatasetError: Files are missing, or not as they should be.
    """
    if not isinstance(spec, OnDisk):
        return _rendered(spec)
    pictures = _listed(spec, role)
    if not len(pictures.rows("train")):
        raise DatasetError(f"{spec.dataset}: {spec.path} has no train pictures")
    if odd := [*filter(UNWRITABLE.search, (*pictures.class_names, *pictures.ids))]:
        raise DatasetError(
            f"{spec.dataset}: {odd[0]!r} in {spec.path} has a line break, or is not in UTF-8; "
            "rename it"
        )
    if len(set(pictures.ids)) != len(pictures):
        twice = Counter(pictures.ids).most_common(1)[0][0]
        raise DatasetError(f"{spec.dataset}: two pictures of {spec.path} have the id {twice!r}")
    if role == "source":
        # what a source lists is its train split
        pictures = replace(pictures.take(pictures.rows("train")), listed_rows=None)
    else:  # before anything is left out, which must not move the others to another split
        pictures = with_all_splits(pictures)
    if spec.exclude is None:
        return pictures
    pictures = without(pictures, Path(spec.exclude))
    for split in SPLITS if role == "target" else SPLITS[:1]:
        if not len(pictures.rows(split)):
            raise DatasetError(f"exclude {spec.exclude}: leaves no {split} pictures of {spec.path}")
    return pictures


def _listed(spec: AnyOnDisk, role: Role) -> Pictures:
    match spec:
        case ImageFolder():
            return list_image_folder(spec, role)
        case ImageNet():
            return list_imagenet(spec, role)
        case TorchvisionDataset():
            return list_torchvision(spec, role)
        case CoOp():
            return list_coop(spec)
        case Waterbirds():
            return list_waterbirds(spec)
        case HuggingFace():
            return list_huggingface(spec, role)
        case Parquet():
            return list_parquet(spec, role)
        case WebDataset():
            return list_webdataset(spec, role)
        case Custom():
            return list_custom(spec, role)
        case _:
            assert_never(spec)


def _rendered(spec: Embedded) -> Pictures:
    data = _embedded(spec)
    return Pictures(data.ids, data.labels, data.splits, data.class_names, lambda i: data.images[i])


def _embedded(spec: Embedded) -> LabeledImages:
    from dp4tl_ray.data import embedded  # renders with matplotlib and scikit-learn

    match spec:
        case GlyphsAndTextures():
            return embedded.glyphs_and_textures(spec.image_size, spec.images_per_class, spec.seed)
        case HeldOutLetters():
            return embedded.held_out_letters(spec.image_size, seed=0)
        case HandwrittenDigits():
            return embedded.handwritten_digits(spec.image_size)
        case HeldOutTextures():
            return embedded.held_out_textures(spec.image_size, seed=0)
        case _:
            assert_never(spec)


def fingerprint(spec: AnyOnDisk, role: Role, listed: Pictures | None = None) -> str:
    """Identify what a dataset's files hold, without opening the pictures.

    Args:
        spec: Dataset.
        role: What it is for.
        listed: What `open_pictures` has given just now; a million files take a while to list.

    Raises:
        DatasetError: Files are missing, or not as they should be.
    """
    if isinstance(spec, WebDataset):
        return fingerprint_shards(spec, role)
    pictures = open_pictures(spec, role) if listed is None else listed
    return fingerprint_of(pictures, missing_ok=spec.corrupt == "skip")


def place_of(spec: OnDisk) -> str:
    """Return the file or folder that a dataset is."""
    return folder_of(spec) if isinstance(spec, TorchvisionDataset) else spec.path


def is_absent(spec: OnDisk) -> bool:
    """Say whether a dataset is not on this machine."""
    if SCHEME.match(spec.path):
        match spec:
            case HuggingFace():
                return not is_cached(spec)
            case Custom():
                return not is_installed(spec.loader)
    place = place_of(spec)
    return not (os.path.exists(place) or any(map(glob.glob, numbered(place))))


def count_source(spec: Source) -> int:
    """Count the examples of a source without reading or rendering them.

    Raises:
        DatasetError: Files are missing.
    """
    if isinstance(spec, GlyphsAndTextures):
        from dp4tl_ray.data.glyphs import CHARACTERS
        from dp4tl_ray.data.textures import SOURCE_TEXTURES

        return (len(CHARACTERS) + len(SOURCE_TEXTURES)) * spec.images_per_class
    return len(open_pictures(spec, "source"))
