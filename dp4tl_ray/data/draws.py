"""Which examples of a target a seed trains, validates and tests on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dp4tl_ray.data.images import SPLITS, Split

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """Rows of a target's arrays, ascending within a class."""

    train: Rows
    val: Rows
    test: Rows


def draw_target(
    labels_N: npt.NDArray[np.int64],
    splits_N: npt.NDArray[np.int8],
    shots: int | None,
    seed: int,
) -> Draw:
    """Draw a target's train and validation images; the test split is always whole.

    Each class and split has its own stream, so that a draw of one class cannot shift another's.

    Args:
        labels_N: Class of each example.
        splits_N: Index into SPLITS of each example.
        shots: Images per class and split; None takes all.
        seed: Seed of the draw.

    Raises:
        ValueError: A class has fewer images than shots, or a split is empty.
    """
    rows = {split: np.flatnonzero(splits_N == SPLITS.index(split)) for split in SPLITS}
    for split, members in rows.items():
        if len(members) == 0:
            raise ValueError(f"the target has no {split} images")
    if shots is None:
        return Draw(rows["train"], rows["val"], rows["test"])
    return Draw(
        _few(rows["train"], labels_N, shots, seed, "train"),
        _few(rows["val"], labels_N, shots, seed, "val"),
        rows["test"],
    )


def _few(rows: Rows, labels_N: npt.NDArray[np.int64], shots: int, seed: int, split: Split) -> Rows:
    """Draw `shots` rows of each class."""
    chosen = []
    for label in range(int(labels_N.max()) + 1):
        pool = rows[labels_N[rows] == label]
        if len(pool) < shots:
            raise ValueError(
                f"class {label} has {len(pool)} {split} images, fewer than shots = {shots}"
            )
        rng = np.random.default_rng([seed, SPLITS.index(split), label])
        chosen.append(np.sort(rng.choice(pool, shots, replace=False)))
    return np.concatenate(chosen)
