"""From scores to kept examples: one case per selector."""

from dataclasses import replace
from typing import assert_never

import numpy as np

from dp4tl_ray.algorithms.graph import d2_order, neighbor_graph
from dp4tl_ray.algorithms.selection import (
    Scores,
    ccs_order,
    gumbel_order,
    kept_prefix,
    kept_whole_units,
    quota_order,
    stratified_order,
    top_order,
)
from dp4tl_ray.scoring.inputs import Embedding, Floats, Ints
from dp4tl_ray.specs.selector import (
    AnySelector,
    CoverageCentric,
    Gumbel,
    MessagePassing,
    Quota,
    Stratified,
    Top,
    WholeUnits,
)


def select(
    rule: AnySelector,
    scores: Scores,
    pruning_ratio: float,
    labels: Ints,
    embedding: Embedding | None,
    rng: np.random.Generator,
    limit_bytes: float,
) -> Ints:
    """Return the kept rows of the source, ascending.

    Raises:
        ValueError: The rule cannot be applied to these scores, or keeps nothing.
    """
    if isinstance(rule, WholeUnits):
        return kept_whole_units(scores, pruning_ratio)
    order = order_of_examples(rule, scores, labels, embedding, rng, limit_bytes)
    return kept_prefix(order, pruning_ratio)


def order_of_examples(
    rule: AnySelector,
    scores: Scores,
    labels: Ints,
    embedding: Embedding | None,
    rng: np.random.Generator,
    limit_bytes: float,
) -> Ints:
    """Return the rows of the source in the order in which a rule wants them, (N,).

    Every rule keeps the first rows of it; `whole_units` as many as whole units have.

    Raises:
        ValueError: The rule cannot be applied to these scores.
    """
    match rule:
        case Top() | WholeUnits():
            return top_order(scores)
        case Stratified():
            return stratified_order(scores, labels)
        case Quota(alpha=alpha):
            # a unit without examples has no mass
            mass = np.where(np.isneginf(scores.score_U), 0.0, scores.score_U)
            return quota_order(replace(scores, score_U=mass), alpha)
        case Gumbel(temperature=temperature):
            return gumbel_order(scores, rng, temperature=temperature)
        case CoverageCentric(hardest=hardest, num_strata=num_strata):
            return ccs_order(scores.score_U, rng, hardest=hardest, num_strata=num_strata)
        case MessagePassing(num_neighbors=num_neighbors, gamma=gamma, scope=scope):
            assert embedding is not None
            neighbors, squares = neighbor_graph(
                embedding.features,
                np.zeros(len(labels), np.int64) if scope == "source" else labels,
                num_neighbors=num_neighbors,
                limit_bytes=limit_bytes,
            )
            return d2_order(_percentiles(scores), neighbors, squares, gamma_reverse=gamma)
        case _:
            assert_never(rule)


def _percentiles(scores: Scores) -> Floats:
    """Return the share of the examples whose score is not above an example's, (N,).

    Messages are sums, so scores have to be positive and of one scale.
    """
    return np.searchsorted(np.sort(scores.score_U), scores.score_U, side="right") / len(
        scores.score_U
    )
