"""Recipes: everything that shapes one training, apart from its data and its seed."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dp4tl_ray.specs.adversarial import Adversarial, Standard
from dp4tl_ray.specs.base import (
    Count,
    Fraction,
    Natural,
    NotNegative,
    Pair,
    Positive,
    Spec,
    Whole,
    _require_tags,
)
from dp4tl_ray.specs.network import BatchNorm, Network, SmallResNet


def _exactly_one(schema: dict[str, Any], model: type[Spec]) -> None:
    schema["oneOf"] = [{"required": [name]} for name in model.model_fields]
    for field in schema["properties"].values():
        # null stands for "not given"; it cannot be written
        del field["default"]
        field |= field.pop("anyOf")[0]


class Budget(Spec, json_schema_extra=_exactly_one):
    """How long to train: either epochs (pruning saves steps) or examples seen (equal steps)."""

    epochs: Count | None = None
    """Passes over the kept examples, the paper's budget: less data, fewer steps, less time."""
    examples_seen: Count | None = None
    """Examples drawn in total, with repetition: every subset gets the same number of steps."""

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, data: Any) -> Any:
        known = isinstance(data, dict) and set(data) <= set(cls.model_fields)
        if known and (len(data) != 1 or None in data.values()):
            raise PydanticCustomError("budget", "give either epochs or examples_seen")
        return data

    @model_serializer(mode="wrap")
    def _only_the_given_one(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the null, which nobody may write, so that what is dumped can be read."""
        return {name: value for name, value in serialize(self).items() if value is not None}


class Optimizer(Spec):
    """Stochastic gradient descent with Nesterov momentum, AdamW, or LARS."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    """Update rule; lars (You et al. 2017) is for batches of thousands."""
    lr: Positive = 0.5
    """Peak learning rate; the paper's is 0.5 at batches of 1024."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD and LARS, or the first beta of AdamW."""
    weight_decay: NotNegative = 5e-5
    """L2 penalty (SGD, LARS) or decoupled decay (AdamW)."""
    decay_norms: bool = True
    """Decay biases and normalisation weights too, as the paper does."""


class Schedule(Spec):
    """Learning rate over the budget; every horizon is a fraction of it."""

    name: Literal["cyclic", "one_cycle", "cosine"] = "cyclic"
    """After the warm-up: cyclic falls linearly (the paper), one_cycle and cosine as a cosine;
    one_cycle warms up along a cosine too, the others linearly."""
    warmup: Fraction = 0.125
    """Share of the budget spent warming up; the paper: 2 of 16 epochs."""


def _ascending(pair: tuple[float, ...]) -> tuple[float, ...]:
    if pair[0] > pair[1]:
        raise PydanticCustomError("cross_field", "the smaller number comes first")
    return pair


class Augmentation(Spec):
    """Random changes of the training images, drawn per example."""

    shift: Natural = 0
    """Largest shift in pixels, in each direction, edges repeated."""
    flip: bool = False
    """Mirror half of the images left to right."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest share of the area that a random crop keeps (ratio 3/4 to 4/3); 1 does not crop."""
    brightness: NotNegative = 0.0
    """Largest relative change of brightness; 0.4 multiplies by 0.6 to 1.4."""
    contrast: NotNegative = 0.0
    """Largest relative change of contrast."""
    saturation: NotNegative = 0.0
    """Largest relative change of saturation; grey images have none."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest turn of the hue, as a share of the colour circle; grey images have none."""
    jitter: Fraction = 0.8
    """Probability that an image's colours are changed at all; the changes come in random order."""
    grayscale: Fraction = 0.0
    """Probability that an image loses its colours."""
    blur: Fraction = 0.0
    """Probability that an image is blurred by a Gaussian."""
    blur_sigma: Annotated[Pair, AfterValidator(_ascending)] = (0.1, 2.0)
    """Smallest and largest deviation of the blur, in pixels; the papers' are for 224 pixels."""
    solarize: Fraction = 0.0
    """Probability that all pixels above one half are inverted."""


COMPLETED = (
    "network",
    "optimizer",
    "schedule",
    "augmentation",
    "second_augmentation",
    "batch_norm",
)


class Resolution(Spec):
    """Progressive resizing: training images grow.

    Early steps are cheaper; what is trained is evaluated at the images' full size. The paper's, as
    in ffcv-imagenet: 160 pixels, and 192 from three quarters of the budget on, beside 256.
    """

    smallest: Annotated[int, Field(ge=8, le=512), Whole] = 160
    """Height and width in pixels, up to `start`."""
    largest: Annotated[int, Field(ge=8, le=512), Whole] = 192
    """The same, from `end` on; at most the images' own."""
    start: Fraction = 0.6875
    """Share of the budget; 11 of 16 epochs."""
    end: Fraction = 0.8125
    """Share of the budget; 13 of 16 epochs."""
    multiple: Count = 32
    """Of what sizes are between the two."""

    @property
    def ramp(self) -> tuple[int, int, float, float, int]:
        """Return the arguments of `resolution_at`."""
        return self.smallest, self.largest, self.start, self.end, self.multiple


class Training(Spec, json_schema_extra=_require_tags):
    """What every training of a network has. Defaults are those of the paper's 16-epoch recipe.

    What a study leaves out of `optimizer`, `schedule`, `batch_norm`, the augmentations and a
    network of the same architecture is the objective's own default.
    """

    @model_validator(mode="before")
    @classmethod
    def _keep_own_defaults(cls, data: Any) -> Any:
        """Complete records that are written in part by what this objective has there."""
        if not isinstance(data, dict):
            return data
        own = {n: field.default for n, field in cls.model_fields.items() if n in COMPLETED}
        written = {n: {"arch": v} if isinstance(v, str) else v for n, v in data.items() if n in own}
        completed = {
            name: {**default.model_dump(), **written[name]}
            for name, default in own.items()
            if isinstance(default, Spec)
            and isinstance(written.get(name), dict)
            # another network is not the objective's own, and has its own fields
            and written[name].get("arch") == getattr(default, "arch", None)
        }
        return {**data, **completed}

    network: Network = SmallResNet()
    """Architecture."""
    budget: Budget = Budget(epochs=16)
    """How long to train."""
    batch_size: Count = 1024
    """Examples per optimizer step, over all workers."""
    optimizer: Optimizer = Optimizer()
    """Update rule."""
    schedule: Schedule = Schedule()
    """Learning rate over the budget."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the training images."""
    batch_norm: BatchNorm = BatchNorm()
    """Groups over which batch statistics are computed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes forward and backward under autocast; weights stay fp32."""
    ema: Annotated[float, Field(gt=0, le=1)] | None = None
    """Horizon of an exponential moving average of the weights, as a fraction of the budget; the
    average is what is kept."""


class Recipe(Training):
    """Supervised training of a network."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability mass spread over all classes."""
    adversarial: Adversarial = Standard()
    """Adversarial variant; none trains on the images as they are."""
    resolution: Resolution | None = None
    """Smaller images at first; null trains on images of full size."""
