"""Datasets: what can be pruned (a source) and what can be transferred to (a target)."""

import os
import re
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Count, Natural, Options, Spec, Whole

ImageSize = Annotated[Literal[16, 32], Whole]
Name = Annotated[str, Field(min_length=1)]


class GlyphsAndTextures(Spec):
    """The embedded source: glyphs in many fonts, and textures; needs no download."""

    dataset: Literal["glyphs_and_textures"] = "glyphs_and_textures"
    image_size: ImageSize = 16
    """Height and width in pixels."""
    images_per_class: Count = 40
    """Images rendered for each of the classes."""
    seed: Natural = 0
    """Seed of the rendering and of the order of the classes."""


class _Target(Spec):
    shots: Count | None = None
    """Train images (and as many validation images) per class, drawn anew by every seed of the
    study; null uses all there are."""


class HeldOutLetters(_Target):
    """Capital letters in fonts that the embedded source never uses."""

    dataset: Literal["held_out_letters"] = "held_out_letters"
    image_size: ImageSize = 16
    """Height and width in pixels; must be the source's."""
    shots: Annotated[int, Field(ge=1, le=60), Whole] | None = 5
    """Train images (and as many validation images) per class, drawn anew by every seed of the
    study; null uses all there are."""


class HandwrittenDigits(_Target):
    """scikit-learn's handwritten digits, split in contiguous blocks of writers."""

    dataset: Literal["handwritten_digits"] = "handwritten_digits"
    image_size: ImageSize = 16
    """Height and width in pixels; must be the source's."""
    shots: Annotated[int, Field(ge=1, le=29), Whole] | None = 2
    """Train images (and as many validation images) per class, drawn anew by every seed of the
    study; null uses all there are."""


class HeldOutTextures(_Target):
    """Textures of frequencies and orientations that the embedded source never shows."""

    dataset: Literal["held_out_textures"] = "held_out_textures"
    image_size: ImageSize = 16
    """Height and width in pixels; must be the source's."""
    shots: Annotated[int, Field(ge=1, le=60), Whole] | None = 5
    """Train images (and as many validation images) per class, drawn anew by every seed of the
    study; null uses all there are."""


class Raw(Spec):
    """Decoded pixels, image_size x image_size: nothing to decode, at one byte per value."""

    encoding: Literal["raw"] = "raw"


class JPEG(Spec):
    """Whole pictures as JPEG: a tenth of the room, and random crops see more than the middle."""

    encoding: Literal["jpeg"] = "jpeg"
    short_side: Annotated[int, Field(ge=8, le=2048), Whole] = 256
    """Pixels that a longer shorter side is brought to; a JPEG that is small enough stays as it
    is."""
    quality: Annotated[int, Field(ge=50, le=100), Whole] = 90
    """Of what is encoded anew."""


Stored = Annotated[Raw | JPEG, Field(discriminator="encoding"), BareName("encoding")]


class OnDisk(_Target):
    """What all datasets have in common that lie in files, and are packed into the store once."""

    path: Name
    """Where it lies: ~ is the home folder; a relative path starts at the study's `data_root`. Moved
    with the times of its files it is the same dataset, and nothing is computed again."""
    image_size: Annotated[int, Field(ge=8, le=512), Whole] = 32
    """Height and width in pixels that every picture is brought to (shorter side, centre crop)."""
    channels: Annotated[Literal[1, 3], Whole] = 3
    """1 reads grey values, 3 reads RGB; source and targets must agree."""
    stored: Stored = Raw()
    """How the store keeps the pictures: raw or jpeg; `dp4tl list encodings`."""
    corrupt: Literal["stop", "skip"] = "stop"
    """What to do about a picture that does not decode; what is skipped is listed, and an alarm."""
    exclude: Name | None = None
    """File of ids, one per line, that are left out, such as the near-duplicates that `dp4tl data
    check` lists; a relative path starts at the study's `data_root`."""


class ImageFolder(OnDisk):
    """Pictures in one folder per class, as torchvision's ImageFolder reads them.

    `path` holds either the class folders, or folders `train`, `test` (and `val`) that hold them.
    A target without its own splits is divided by a seeded draw per class: 60 % train, 20 % val,
    20 % test. A source gives its train split, or all its pictures where it has no splits.
    """

    dataset: Literal["image_folder"] = "image_folder"


class ImageNet(OnDisk):
    """ImageNet (ILSVRC 2012), extracted: `path` holds train/<wnid>/*.JPEG, and val sorted likewise.

    A source gives train. A target's test split is val, the only labelled one, and a fifth of train
    is drawn as its val. Classes are in the order of their wnids, and named from meta.bin or
    LOC_synset_mapping.txt beside the folders, or by torchvision where all 1,000 are there.
    """

    dataset: Literal["imagenet"] = "imagenet"


class TorchvisionDataset(OnDisk):
    """A dataset of torchvision, listed by its class from what is on disk; nothing is downloaded.

    `path` is the `root` that the class takes, the folder around its own, which many can share.
    Splits are the official ones: flowers102 and dtd (its first partition) have train, val and test;
    cifar10, cifar100, oxford_iiit_pet, stanford_cars and food101 have train and test, and a fifth
    of train is drawn as val. sun397 and eurosat have none that torchvision knows: a target is drawn
    per class (60 % train, 20 % val, 20 % test), a source is everything.
    """

    dataset: Literal[
        "cifar10",
        "cifar100",
        "sun397",
        "oxford_iiit_pet",
        "flowers102",
        "dtd",
        "stanford_cars",
        "food101",
        "eurosat",
    ]


