"""Scores of classes and clusters: one case per method."""

from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.class_distance import (
    class_means,
    emd_greedy_scores,
    facility_location_mutual_information_scores,
)
from dp4tl_ray.algorithms.influence import influence_scores
from dp4tl_ray.algorithms.kmeans import assign
from dp4tl_ray.algorithms.label_aware import label_aware_scores
from dp4tl_ray.algorithms.label_mapping import label_mapping_scores
from dp4tl_ray.algorithms.memory import require_memory, row_chunks
from dp4tl_ray.algorithms.transport import importance, transport_mapping
from dp4tl_ray.scoring.examples import clusters, source, target
from dp4tl_ray.scoring.inputs import Floats, Ints, ScorerInputs
from dp4tl_ray.specs.unit_methods import (
    AnyUnitMethod,
    ClassFacilityLocation,
    Counterfactual,
    EMDGreedy,
    FeatureMapping,
    LabelAwareMapping,
    LabelMapping,
    Mapping,
    RandomClasses,
)

RIDGE = tuple(10.0**power for power in range(-2, 6))
"""Strengths that the regression over subsets chooses from; memberships are 0 and 1."""


@dataclass(frozen=True)
class UnitScores:
    """Scores of U units of the source; higher is kept."""

    score: Floats
    """(U,)."""
    tie_break: Floats
    """Decides between equal scores, (U,)."""
    unit_of: Ints
    """Unit of each example, (N,)."""
    votes: Ints | None = None
    """Target images that vote for each unit, (U,); null for methods that do not vote."""
    facts: dict[str, float] = field(default_factory=dict)
    """What else to know of these scores, for the manifest."""


def score_units(method: AnyUnitMethod, inputs: ScorerInputs) -> UnitScores:
    """Score the units of a method.

    Raises:
        ValueError: The method cannot be computed from these inputs; says why.
    """
    labels, num_classes = inputs.labels, inputs.num_classes
    zeros = np.zeros(num_classes)
    match method:
        case RandomClasses():
            return UnitScores(inputs.rng("score").random(num_classes), zeros, labels)
        case LabelMapping():
            return _label_mapping(method, inputs)
        case FeatureMapping():
            return _feature_mapping(method, inputs)
        case LabelAwareMapping(statistic=statistic, smoothing=smoothing, balanced=balanced):
            seen = target(inputs)
            score = label_aware_scores(
                seen.logits,
                seen.labels,
                statistic=statistic,
                smoothing=smoothing,
                balanced=balanced,
            )
            _, mass = label_mapping_scores(seen.logits)
            return UnitScores(score, mass, labels)
        case EMDGreedy():
            score, tie_break = emd_greedy_scores(*_class_means(inputs))
            return UnitScores(score, tie_break, labels)
        case ClassFacilityLocation(eta=eta):
            means, _ = class_means(source(inputs).features, labels, num_classes)
            # a class without examples resembles nothing
            similarity = np.nan_to_num(_similarity(target(inputs).features, means))
            score = facility_location_mutual_information_scores(
                similarity, eta=eta, limit_bytes=inputs.limit_bytes
            )
            return UnitScores(score, zeros, labels)
        case Counterfactual():
            assert inputs.subsets is not None
            kept = [rows for rows, _ in inputs.subsets.values()]
            present = np.stack(
                [np.bincount(labels[rows], minlength=num_classes) > 0 for rows in kept]
            )
            outcome = np.array([accuracy for _, accuracy in inputs.subsets.values()])
            influence = influence_scores(
                present, outcome, l2_values=RIDGE, limit_bytes=inputs.limit_bytes
            )
            # equal outcomes leave nothing to explain
            explained = float(np.nan_to_num(influence.r2_loo))
            facts = {"r2_loo": explained, "l2": influence.l2}
            return UnitScores(influence.score_U, zeros, labels, facts=facts)
        case _:
            assert_never(method)


def _label_mapping(method: LabelMapping, inputs: ScorerInputs) -> UnitScores:
    """Move the target onto the classes that the surrogate predicts."""
    logits = target(inputs).logits
    votes, mass = label_mapping_scores(logits)
    # -logits for -log p: the mapping of an image does not change with a constant
    scores = _mapping(method, inputs, -logits, votes, mass, inputs.labels)
    if method.keep == "highest":
        return scores
    return UnitScores(-scores.score, -scores.tie_break, scores.unit_of, scores.votes)


def _feature_mapping(method: FeatureMapping, inputs: ScorerInputs) -> UnitScores:
    """Move the target onto the clusters that are nearest in the surrogate's features."""
    found, features = clusters(inputs), target(inputs).features
    num_targets, num_clusters = len(features), len(found.centres)
    require_memory(
        16.0 * num_targets * num_clusters,
        inputs.limit_bytes,
        f"distances of {num_targets} target images from {num_clusters} clusters, 16 T K",
        "use fewer clusters, or shots of the target",
    )
    nearest, squared_distance = assign(features, found.centres, device=inputs.device)
    votes = np.bincount(nearest, minlength=num_clusters)
    unit = max(float(squared_distance.mean()), 1e-12)
    cost = _squared_distances(features, found.centres) / unit
    mass = transport_mapping(cost, temperature=1.0)
    return _mapping(method, inputs, cost, votes, mass, found.cluster)


def _mapping(
    method: Mapping,
    inputs: ScorerInputs,
    cost: npt.NDArray[np.floating],
    votes: Ints,
    mass: Floats,
    unit_of: Ints,
) -> UnitScores:
    """Score units by the target images moved onto them; ties go by the mass at temperature 1.

    The cost is that of moving each image to each unit, (T, U).
    """
    score = votes.astype(np.float64)
    prior = np.bincount(unit_of, minlength=len(votes)) / len(unit_of)
    if method.temperature > 0:
        score = transport_mapping(
            cost,
            temperature=method.temperature,
            capacity=method.capacity,
            prior_U=prior,
            limit_bytes=inputs.limit_bytes,
        )
    if method.prior_correction:
        score, mass = importance(score, prior), importance(mass, prior)
    # a soft score is no vote: every unit has some
    return UnitScores(score, mass, unit_of, votes if method.temperature == 0 else None)


def _class_means(inputs: ScorerInputs) -> tuple[Floats, Floats]:
    """Return the mean features of the source's classes and of the target's, as far as present."""
    means, _ = class_means(source(inputs).features, inputs.labels, inputs.num_classes)
    seen = target(inputs)
    present, labels = np.unique(seen.labels, return_inverse=True)
    return means, class_means(seen.features, labels, len(present))[0]


def _squared_distances(
    features_TD: npt.NDArray[np.floating], centres_KD: npt.NDArray[np.float32]
) -> Floats:
    """Return |x - c|^2 of every pair, (T, K)."""
    centres = centres_KD.astype(np.float64)
    distance = np.empty((len(features_TD), len(centres)))
    for part in row_chunks(len(features_TD), 8 * len(centres)):
        x = np.asarray(features_TD[part], np.float64)
        norms = (x**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
        distance[part] = np.maximum(norms - 2 * x @ centres.T, 0)
    return distance


def _similarity(a_TD: npt.NDArray[np.floating], b_UD: Floats) -> Floats:
    """Return (1 + cosine) / 2 of every pair, (T, U): coverage asks for similarities above 0."""
    a = np.asarray(a_TD, np.float64)
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b_UD, axis=1)
    similarity: Floats = 0.5 + 0.5 * (a @ b_UD.T) / np.maximum(lengths, 1e-12)
    return similarity
