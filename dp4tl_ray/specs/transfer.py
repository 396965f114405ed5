"""Transfer protocols: how a pretrained network meets a target."""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.base import Axis, BareName, Count, NotNegative, Positive, Spec
from dp4tl_ray.specs.training import Augmentation


class LinearProbe(Spec):
    """Multinomial logistic regression on frozen features, solved to convergence.

    Features are standardised by the train images' mean and deviation. The L2 strength is chosen on
    validation; ties go to the stronger one.
    """

    transfer: Literal["linear_probe"] = "linear_probe"
    l2: Axis[Positive] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    """Strengths to choose from: the penalty is l2/2 |W|^2 beside the mean cross-entropy."""


class FullFinetune(Spec):
    """All weights trained on the target, under a new head; last epoch.

    Learning rate and weight decay are chosen together on validation; ties go to the smaller rate,
    then to the smaller decay.
    """

    transfer: Literal["full_finetune"] = "full_finetune"
    lrs: Axis[Positive] = (0.003, 0.01, 0.03, 0.1)
    """Learning rates to choose from."""
    weight_decays: Axis[NotNegative] = (5e-4,)
    """L2 penalties to choose from, crossed with the learning rates."""
    search: Literal["grid", "halving"] = "grid"
    """grid trains every pair to the end. halving pauses all of them after a ninth and after a third
    of the epochs, each under the learning rates of the whole budget, and goes on with the better
    third on validation. It is synchronous, so the choice depends on no worker's speed;
    asynchronous halving (ASHA) would be faster on many workers and choose by their timing."""
    epochs: Count = 30
    """Passes over the target's train images."""
    batch_size: Count = 64
    """Examples per step; a smaller target is one batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum; the learning rate falls along a cosine."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the training images."""


Transfer = Annotated[
    LinearProbe | FullFinetune, Field(discriminator="transfer"), BareName("transfer")
]
