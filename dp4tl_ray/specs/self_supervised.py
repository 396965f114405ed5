"""Pretraining without labels: two views of each image, and what is asked of their embeddings.

Defaults follow the papers' recipes for ImageNet. Small images want no blur, a smaller queue and
smaller heads.
"""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.base import Count, NotNegative, Positive
from dp4tl_ray.specs.network import BatchNorm
from dp4tl_ray.specs.training import Augmentation, Budget, Optimizer, Schedule, Training

Momentum = Annotated[float, Field(ge=0, lt=1)]

MOCO_V2_VIEW = Augmentation(
    flip=True,
    crop=0.2,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale=0.2,
    blur=0.5,
)
"""Also SimSiam's."""
SIMCLR_VIEW = MOCO_V2_VIEW.model_copy(
    update={"crop": 0.08, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
)
BYOL_VIEW = MOCO_V2_VIEW.model_copy(update={"crop": 0.08, "saturation": 0.2, "blur": 1.0})
BYOL_SECOND_VIEW = BYOL_VIEW.model_copy(update={"blur": 0.1, "solarize": 0.2})
VICREG_VIEW = BYOL_VIEW.model_copy(update={"blur": 0.5, "solarize": 0.1})
MOCO_V3_VIEW = BYOL_VIEW.model_copy(update={"crop": 0.2})
MOCO_V3_SECOND_VIEW = BYOL_SECOND_VIEW.model_copy(update={"crop": 0.2})
WARM_COSINE = Schedule(name="cosine", warmup=0.1)


QUEUE_SHARE = 4
"""A queue of keys may hold one of so many of the examples: in a longer one a query would meet the
keys of its own image among the negatives too often, and the more so the more is pruned."""


class SelfSupervised(Training):
    """What all objectives on two views of an image have in common; they read no label."""

    schedule: Schedule = WARM_COSINE
    """Learning rate over the budget."""
    second_augmentation: Augmentation | None = None
    """Random changes of the second view; null takes those of the first."""
    hidden: Count | None = None
    """Width of the hidden layers of projector and predictor; null takes the network's features."""
    dim: Count = 128
    """Width of the embeddings that are compared."""


class MoCoV2(SelfSupervised):
    """Momentum contrast (Chen et al. 2020): a queue of keys from a slowly moving encoder.

    The queue may hold at most a quarter of the examples that are kept at the study's largest
    pruning ratio, and is the same at all of them. Keys are shuffled between batch-norm groups, so
    that batch statistics tell no query which key is its own.
    """

    objective: Literal["moco_v2"] = "moco_v2"
    budget: Budget = Budget(epochs=200)
    """How long to train."""
    batch_size: Count = 256
    """Examples per optimizer step, over all workers."""
    optimizer: Optimizer = Optimizer(lr=0.03, weight_decay=1e-4)
    """Update rule."""
    schedule: Schedule = Schedule(name="cosine", warmup=0.0)
    """Learning rate over the budget."""
    augmentation: Augmentation = MOCO_V2_VIEW
    """Random changes of the first view."""
    queue_size: Count = 65536
    """Keys of earlier batches that serve as negatives."""
    momentum: Momentum = 0.999
    """Of the key encoder: the share of itself that it keeps at each step."""
    temperature: Positive = 0.2
    """Divides the cosine similarities."""
    symmetric: bool = False
    """Let either view be query and key, at twice the cost of a step."""


class MoCoV3(SelfSupervised):
    """Momentum contrast without a queue (Chen et al. 2021); defaults are those for a ResNet.

    Keys are shuffled between batch-norm groups, where the paper has one group. A vision transformer
    takes AdamW at lr 1.5e-4 per 256 examples, weight_decay 0.1, temperature 0.2; its positions are
    learned, the paper's are fixed.
    """

    objective: Literal["moco_v3"] = "moco_v3"
    budget: Budget = Budget(epochs=100)
    """How long to train."""
    batch_size: Count = 4096
    """Examples per optimizer step, over all workers."""
    optimizer: Optimizer = Optimizer(name="lars", lr=9.6, weight_decay=1e-6, decay_norms=False)
    """Update rule."""
    augmentation: Augmentation = MOCO_V3_VIEW
    """Random changes of the first view."""
    second_augmentation: Augmentation | None = MOCO_V3_SECOND_VIEW
    """Random changes of the second view; null takes those of the first."""
    hidden: Count | None = 4096
    """Width of the hidden layers of projector and predictor; null takes the network's features."""
    dim: Count = 256
    """Width of the embeddings that are compared."""
    momentum: Momentum = 0.99
    """Of the key encoder at the start; it rises to 1 along a cosine."""
    temperature: Positive = 1.0
    """Divides the cosine similarities."""
    freeze_patches: bool = True
    """Leave a vision transformer's patch embedding as initialised, which keeps it stable."""


class SimCLR(SelfSupervised):
    """Contrast each view with all others of the batch (Chen et al. 2020).

    Batch norm tells which group a view is from, and so which negatives cannot be its partner; the
    paper's statistics are those of the whole batch. Large groups come near that.
    """

    objective: Literal["simclr"] = "simclr"
    budget: Budget = Budget(epochs=100)
    """How long to train."""
    batch_size: Count = 4096
    """Examples per optimizer step, over all workers."""
    batch_norm: BatchNorm = BatchNorm(group_size=512)
    """Groups over which batch statistics are computed."""
    optimizer: Optimizer = Optimizer(name="lars", lr=4.8, weight_decay=1e-6, decay_norms=False)
    """Update rule."""
    augmentation: Augmentation = SIMCLR_VIEW
    """Random changes of both views."""
    temperature: Positive = 0.1
    """Divides the cosine similarities."""


class SimSiam(SelfSupervised):
    """Predict one view's embedding from the other's, without negatives (Chen and He 2021).

    The predictor's learning rate falls with that of the others; the paper keeps it constant.
    """

    objective: Literal["simsiam"] = "simsiam"
    budget: Budget = Budget(epochs=100)
    """How long to train."""
    batch_size: Count = 256
    """Examples per optimizer step, over all workers."""
    optimizer: Optimizer = Optimizer(lr=0.05, weight_decay=1e-4)
    """Update rule."""
    schedule: Schedule = Schedule(name="cosine", warmup=0.0)
    """Learning rate over the budget."""
    augmentation: Augmentation = MOCO_V2_VIEW
    """Random changes of both views."""
    hidden: Count | None = 2048
    """Width of the projector's hidden layers; null takes the network's features."""
    dim: Count = 2048
    """Width of the embeddings that are compared."""
    bottleneck: Count = 512
    """Width of the predictor's hidden layer."""


class BYOL(SelfSupervised):
    """Predict the embedding that a slowly moving encoder gives to the other view (Grill et al.
    2020)."""

    objective: Literal["byol"] = "byol"
    budget: Budget = Budget(epochs=100)
    """How long to train."""
    batch_size: Count = 4096
    """Examples per optimizer step, over all workers."""
    optimizer: Optimizer = Optimizer(name="lars", lr=7.2, weight_decay=1e-6, decay_norms=False)
    """Update rule."""
    augmentation: Augmentation = BYOL_VIEW
    """Random changes of the first view."""
    second_augmentation: Augmentation | None = BYOL_SECOND_VIEW
    """Random changes of the second view; null takes those of the first."""
    hidden: Count | None = 4096
    """Width of the hidden layers of projector and predictor; null takes the network's features."""
    dim: Count = 256
    """Width of the embeddings that are compared."""
    momentum: Momentum = 0.99
    """Of the target encoder at the start; it rises to 1 along a cosine."""


class VICReg(SelfSupervised):
    """Pull two views together while every dimension varies and none repeats another (Bardes et al.
    2022)."""

    objective: Literal["vicreg"] = "vicreg"
    budget: Budget = Budget(epochs=100)
    """How long to train."""
    batch_size: Count = 2048
    """Examples per optimizer step, over all workers."""
    optimizer: Optimizer = Optimizer(name="lars", lr=1.6, weight_decay=1e-6, decay_norms=False)
    """Update rule."""
    augmentation: Augmentation = VICREG_VIEW
    """Random changes of both views."""
    hidden: Count | None = 8192
    """Width of the hidden layers of the expander; null takes the network's features."""
    dim: Count = 8192
    """Width of the embeddings that are compared."""
    invariance: NotNegative = 25.0
    """Weight of the distance between the two views."""
    variance: NotNegative = 25.0
    """Weight of the dimensions' lack of variance."""
    covariance: NotNegative = 1.0
    """Weight of the dimensions' covariances."""


AnySelfSupervised = MoCoV2 | MoCoV3 | SimCLR | SimSiam | BYOL | VICReg
