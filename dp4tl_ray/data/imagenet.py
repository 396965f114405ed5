"""ImageNet as it is extracted: a folder per wnid, which is sorted for val too."""

import hashlib
import re
from pathlib import Path

from dp4tl_ray.data.image_folder import pictures_below
from dp4tl_ray.data.images import Role
from dp4tl_ray.data.pictures import DatasetError, Pictures, of_files
from dp4tl_ray.specs.data import ImageNet

WNID = re.compile(r"n\d{8}")
ILSVRC_2012 = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""sha256 of its 1,000 wnids, sorted, a line each: these have names in torchvision."""
LAYOUT = (
    "expected train/n01440764/*.JPEG to train/n15075141/*.JPEG, and for a target val likewise; "
    "https://image-net.org/download.php has the archives, for registered researchers"
)
SORTING = (
    "its pictures lie side by side: sort them into a folder per wnid, as "
    "https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh does"
)


def list_imagenet(spec: ImageNet, role: Role) -> Pictures:
    """List the pictures of train, and for a target those of val, as its test split.

    Raises:
        DatasetError: A folder is missing, or val is not sorted, or has other classes.
    """
    root = Path(spec.path)
    names: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    wnids = _wnids(root / "train")
    for folder, split in (("train", 0), ("val", 2))[: 1 if role == "source" else 2]:
        if odd := sorted({*wnids} ^ {*_wnids(root / folder)}):
            raise DatasetError(f"imagenet: class {odd[0]} is not in both train and val of {root}")
        for label, wnid in enumerate(wnids):
            files = pictures_below(root / folder / wnid)
            if not files:
                raise DatasetError(f"imagenet: {root / folder / wnid} has no pictures")
            names.extend(f"{folder}/{wnid}/{file}" for file in files)
            labels.extend([label] * len(files))
            splits.extend([split] * len(files))
    known = _names(root, wnids)
    class_names = tuple(f"{known[wnid]} ({wnid})" if wnid in known else wnid for wnid in wnids)
    return of_files(root, names, labels, splits, class_names)


def _wnids(folder: Path) -> list[str]:
    """Return the classes of a split, sorted."""
    if not folder.is_dir():
        raise DatasetError(f"imagenet: {folder} is not a folder; {LAYOUT}")
    wnids = sorted(entry.name for entry in folder.iterdir() if WNID.fullmatch(entry.name))
    if not wnids:
        flat = any(file.suffix.lower() == ".jpeg" for file in folder.iterdir())
        raise DatasetError(
            f"imagenet: {folder} has no folder n01440764 and so on; {SORTING if flat else LAYOUT}"
        )
    return wnids


def _names(root: Path, wnids: list[str]) -> dict[str, str]:
    """Return wnid -> name, as far as names are known here."""
    mapping, meta = root / "LOC_synset_mapping.txt", root / "meta.bin"
    if meta.exists():
        import torch

        try:
            classes, _ = torch.load(meta, weights_only=True)
            return {wnid: str(names[0]) for wnid, names in classes.items()}
        except Exception as error:  # of its many formats, each raises its own
            raise DatasetError(f"imagenet: {meta} is not torchvision's: {error}") from error
    if mapping.exists():
        lines = (line.split(maxsplit=1) for line in mapping.read_text("utf-8").splitlines() if line)
        return {wnid: names.split(",")[0].strip() for wnid, names in lines}
    if hashlib.sha256("\n".join(wnids).encode()).hexdigest() == ILSVRC_2012:
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        return dict(zip(wnids, _IMAGENET_CATEGORIES, strict=True))
    return {}