class CoOp(OnDisk):
    """A dataset with the train, val and test split of CoOp (Zhou et al. 2022), as the paper has it.

    `path` is the file split_zhou_NAME.json: OxfordPets, StanfordCars, OxfordFlowers, Food101,
    SUN397, DescribableTextures, EuroSAT or UCF101, of which the pictures are middle frames.
    """

    dataset: Literal["coop"] = "coop"
    images: Name | None = None
    """Folder that the file's names start at; null is CoOp's own, beside the file, such as `images`
    for OxfordPets. A relative path starts at the study's `data_root`."""


class Waterbirds(OnDisk):
    """Waterbirds (Sagawa et al. 2020): birds by habitat, on backgrounds that mislead.

    `path` holds metadata.csv, whose groups (bird and background) also give the accuracy of the
    worst one; or, without groups, train.json, valid.json and test.json with a line
    {"x": PICTURE, "y": 0 or 1} per picture, as the paper's code reads them.
    """

    dataset: Literal["waterbirds"] = "waterbirds"


class HuggingFace(OnDisk):
    """A dataset of Hugging Face's `datasets`, from what is on disk or in its cache; never the web.

    `path` is a folder of save_to_disk or one that load_dataset reads, or hub:USER/NAME for one that
    was loaded before. Splits go by their names; validation serves as test where no test split has
    labels. Of folders of parquet files `datasets` keeps a copy: `dataset: parquet` does not.
    Needs `pip install 'dp4tl_ray[huggingface]'`.
    """

    dataset: Literal["huggingface"] = "huggingface"
    config: Name | None = None
    """Configuration of a dataset that has several."""
    image: Name | None = None
    """Column of the pictures; null is the one of that type."""
    label: Name | None = None
    """Column of the classes; null is label, labels or fine_label, or the one of type ClassLabel."""


class Parquet(OnDisk):
    """Parquet files with a row per picture.

    `path` is a file, a folder or a glob, or numbers files, as in train-{000..146}.parquet, of which
    none may be missing. The split of a file is the word train, val, valid, validation, dev or test
    in its name, or in that of a folder below `path`; without any, all is train. val serves as test
    where there is none.
    """

    dataset: Literal["parquet"] = "parquet"
    image: Name = "image"
    """Column of the pictures: encoded, as bytes or as Hugging Face's {bytes, path}."""
    label: Name = "label"
    """Column of the classes: numbers or names."""
    id: Name | None = None
    """Column of stable names; null takes file and row."""


class WebDataset(OnDisk):
    """Shards of WebDataset: tar files with KEY.jpg (jpeg, png, webp), and KEY.cls or KEY.json.

    `path` is a file, a folder or a glob, or numbers files, as in train-{000..146}.tar; splits as in
    parquet. A class is the number or name in KEY.cls, or `label` in KEY.json; classnames.txt in the
    folder names numbers, a line each.
    """

    dataset: Literal["webdataset"] = "webdataset"


class Custom(OnDisk):
    """A dataset that another package lists, by a function that it announces as an entry point.

    dp4tl_ray/data/elsewhere.py says what the function is given, and what it returns.
    """

    dataset: Literal["custom"] = "custom"
    loader: Name
    """Name of the entry point."""
    options: Options = Field(default={})
    """Keyword arguments of the function."""


AnyOnDisk = (
    ImageFolder
    | ImageNet
    | TorchvisionDataset
    | CoOp
    | Waterbirds
    | HuggingFace
    | Parquet
    | WebDataset
    | Custom
)
Source = Annotated[
    GlyphsAndTextures | AnyOnDisk, Field(discriminator="dataset"), BareName("dataset")
]
Target = Annotated[
    HeldOutLetters | HandwrittenDigits | HeldOutTextures | AnyOnDisk,
    Field(discriminator="dataset"),
    BareName("dataset"),
]
D = TypeVar("D", bound=Spec)
Dataset = GlyphsAndTextures | HeldOutLetters | HandwrittenDigits | HeldOutTextures | AnyOnDisk


PATHS = ("path", "exclude", "images")
"""Fields that start at the study's `data_root`."""
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
"""Start of what is no path of this machine, such as hub:NAME or s3://BUCKET."""


def located(dataset: D, root: str) -> D:
    """Return a dataset whose paths start at a root, as far as they are relative, without a ~."""
    if not isinstance(dataset, OnDisk):
        return dataset
    given = {name: getattr(dataset, name, None) for name in PATHS}
    below = {
        name: os.path.join(os.path.expanduser(root), os.path.expanduser(path))
        for name, path in given.items()
        if path is not None and not SCHEME.match(path)
    }
    return dataset.model_copy(update=below)


COOP = {
    "OxfordPets": "oxford_iiit_pet",
    "StanfordCars": "stanford_cars",
    "OxfordFlowers": "flowers102",
    "Food101": "food101",
    "SUN397": "sun397",
    "DescribableTextures": "dtd",
    "EuroSAT": "eurosat",
    "UCF101": "ucf101",
}
"""Name of a split file of CoOp, split_zhou_NAME.json -> the dataset that it splits."""


def known_as(dataset: Dataset) -> str:
    """Return what a dataset is known as: a split of CoOp, as the dataset that it splits."""
    if isinstance(dataset, CoOp):
        name = os.path.basename(dataset.path).removeprefix("split_zhou_").removesuffix(".json")
        return COOP.get(name, dataset.dataset)
    return dataset.dataset


def too_small(dataset: Dataset) -> str:
    """Say why pictures are not kept as large as they are needed; empty if they are."""
    if isinstance(dataset, OnDisk) and isinstance(dataset.stored, JPEG):
        short, size = dataset.stored.short_side, dataset.image_size
        if short < size:
            return f"stored: short_side {short} is less than image_size {size}"
    return ""


def channels(dataset: Dataset) -> int:
    """Return the number of channels of a dataset's images."""
    return dataset.channels if isinstance(dataset, OnDisk) else 1
