"""Tiny copies of real datasets, in the exact layouts that they have on disk."""

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

Rng = np.random.Generator


def write_picture(path: Path, rng: Rng) -> None:
    """Write a picture of noise, of any shape, which no other one equals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = rng.integers(12, 40, 2)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, quality=95)


def write_classes(root: Path, classes: Iterable[str], count: int, rng: Rng) -> None:
    """Write a folder per class, with pictures that are named after it."""
    for name in classes:
        for n in range(count):
            write_picture(root / name / f"{Path(name).name}_{n:04d}.jpg", rng)


def _cifar(folder: Path, files: dict[str, int], meta: tuple[str, str], key: str, rng: Rng) -> None:
    classes = 100 if key == "fine_labels" else 10
    folder.mkdir(parents=True)
    for name, count in files.items():
        labels = np.resize(rng.permutation(classes)[:2], count).tolist()
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, key: labels}))
    names = {meta[1]: [f"thing{k}" for k in range(classes)]}
    (folder / meta[0]).write_bytes(pickle.dumps(names))


def cifar10(root: Path, rng: Rng) -> None:
    files = {**{f"data_batch_{n}": 4 for n in range(1, 6)}, "test_batch": 7}
    _cifar(root / "cifar-10-batches-py", files, ("batches.meta", "label_names"), "labels", rng)


def cifar100(root: Path, rng: Rng) -> None:
    files, meta = {"train": 12, "test": 5}, ("meta", "fine_label_names")
    _cifar(root / "cifar-100-python", files, meta, "fine_labels", rng)


def sun397(root: Path, rng: Rng) -> None:
    for name in ("a/abbey", "c/church/indoor", "c/church/outdoor"):
        for n in range(5):
            write_picture(root / "SUN397" / name / f"sun_a{rng.integers(10**9):09d}{n}.jpg", rng)
    (root / "SUN397" / "ClassName.txt").write_text(
        "/a/abbey\n/c/church/indoor\n/c/church/outdoor\n"
    )


def oxford_iiit_pet(root: Path, rng: Rng) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    breeds = (("Abyssinian", 1), ("american_bulldog", 2), ("Bengal", 1))
    for split, numbers in (("trainval", range(5)), ("test", range(5, 8))):
        lines = []
        for label, (breed, species) in enumerate(breeds, start=1):
            for n in numbers:
                write_picture(folder / "images" / f"{breed}_{n}.jpg", rng)
                lines.append(f"{breed}_{n} {label} {species} 1\n")
        (folder / "annotations" / f"{split}.txt").write_text("".join(lines))


def flowers102(root: Path, rng: Rng) -> None:
    folder, counts = root / "flowers-102", (6, 3, 9)
    total = sum(counts)
    for n in range(1, total + 1):
        write_picture(folder / "jpg" / f"image_{n:05d}.jpg", rng)
    labels = np.resize([1, 51, 102], total).astype(np.uint8)
    savemat(folder / "imagelabels.mat", {"labels": labels[None]})
    train, val, test = np.split(np.arange(1, total + 1, dtype=np.uint16), np.cumsum(counts)[:2])
    savemat(folder / "setid.mat", {"trnid": train[None], "valid": val[None], "tstid": test[None]})


def dtd(root: Path, rng: Rng) -> None:
    folder, classes = root / "dtd" / "dtd", ("banded", "dotted")
    write_classes(folder / "images", classes, 9, rng)
    (folder / "labels").mkdir()
    for n, split in enumerate(("train", "val", "test")):
        names = [f"{c}/{c}_{i:04d}.jpg\n" for c in classes for i in range(3 * n, 3 * n + 3)]
        (folder / "labels" / f"{split}1.txt").write_text("".join(names))


def stanford_cars(root: Path, rng: Rng) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    for split, place in (("train", "devkit/cars_train_annos"),
                         ("test", "cars_test_annos_withlabels")):  # fmt: skip
        names = [f"{n:05d}.jpg" for n in range(1, 13)]
        for name in names:
            write_picture(folder / f"cars_{split}" / name, rng)
        classes = np.resize([3, 1, 2], len(names)).astype(np.uint8)
        rows = np.array([*zip(classes, names, strict=True)], [("class", "u1"), ("fname", "U9")])
        savemat(folder / f"{place}.mat", {"annotations": rows})
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi TT Hatchback 2011"]
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(names, object)})


def food101(root: Path, rng: Rng) -> None:
    folder, classes = root / "food-101", ("apple_pie", "gyoza")
    (folder / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        names = {c: [f"{c}/{n}" for n in rng.integers(10**6, 10**7, 5)] for c in classes}
        (folder / "meta" / f"{split}.json").write_text(json.dumps(names))
        for name in (name for names_of in names.values() for name in names_of):
            write_picture(folder / "images" / f"{name}.jpg", rng)


def eurosat(root: Path, rng: Rng) -> None:
    write_classes(root / "eurosat" / "2750", ("AnnualCrop", "Forest", "SeaLake"), 5, rng)


TORCHVISION: dict[str, Callable[[Path, Rng], None]] = {
    copy.__name__: copy
    for copy in (
        *(cifar10, cifar100, sun397, oxford_iiit_pet, flowers102, dtd, stanford_cars),
        *(food101, eurosat),
    )
}
"""Name of a dataset -> writes a copy below torchvision's root."""

