"""Adversarial variants of a training, and the attacks that results are tested with.

Every epsilon is in units of pixels in [0, 1], before normalisation, and may be written 4/255.
"""

import re
from typing import Annotated, Any, Literal, assert_never

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from dp4tl_ray.specs.base import Axis, BareName, Count, Listed, NotNegative, Positive, Spec

_FRACTION = r"^[0-9]{1,6}(\.[0-9]{1,6})?/255$"


def _pixels(value: Any) -> Any:
    """Take "4/255" for the number that it is."""
    if isinstance(value, str) and re.fullmatch(_FRACTION, value):
        return float(value.removesuffix("/255")) / 255
    if isinstance(value, str):
        raise PydanticCustomError("pixels", "must be a number, or one over 255 such as 4/255")
    return value


def _written(number: dict[str, Any]) -> dict[str, Any]:
    # to some readers of the schema, $ allows a newline at the end
    text = {"type": "string", "pattern": _FRACTION, "not": {"pattern": r"\n"}}
    return {"anyOf": [{"type": "number", **number}, text]}


Pixels = Annotated[
    float,
    Field(ge=0, le=1e3),
    BeforeValidator(_pixels),
    WithJsonSchema(_written({"minimum": 0, "maximum": 1e3})),
]
"""A distance between images whose pixels are in [0, 1]; 4/255 is a number."""
Norm = Literal["linf", "l2"]
AttackBatchNorm = Literal["train_frozen_stats", "train", "eval"]


class Standard(Spec):
    """No attack: training on the images as they are."""

    attack: Literal["none"] = "none"


class Attacked(Spec):
    """What every adversarial variant has."""

    eps: Pixels = 4 / 255
    """Radius in units of pixels in [0, 1]: 4/255 or 0.0157. 0 is no perturbation."""
    attack_bn: AttackBatchNorm = "train_frozen_stats"
    """Batch norm while attacking. train_frozen_stats: by the batch's own statistics, leaving the
    running ones alone, so that gradients are those of training; train moves the running ones too;
    eval uses the running ones."""
    awp: Annotated[float, Field(gt=0, le=1)] | None = None
    """Adversarial weight perturbation (Wu et al. 2020): length of the step uphill that each weight
    matrix takes before its gradient, relative to its norm, such as 0.01. It costs one more
    standard step."""

    @model_validator(mode="after")
    def _eps_is_in_pixels(self) -> "Attacked":
        norm = getattr(self, "norm", "linf")
        if norm == "linf" and self.eps > 1:
            raise _too_far(self.eps)
        if norm == "l2" and "eps" not in self.model_fields_set:
            raise _needs_eps("0.5")
        return self


class PGD(Attacked):
    """Adversarial training by projected gradient descent (Madry et al. 2018), on the final
    perturbation only."""

    attack: Literal["pgd"] = "pgd"
    norm: Norm = "linf"
    """Ball that perturbations stay in."""
    steps: Count = 3
    """Steps of the attack; each costs two thirds of a standard training step."""
    step_size: Pixels | None = None
    """Length of a step; null takes 2 eps / steps."""
    random_start: bool = True
    """linf: uniform in the ball. l2: a random direction of uniform length. false starts at the
    image."""


class FGSMRS(Attacked):
    """One step from a random start, projected onto the ball (Fast AT; Wong et al. 2020)."""

    attack: Literal["fgsm_rs"] = "fgsm_rs"
    relative_step: Positive = 1.25
    """Length of the step, in units of eps."""


class NFGSM(Attacked):
    """One step from noise beyond the ball, not projected (N-FGSM; de Jorge et al. 2022).

    A perturbation reaches up to (noise + 1) eps.
    """

    attack: Literal["n_fgsm"] = "n_fgsm"
    noise: NotNegative = 2.0
    """Half-width of the uniform noise, in units of eps."""


class Free(Attacked):
    """Each batch replayed several times; one backward pass moves weights and perturbation (Free AT;
    Shafahi et al. 2019).

    The budget counts optimizer steps as everywhere, so a batch replayed m times makes the training
    see a m-th of the batches, and cost what standard training does. The paper carries perturbations
    from one batch on to the next; here every batch begins at uniform noise, so that neither the
    number of workers nor a resumed training changes them.
    """

    attack: Literal["free"] = "free"
    replays: Annotated[int, Field(ge=2, le=100)] = 4
    """Optimizer steps on each batch."""
    attack_bn: Literal["train"] = "train"
    """The attack's pass is that of training."""
    awp: None = None
    """Not with this variant, whose one backward pass it would double."""


class TRADES(Attacked):
    """Cross-entropy on images plus divergence of perturbed ones from it (Zhang et al. 2019)."""

    attack: Literal["trades"] = "trades"
    beta: NotNegative = 6.0
    """Weight of the divergence."""
    steps: Count = 10
    """Steps of the attack, which maximises that divergence; the logits of the images themselves are
    computed once."""
    step_size: Pixels | None = None
    """Length of a step; null takes 2 eps / steps."""
    attack_bn: AttackBatchNorm = "eval"
    """As above; the paper's code attacks in evaluation mode."""


