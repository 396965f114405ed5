"""The surrogate, the pretraining objectives, and the two controls without pretraining."""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Natural, Spec
from dp4tl_ray.specs.training import Recipe


class Surrogate(Recipe):
    """The small model trained on the whole source, used only to score."""

    seed: Natural | None = None
    """Pin one surrogate for all seeds, as the paper does; null trains one per seed."""


class Supervised(Recipe):
    """Pretraining with the source's labels."""

    objective: Literal["supervised"] = "supervised"
    head: Literal["compact", "source"] = "compact"
    """compact: one output per kept class; source: one per class of the source, as in the paper."""


class Untrained(Spec):
    """Control: the networks of the study's other pretrainings, as initialised. A floor."""

    objective: Literal["none"] = "none"


class RawPixels(Spec):
    """Control: linear probe on the pixels themselves. A floor."""

    objective: Literal["raw_pixels"] = "raw_pixels"


Pretraining = Annotated[
    Supervised | Untrained | RawPixels, Field(discriminator="objective"), BareName("objective")
]
