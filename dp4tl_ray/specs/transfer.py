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
    """All weights trained on the target, under a new head; last epoch."""

    transfer: Literal["full_finetune"] = "full_finetune"
    lrs: Axis[Positive] = (0.003, 0.01, 0.03, 0.1)
    """Learning rates to choose from, on validation; ties go to the smaller one."""
    epochs: Count = 30
    """Passes over the target's train images."""
    batch_size: Count = 64
    """Examples per step; a smaller target is one batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum; the learning rate falls along a cosine."""
    weight_decay: NotNegative = 5e-4
    """L2 penalty."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the training images."""


Transfer = Annotated[
    LinearProbe | FullFinetune, Field(discriminator="transfer"), BareName("transfer")
]