class DP4TLAsIsAttack(Attacked):
    """What the paper's released code does, only for comparison with its published numbers.

    Noise and steps are added to normalised images in the magnitudes of pixels; only the projection
    is in pixels. So a perturbation reaches three times eps times the deviation of its channel at
    most, .687 eps with ImageNet's statistics, and is never projected.
    """

    attack: Literal["dp4tl_asis"] = "dp4tl_asis"
    eps: Pixels = 3 / 255
    """Radius by name; a perturbation stays far below it."""
    steps: Count = 3
    """Steps of the attack, each 2 eps / steps long."""
    attack_bn: Literal["train"] = "train"
    """The code attacks in training mode, which moves the running statistics too."""


AnyAttack = PGD | FGSMRS | NFGSM | Free | TRADES | DP4TLAsIsAttack
AnyAdversarial = Standard | AnyAttack
Adversarial = Annotated[AnyAdversarial, Field(discriminator="attack"), BareName("attack")]


def relative_cost(adversarial: AnyAdversarial) -> float:
    """Return what a step costs in standard steps, as counted: a gradient of images takes two thirds
    of one, a forward pass a third."""
    match adversarial:
        case Standard() | Free():
            cost = 1.0
        case PGD(steps=steps) | DP4TLAsIsAttack(steps=steps):
            cost = 1 + 2 * steps / 3
        case FGSMRS() | NFGSM():
            cost = 1 + 2 / 3
        case TRADES(steps=steps):
            cost = (7 + 2 * steps) / 3
        case _:
            assert_never(adversarial)
    return cost if isinstance(adversarial, Standard) or adversarial.awp is None else cost + 1


class Robustness(Spec):
    """What every test under attack has."""

    norm: Norm = "linf"
    """Ball that perturbations stay in."""
    eps: Axis[Pixels] = (0.5 / 255, 1 / 255, 2 / 255, 4 / 255)
    """Radii in units of pixels in [0, 1]; l2 has none by default, 0.25, 0.5 and 1 are usual."""

    @model_validator(mode="after")
    def _eps_is_in_pixels(self) -> "Robustness":
        if self.norm == "linf" and max(self.eps) > 1:
            raise _too_far(max(self.eps))
        if self.norm == "l2" and "eps" not in self.model_fields_set:
            raise _needs_eps("[0.25, 0.5, 1.0]")
        return self


class PGDRobustness(Robustness):
    """Accuracy under PGD (Madry et al. 2018).

    PGD climbs the cross-entropy of the whole of normalisation, network and head, in evaluation
    mode and fp32, from one random start, until an image is taken for another class. It goes from
    the smallest eps to the largest, and only at images that are still classified correctly: one
    that was fooled within a small ball is fooled within a larger one. Signs that it only seems to
    fail raise an alarm: see algorithms/masking.py.
    """

    attack: Literal["pgd"] = "pgd"
    steps: Count = 20
    """Steps of the attack, each eps / 4 long."""


class AutoAttackRobustness(Robustness):
    """Accuracy under PGD-20, and then under AutoAttack (Croce and Hein 2020): for final tables.

    With fewer than ten classes it aims at each of the others. The loss of targeted APGD needs four
    of them: for three classes the untargeted one takes its place, for two nothing does (see
    stages/transfers/ensemble.py). An image that withstands all of it takes some 8,000 passes.
    Needs the package pyautoattack: pip install 'dp4tl_ray[autoattack]'.
    """

    attack: Literal["autoattack"] = "autoattack"
    eps: Axis[Pixels] = (4 / 255,)
    """Radii in units of pixels in [0, 1]; l2 has none by default, 0.5 and 1 are usual."""
    num_images: Count = 1000
    """Test images attacked, the same for every cell of a seed; a smaller test split is attacked
    whole."""


AnyRobustness = PGDRobustness | AutoAttackRobustness
Checks = Listed[Annotated[AnyRobustness, Field(discriminator="attack"), BareName("attack")]]


def robust_key(check: AnyRobustness, eps: float) -> str:
    """Name the accuracy under one attack in a manifest."""
    steps = f" {check.steps}" if isinstance(check, PGDRobustness) else ""
    return f"robust {check.attack} {check.norm} {eps!r}{steps}"


def _too_far(eps: float) -> PydanticCustomError:
    """Refuse a radius that is meant in units of 1/255."""
    meant = f"; did you mean {eps:g}/255?" if eps < 255 else ""
    message = f"{eps:g} is more than the whole range of pixels, [0, 1]{meant}"
    return PydanticCustomError("cross_field", "{message}", {"message": message, "field": "eps"})


def _needs_eps(usual: str) -> PydanticCustomError:
    """Ask for a radius where the default, one of linf, would do nothing."""
    message = f"norm: l2 needs its own eps, such as {usual}"
    return PydanticCustomError("cross_field", "{message}", {"message": message, "field": "eps"})
