"""Whose order a source is listed in: what an index means to other code."""

import os

from dp4tl_ray.specs.data import (
    Custom,
    Dataset,
    HuggingFace,
    ImageFolder,
    ImageNet,
    OnDisk,
    Parquet,
    TorchvisionDataset,
)

CIFAR = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def indexed_dataset(source: Dataset, some_id: str) -> str | None:
    """Name the dataset whose n-th item is the n-th that a source lists.

    Args:
        source: Dataset.
        some_id: Of any of its pictures: it says whether a folder has splits.

    Returns:
        null where the pictures are sorted by their names: no other code has them in that order.
    """
    match source:
        case ImageFolder(path=path):
            train = os.path.join(path, "train")
            return _folder(train if some_id.startswith("train/") else path)
        case ImageNet(path=path):
            return _folder(os.path.join(path, "train"))
        case TorchvisionDataset(dataset=name, path=path) if name in CIFAR:
            return f"torchvision.datasets.{CIFAR[name]}({path!r}, train=True)"
        case HuggingFace(path=path, config=config):
            return f"split train of {path}" + (f", configuration {config}" if config else "")
        case Parquet(path=path):
            return f"the rows of the training files of {path}, in the order of sorted pathlib paths"
        case Custom(path=path, loader=loader):
            return f"the training pictures of {path} as loader {loader} lists them"
        case OnDisk():
            return None
        case _:
            return f"{source.dataset} of dp4tl_ray"


def _folder(path: str) -> str:
    return f"torchvision.datasets.ImageFolder({path!r})"
