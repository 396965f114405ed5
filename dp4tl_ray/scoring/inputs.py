"""What a scorer may look at: arrays in the order of the source's examples.

Shapes: N source examples, T target train images, C source classes, D features of the surrogate,
K clusters, E epochs of the surrogate's training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.scoring.given import Listing
from dp4tl_ray.training.recorder import Dynamics
from dp4tl_ray.training.worker import seed_for

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Embedding:
    """Train images of one dataset, passed through the surrogate; arrays may be memory-mapped."""

    features: npt.NDArray[np.floating[Any]]
    """Penultimate features, (N or T, D)."""
    logits: npt.NDArray[np.floating[Any]]
    """Outputs over the source's classes, (N or T, C)."""
    labels: Ints
    """The dataset's own labels, (N or T,)."""


@dataclass(frozen=True)
class Clusters:
    """k-means of the source's features."""

    centres: npt.NDArray[np.float32]
    """(K, D)."""
    cluster: Ints
    """Cluster of each source example, (N,)."""


@dataclass(frozen=True)
class ScorerInputs:
    """Everything that a method's `needs` names is there, the rest is not."""

    labels: Ints
    """Class of each source example, (N,)."""
    num_classes: int
    """C, whether or not every class has examples."""
    seed: int
    """Seed of the step."""
    limit_bytes: float = float("inf")
    """Memory that a scorer may allocate beside its result."""
    device: torch.device | str = "cpu"
    """Where large products may run."""
    ids: Callable[[], list[str]] = list
    """Names of the source's examples; read only when asked for."""
    listing: Callable[[], Listing] | None = None
    """What the source's dataset lists; null where nothing was left out."""
    source: Embedding | None = None
    target: Embedding | None = None
    clusters: Clusters | None = None
    dynamics: Dynamics | None = None
    gradient_norms: Callable[[], Floats] | None = None
    """Norms of the loss's gradient over all parameters, (N,); one backward pass per example."""
    subsets: Mapping[int, tuple[Ints, float]] | None = None
    """Number -> kept rows of a random half of the classes, and the accuracy that it led to."""

    def rng(self, purpose: str) -> np.random.Generator:
        """Return the random stream of a purpose, a function of the step's seed alone."""
        return np.random.default_rng(seed_for(self.seed, purpose))
