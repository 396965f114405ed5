"""Images of one size with their labels; how every stage meets a dataset."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Split = Literal["train", "val", "test"]
Role = Literal["source", "target"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Images(Protocol):
    """N images of one size, read by rows; an array of them is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, height, width, channels), as they are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Read images, uint8 (n, height, width, channels)."""


@dataclass(frozen=True)
class LabeledImages:
    """N labeled images of one size; row i of every field belongs to example i."""

    images: npt.NDArray[np.uint8]
    """Pixels, (N, height, width, channels) with 1 or 3 channels."""
    labels: npt.NDArray[np.int64]
    """Class index of each example, (N,)."""
    splits: npt.NDArray[np.int8]
    """Index into SPLITS of each example, (N,)."""
    ids: tuple[str, ...]
    """Stable name of each example; a result can be traced back to a picture."""
    class_names: tuple[str, ...]
    """Name of each class; a dataset's class order is not its identity."""

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Return the indices of the examples of one split, ascending."""
        return np.flatnonzero(self.splits == SPLITS.index(split))