COOP = {
    "OxfordPets": ("oxford_pets", "images", "{c}_{n}.jpg"),
    "StanfordCars": ("stanford_cars", ".", "cars_train/{c}{n:05d}.jpg"),
    "OxfordFlowers": ("oxford_flowers", "jpg", "image_{c}{n:05d}.jpg"),
    "Food101": ("food-101", "images", "{c}/{n}.jpg"),
    "SUN397": ("sun397", "SUN397", "a/{c}/sun_{n}.jpg"),
    "DescribableTextures": ("dtd", "images", "{c}/{c}_{n:04d}.jpg"),
    "EuroSAT": ("eurosat", "2750", "{c}/{c}_{n}.jpg"),
    "UCF101": ("ucf101", "UCF-101-midframes", "{c}/v_{c}_g01_c{n:02d}.jpg"),
}
"""Name of a split file -> folder of the dataset, of its pictures, and how these are named."""


def coop(
    root: Path,
    name: str,
    rng: Rng,
    classes: tuple[str, ...] = ("first", "second", "third"),
    counts: tuple[int, int, int] = (4, 2, 3),
) -> Path:
    """Write a dataset as CoOp prepares it; returns its split file."""
    folder, images, form = COOP[name]
    lists: dict[str, list[tuple[str, int, str]]] = {}
    first = 0
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        lists[split] = []
        for label, c in enumerate(classes):
            for n in range(first, first + count):
                write_picture(root / folder / images / form.format(c=c, n=n), rng)
                lists[split].append((form.format(c=c, n=n), label, c))
        first += count
    path = root / folder / f"split_zhou_{name}.json"
    path.write_text(json.dumps(lists))
    return path


PLACES = ("land", "water")


def waterbirds(root: Path, rng: Rng, counts: tuple[int, int, int] = (4, 2, 3)) -> None:
    """Write metadata.csv and the pictures: as many of each bird on each background."""
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for split, count in enumerate(counts):
        for y, place in np.ndindex(2, 2):
            for n in range(count):
                name = f"{y:03d}.Bird/Bird_{split}{place}{n}.jpg"
                write_picture(root / name, rng)
                lines.append(f"{len(lines)},{name},{y},{split},{place},/{PLACES[place]}/{n}.jpg")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def imagenet(root: Path, rng: Rng, wnids: Mapping[str, tuple[str, ...]]) -> None:
    """Write folders of train and val, and the names of classes as torchvision's class does."""
    for wnid in wnids:
        for n in range(4):
            write_picture(root / "train" / wnid / f"{wnid}_{rng.integers(10**5)}{n}.JPEG", rng)
        for n in range(2):
            name = f"ILSVRC2012_val_{rng.integers(10**7):07d}{n}.JPEG"
            write_picture(root / "val" / wnid / name, rng)
    torch.save((dict(wnids), sorted(wnids)), root / "meta.bin")
