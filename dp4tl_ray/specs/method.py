"""Pruning methods: one record each. A score is high where a unit should be kept."""

from typing import Annotated, Literal, assert_never

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Spec


class RandomClasses(Spec):
    """Keep whole classes, drawn at random: the control for class-level methods."""

    method: Literal["random_classes"] = "random_classes"


class RandomExamples(Spec):
    """Keep examples drawn at random: the control for example-level methods."""

    method: Literal["random_examples"] = "random_examples"
    stratified: bool = False
    """Keep the same share of every class instead of a plain draw."""


class LabelMapping(Spec):
    """Keep the classes that the surrogate predicts for the target's train images (the paper, LM).

    A class's score is the number of target train images whose predicted class it is. Ties, of
    which zero votes is the most frequent, go by the sum of the predicted probabilities.
    """

    method: Literal["label_mapping"] = "label_mapping"
    keep: Literal["highest", "lowest"] = "highest"
    """lowest keeps the classes with the fewest votes: the opposite of the method, as a control."""


class EL2N(Spec):
    """Keep the examples with the largest error norm |softmax - one-hot| (Paul et al. 2021).

    Computed once, from the trained surrogate; knows nothing of a target.
    """

    method: Literal["el2n"] = "el2n"


Method = Annotated[
    RandomClasses | RandomExamples | LabelMapping | EL2N,
    Field(discriminator="method"),
    BareName("method"),
]
AnyMethod = RandomClasses | RandomExamples | LabelMapping | EL2N

Needs = Literal["nothing", "embedded source", "embedded target"]


def needs(method: AnyMethod) -> Needs:
    """Say which of the surrogate's outputs a method's score is computed from.

    A method that needs the target's is target-aware: its subset differs between targets.
    """
    match method:
        case RandomClasses() | RandomExamples():
            return "nothing"
        case EL2N():
            return "embedded source"
        case LabelMapping():
            return "embedded target"
        case _:
            assert_never(method)
