"""What tables of pictures have in common: splits by their names, labels by number or by name."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np

from dp4tl_ray.data.images import SPLITS, Pixels, Role, Split
from dp4tl_ray.data.pictures import DatasetError, Pictures

WORDS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""Word in the name of a split, or of a file -> split."""
UNLABELED = -1
"""Label of Hugging Face where none is published."""


class Table(NamedTuple):
    """Pictures of one split, such as those of a file."""

    split: Split
    ids: Sequence[str]
    labels: Sequence[Any]
    """Number or name of each class."""
    read: Callable[[int], bytes | Pixels]
    """Gives the picture of a row."""


def splits_named(name: str) -> set[Split]:
    """Return the splits that a name speaks of, such as `imagenet-train-0001`."""
    return {WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in WORDS}


def joined(
    tables: Sequence[Table], role: Role, whose: str, class_names: Sequence[str] = ()
) -> Pictures:
    """Put tables together, with classes in the order of their numbers or names.

    Args:
        tables: In any order of splits; val serves as test where no test split has labels.
        role: What the pictures are for; a source gets its train split.
        whose: Begins the message of an error: the dataset, and where it keeps labels.
        class_names: Names of the classes that labels number; without them each label is a name.

    Raises:
        DatasetError: Labels are of no one kind, or out of range.
    """
    labeled = [one for one in tables if any(label != UNLABELED for label in one.labels)]
    if role == "source":
        labeled = [one for one in labeled if one.split == "train"]
    elif all(one.split != "test" for one in labeled):
        labeled = [one._replace(split="test") if one.split == "val" else one for one in labeled]
    labeled.sort(key=lambda one: SPLITS.index(one.split))
    labels = [*chain.from_iterable(one.labels for one in labeled)]
    numbers, class_names = _numbered(labels, class_names, whose)
    ends = [*accumulate(len(one.ids) for one in labeled)]

    def read(i: int) -> bytes | Pixels:
        n = bisect_right(ends, i)
        return labeled[n].read(i - ends[n] + len(labeled[n].ids))

    return Pictures(
        ids=[*chain.from_iterable(one.ids for one in labeled)],
        labels=np.array(numbers, np.int64),
        splits=np.repeat(
            np.array([SPLITS.index(one.split) for one in labeled], np.int8),
            [len(one.ids) for one in labeled],
        ),
        class_names=tuple(class_names),
        read=read,
    )


def _numbered(
    labels: Sequence[Any], class_names: Sequence[str], whose: str
) -> tuple[list[int], Sequence[str]]:
    """Return the number of each label, and the names of the classes."""
    # a column of integers becomes one of floats wherever pandas met a gap
    labels = [int(x) if isinstance(x, float) and x.is_integer() else x for x in labels]
    kinds = {type(label): label for label in labels}
    if kinds.keys() not in ({int}, {str}, set()):
        shown = " and ".join(f"{x!r} ({kind.__name__})" for kind, x in kinds.items())
        raise DatasetError(f"{whose}: labels are {shown}: they must be whole numbers or names")
    values = [*range(len(class_names))] if class_names else sorted({*labels} - {UNLABELED})
    number = {value: k for k, value in enumerate(values)}
    if unknown := [label for label in labels if label not in number]:
        raise DatasetError(f"{whose}: label {unknown[0]!r} is none of {len(values)} classes")
    return [number[label] for label in labels], class_names or [str(value) for value in values]
