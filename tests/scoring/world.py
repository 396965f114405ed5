"""A source and a target as a surrogate sees them: arrays of a few classes, without any training."""

from typing import Any

import numpy as np

from dp4tl_ray.scoring.inputs import Clusters, Embedding, ScorerInputs
from dp4tl_ray.training.recorder import Dynamics

C, PER_CLASS, D, EPOCHS = 8, 12, 5, 6
N = C * PER_CLASS


def embedding(labels: Any, classes: Any, rng: np.random.Generator) -> Embedding:
    """Draw features around the mean of each example's source class, and logits that see it."""
    means = 3 * np.abs(np.random.default_rng(0).normal(size=(C, D)))
    features = (means[classes] + rng.normal(size=(len(classes), D))).astype(np.float32)
    logits = (-((features[:, None] - means) ** 2).sum(axis=2)).astype(np.float32)
    return Embedding(features, logits, np.asarray(labels))


def inputs(seed: int = 0, **changes: Any) -> ScorerInputs:
    """Return everything that a scorer may ask for; the target looks like source classes 2 and 5."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(C), PER_CLASS)
    source = embedding(labels, labels, rng)
    target = embedding(np.repeat([0, 1], 10), np.repeat([2, 5], 10), rng)
    margin = rng.normal(size=(EPOCHS, N)).astype(np.float32)
    dynamics = Dynamics(
        correct_EN=margin > 0,
        margin_EN=margin,
        true_probability_EN=(1 / (1 + np.exp(-margin))).astype(np.float32),
        divergence_EN=rng.random((EPOCHS - 1, N)).astype(np.float32),
    )
    centres = source.features[:: PER_CLASS // 2]
    cluster = ((source.features[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    halves = [rng.permutation(C)[: C // 2] for _ in range(40)]
    subsets = {
        n: (np.flatnonzero(np.isin(labels, half)), 0.5 + 0.2 * (2 in half) + 0.1 * (5 in half))
        for n, half in enumerate(halves)
    }
    every = {
        "labels": labels,
        "num_classes": C,
        "seed": 0,
        "ids": lambda: [f"{n:03d}.png" for n in range(N)],
        "source": source,
        "target": target,
        "clusters": Clusters(centres, cluster),
        "dynamics": dynamics,
        "gradient_norms": lambda: rng.random(N),
        "subsets": subsets,
    }
    return ScorerInputs(**{**every, **changes})
