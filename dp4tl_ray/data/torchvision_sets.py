"""The paper's targets as torchvision has them: its own classes say which pictures there are."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dp4tl_ray.data.images import SPLITS, Pixels, Role, Split
from dp4tl_ray.data.pictures import DatasetError, Pictures, of_files
from dp4tl_ray.specs.data import TorchvisionDataset

Named = Iterable[tuple[str | Path, int]]
"""File and label of each picture."""
Arguments = Mapping[Split, Mapping[str, Any]]
"""What a class is told to give a split; a dataset without official ones is all train."""
TRAIN_OR_NOT: Arguments = {"train": {"train": True}, "test": {"train": False}}
TRAIN_TEST: Arguments = {"train": {"split": "train"}, "test": {"split": "test"}}
ALL_THREE: Arguments = {split: {"split": split} for split in SPLITS}
UNDIVIDED: Arguments = {"train": {}}


class _Layout(NamedTuple):
    """What is known of one of torchvision's datasets."""

    name: str
    """Its class."""
    splits: Arguments
    named: Callable[[Any], Named] | None
    """Reads files and labels of an instance; None where it holds pixels."""
    expected: tuple[str, ...]
    """What lies below the root; the first folder is the dataset's own."""
    page: str
    elsewhere: str = ""
    """Where to get it, if torchvision cannot download it any more."""


def _image_files(dataset: Any) -> Named:
    return zip(dataset._image_files, dataset._labels, strict=True)


LAYOUTS: Mapping[str, _Layout] = {
    "cifar10": _Layout(
        "CIFAR10", TRAIN_OR_NOT, None,
        ("cifar-10-batches-py/data_batch_1 to data_batch_5, test_batch, batches.meta",),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": _Layout(
        "CIFAR100", TRAIN_OR_NOT, None,
        ("cifar-100-python/train, test, meta",),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "sun397": _Layout(
        "SUN397", UNDIVIDED, _image_files,
        ("SUN397/ClassName.txt", "SUN397/a/abbey/sun_*.jpg"),
        "https://vision.princeton.edu/projects/2010/SUN/",
        "its archive is gone; the pictures are also on the hub of Hugging Face: "
        "{dataset: huggingface, path: hub:tanganke/sun397}",
    ),
    "oxford_iiit_pet": _Layout(
        "OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}},
        lambda dataset: zip(dataset._images, dataset._labels, strict=True),
        ("oxford-iiit-pet/images/*.jpg", "oxford-iiit-pet/annotations/trainval.txt and test.txt"),
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    "flowers102": _Layout(
        "Flowers102", ALL_THREE, _image_files,
        ("flowers-102/jpg/image_*.jpg", "flowers-102/imagelabels.mat and setid.mat"),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "dtd": _Layout(
        "DTD", ALL_THREE, _image_files,
        ("dtd/dtd/images/banded/*.jpg", "dtd/dtd/labels/train1.txt, val1.txt and test1.txt"),
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    ),
    "stanford_cars": _Layout(
        "StanfordCars", TRAIN_TEST, lambda dataset: dataset._samples,
        ("stanford_cars/cars_train/*.jpg", "stanford_cars/cars_test/*.jpg",
         "stanford_cars/devkit/cars_train_annos.mat and cars_meta.mat",
         "stanford_cars/cars_test_annos_withlabels.mat"),
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        "its page is gone; https://github.com/pytorch/vision/issues/7545 says how to put this "
        "layout together, and the pictures are also on the hub of Hugging Face: "
        "{dataset: huggingface, path: hub:tanganke/stanford_cars}",
    ),
    "food101": _Layout(
        "Food101", TRAIN_TEST, _image_files,
        ("food-101/images/apple_pie/*.jpg", "food-101/meta/train.json and test.json"),
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    "eurosat": _Layout(
        "EuroSAT", UNDIVIDED, lambda dataset: dataset.samples,
        ("eurosat/2750/AnnualCrop/*.jpg",),
        "https://github.com/phelber/eurosat",
    ),
}  # fmt: skip


def folder_of(spec: TorchvisionDataset) -> str:
    """Return the folder that is the dataset's own, below the root."""
    return os.path.join(spec.path, LAYOUTS[spec.dataset].expected[0].split("/")[0])


def list_torchvision(spec: TorchvisionDataset, role: Role) -> Pictures:
    """List the pictures of all splits that a role reads, each split in the order of its files.

    Raises:
        DatasetError: torchvision does not find what it expects, or a part of it is damaged.
    """
    layout = LAYOUTS[spec.dataset]
    wanted = [split for split in layout.splits if role == "target" or split == "train"]
    found = {split: _instance(spec, layout, split) for split in wanted}
    class_names = tuple(str(name) for name in found["train"].classes)
    if any(list(one.classes) != list(found["train"].classes) for one in found.values()):
        raise DatasetError(f"{spec.dataset}: the splits below {spec.path} differ in their classes")
    if layout.named is None:
        return _of_arrays(spec, found, class_names)
    root = os.path.abspath(spec.path)
    rows = [
        (SPLITS.index(split), Path(file).relative_to(root).as_posix(), int(label))
        for split, one in found.items()
        for file, label in layout.named(one)
    ]
    # SUN397's class lists files in the order of the file system
    rows.sort()
    splits, names, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return of_files(Path(spec.path), names, labels, splits, class_names)


def _instance(spec: TorchvisionDataset, layout: _Layout, split: Split) -> Any:
    """Make torchvision's dataset of a split; it looks at files and reads no picture."""
    if not os.path.isdir(folder_of(spec)):
        raise DatasetError(_what_to_do(spec, layout, f"{folder_of(spec)} is not a folder"))
    from torchvision import datasets  # takes seconds, which other datasets need not wait for

    try:
        # absolute, because some classes expand a ~ and others do not
        return getattr(datasets, layout.name)(os.path.abspath(spec.path), **layout.splits[split])
    except Exception as error:  # its classes raise what they like
        message = f"torchvision cannot read {folder_of(spec)}: {type(error).__name__}: {error}"
        raise DatasetError(_what_to_do(spec, layout, message)) from error


def _what_to_do(spec: TorchvisionDataset, layout: _Layout, message: str) -> str:
    """Add to a message what is expected, and where to get it."""
    command = (
        f"from torchvision.datasets import {layout.name}; "
        f"{layout.name}({spec.path!r}, download=True)"
    )
    get = layout.elsewhere or f'python -c "{command}" downloads it'
    expected = "; ".join(f"{spec.path}/{place}" for place in layout.expected)
    return f"{spec.dataset}: {message}. Expected: {expected}. {layout.page}: {get}"


def _of_arrays(
    spec: TorchvisionDataset, found: Mapping[Split, Any], class_names: tuple[str, ...]
) -> Pictures:
    """Describe pictures that lie in a few files as pixels, by their place in their split."""
    pixels: Pixels = np.concatenate([one.data for one in found.values()])
    ids, labels, splits, files = list[str](), list[int](), list[int](), list[str]()
    for split, one in found.items():
        ids += [f"{split}/{n:05d}" for n in range(len(one.data))]
        labels += one.targets
        splits += [SPLITS.index(split)] * len(one.data)
        files += [name for name, _ in (one.train_list if one.train else one.test_list)]
    return Pictures(
        ids=ids,
        labels=np.array(labels, np.int64),
        splits=np.array(splits, np.int8),
        class_names=class_names,
        read=lambda i: pixels[i],
        files=[os.path.join(folder_of(spec), name) for name in files],
    )
