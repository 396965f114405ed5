"""Selectors: how scores become an order of the examples, of which a ratio keeps the first part.

One score serves every selector and every ratio; what a larger ratio keeps is a subset of what a
smaller one keeps, and the number of kept examples is exact.
"""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Count, NotNegative, Positive, Spec


class Top(Spec):
    """Keep the highest scores: the best units whole, the last one in part."""

    rule: Literal["top"] = "top"


class WholeUnits(Spec):
    """Keep round((1 - ratio) U) whole classes or clusters, the paper's rule."""

    rule: Literal["whole_units"] = "whole_units"


class Quota(Spec):
    """Keep of every unit a share proportional to its mass to the power alpha.

    0 keeps the same share of every class or cluster; the larger alpha, the nearer to `top`.
    """

    rule: Literal["quota"] = "quota"
    alpha: NotNegative = 1.0
    """Exponent of the mass, which is what the mapping moved onto the unit."""


class Gumbel(Spec):
    """Draw without replacement, with probabilities exp(score / temperature) (Gumbel top-k)."""

    rule: Literal["gumbel"] = "gumbel"
    temperature: Positive = 1.0
    """Small values approach `top`, large ones a plain draw."""


class Stratified(Spec):
    """Keep the same share of every class, in it the highest scores."""

    rule: Literal["stratified"] = "stratified"


class CoverageCentric(Spec):
    """Leave out the hardest, then draw equally from strata of the score (Zheng et al. 2023)."""

    rule: Literal["ccs"] = "ccs"
    hardest: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share with the highest scores that is kept last; the authors raise it with the ratio."""
    num_strata: Count = 50
    """Strata of equal width in the score."""


class MessagePassing(Spec):
    """Spread scores over a graph of neighbours, then weaken those next to what is taken.

    Maharana et al. 2024, D2. Scores enter as percentiles.
    """

    rule: Literal["d2"] = "d2"
    num_neighbors: Count = 10
    """Neighbours of an example in the surrogate's features."""
    gamma: NotNegative = 1.0
    """How fast the weakening falls with the squared distance, in units of its mean."""
    scope: Literal["class", "source"] = "class"
    """Whether neighbours are looked for in the class, or in the whole source: N^2 distances."""


UnitSelector = Annotated[
    Top | WholeUnits | Quota | Gumbel, Field(discriminator="rule"), BareName("rule")
]
"""For scores of classes or clusters."""
ExampleSelector = Annotated[
    Top | Stratified | CoverageCentric | Gumbel | MessagePassing,
    Field(discriminator="rule"),
    BareName("rule"),
]
"""For scores of single examples."""
AnySelector = Top | WholeUnits | Quota | Gumbel | Stratified | CoverageCentric | MessagePassing
Selector = Annotated[AnySelector, Field(discriminator="rule"), BareName("rule")]
