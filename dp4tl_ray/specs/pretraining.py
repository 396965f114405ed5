"""The pretraining objectives, weights from elsewhere, and the two controls without pretraining."""

from typing import Annotated, Any, Literal

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Count, Spec
from dp4tl_ray.specs.network import (
    BatchNorm,
    Network,
    TimmNetwork,
    TorchvisionResNet,
    VisionTransformer,
)
from dp4tl_ray.specs.self_supervised import AnySelfSupervised
from dp4tl_ray.specs.training import Augmentation, Budget, Optimizer, Recipe, Resolution, Schedule


class Supervised(Recipe):
    """Pretraining with the source's labels."""

    objective: Literal["supervised"] = "supervised"
    head: Literal["compact", "source"] = "compact"
    """compact: one output per kept class; source: one per class of the source, as in the paper."""


RESIZED_CROPS = Augmentation(flip=True, crop=0.08)
"""Random resized crops of 8 to 100 % of the area, and flips: those of all reference recipes."""


class Preset(Supervised):
    """A published recipe under a name of its own; whatever a study writes beside it is changed."""

    objective: Any
    """Name of the recipe."""


class _DP4TLResNet(Preset):
    """What the paper's recipes for ResNets on ImageNet have in common."""

    budget: Budget = Budget(epochs=16)
    """How long to train."""
    optimizer: Optimizer = Optimizer(name="sgd", lr=0.5, momentum=0.9, weight_decay=5e-5)
    """Update rule."""
    schedule: Schedule = Schedule(name="cyclic", warmup=2 / 16)
    """Learning rate over the budget."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability mass spread over all classes."""
    augmentation: Augmentation = RESIZED_CROPS
    """Random changes of the training images."""
    resolution: Resolution | None = Resolution()
    """Smaller images at first; null trains on images of full size."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 computes forward and backward under autocast; weights stay fp32."""
    head: Literal["compact", "source"] = "source"
    """compact: one output per kept class; source: one per class of the source, as in the paper."""


class DP4TLResNet18(_DP4TLResNet):
    """The paper's recipe for a ResNet-18 on ImageNet, 16 epochs (rn18_16.json of its code).

    Zhang et al. 2023, github.com/OPTML-Group/DP4TL. Images of 160 pixels, of 192 from epoch 12 on,
    so that the source's must have at least 192, or `resolution` be null. Not as there:

    - Nesterov momentum, constant; theirs is plain, and CyclicLR's default lets it fall to 0.8 at
      the peak rate and rise again;
    - the rate starts and ends at 0, not at 1e-4; all batches are full;
    - batch statistics over 128 images, so that eight workers can share a step; theirs are over the
      1,024 of one GPU;
    - bf16 for fp16 with scaled gradients; the last epoch, not the best one on validation images.

    The source is not evaluated, so there is no averaging over flips at test, as there is none in
    its configuration.
    """

    objective: Literal["dp4tl_rn18_16"] = "dp4tl_rn18_16"
    network: Network = TorchvisionResNet(arch="resnet18")
    """Architecture."""
    batch_size: Count = 1024
    """Examples per optimizer step, over all workers."""
    batch_norm: BatchNorm = BatchNorm(group_size=128)
    """Groups over which batch statistics are computed."""


class DP4TLResNet50(_DP4TLResNet):
    """The paper's recipe for a ResNet-50 on ImageNet, 16 epochs (rn50_16.json of its code).

    That of dp4tl_rn18_16 in batches of 512 at the same rate, with the same deviations; batch
    statistics are over 64 images.
    """

    objective: Literal["dp4tl_rn50_16"] = "dp4tl_rn50_16"
    network: Network = TorchvisionResNet(arch="resnet50")
    """Architecture."""
    batch_size: Count = 512
    """Examples per optimizer step, over all workers."""
    batch_norm: BatchNorm = BatchNorm(group_size=64)
    """Groups over which batch statistics are computed."""


class DP4TLResNet101(_DP4TLResNet):
    """The paper's recipe for a ResNet-101 on ImageNet, 16 epochs (rn101_16.json of its code).

    That of dp4tl_rn18_16 in batches of 256 at the same rate, with the same deviations; batch
    statistics are over 32 images.
    """

    objective: Literal["dp4tl_rn101_16"] = "dp4tl_rn101_16"
    network: Network = TorchvisionResNet(arch="resnet101")
    """Architecture."""
    batch_size: Count = 256
    """Examples per optimizer step, over all workers."""
    batch_norm: BatchNorm = BatchNorm(group_size=32)
    """Groups over which batch statistics are computed."""


class DP4TLViT(Preset):
    """The paper's recipe for a ViT-B/16 on ImageNet, 100 epochs (vit_b_16_100.json of its code).

    Batches of 100 on each of four GPUs at the rate of 3e-3, which torchvision uses for batches of
    4,096; neither mixup nor gradient clipping. Should that not learn, the same rate per example is
    `optimizer: {lr: 2.9e-4}`. Not as there:

    - its schedule applies warm-up (10 epochs) and cosine (over 90) both from the first step on, so
      that the rate peaks at 2.91e-3, is 0 after epoch 90 and rises again in the last ten; here it
      rises for 10 epochs, from 0, and falls along one cosine to 0 at epoch 100;
    - one image size throughout, the source's, as there (224 pixels); all batches are full;
    - bf16 for fp16 with scaled gradients; the last epoch, not the best one on validation images.
    """

    objective: Literal["dp4tl_vit_b16"] = "dp4tl_vit_b16"
    network: Network = VisionTransformer()
    """Architecture."""
    budget: Budget = Budget(epochs=100)
    """How long to train."""
    batch_size: Count = 400
    """Examples per optimizer step, over all workers."""
    optimizer: Optimizer = Optimizer(name="adamw", lr=3e-3, weight_decay=0.3)
    """Update rule."""
    schedule: Schedule = Schedule(name="cosine", warmup=10 / 100)
    """Learning rate over the budget."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.11
    """Probability mass spread over all classes."""
    augmentation: Augmentation = RESIZED_CROPS
    """Random changes of the training images."""
    batch_norm: BatchNorm = BatchNorm(group_size=100)
    """Groups over which batch statistics are computed."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 computes forward and backward under autocast; weights stay fp32."""
    head: Literal["compact", "source"] = "source"
    """compact: one output per kept class; source: one per class of the source, as in the paper."""


class FFCVResNet18(Preset):
    """ffcv-imagenet's recipe for a ResNet-18 on ImageNet, 16 epochs (rn18_16_epochs.yaml there).

    github.com/libffcv/ffcv-imagenet; the paper's recipe is this one without label smoothing and
    blurs, and with weight decay on batch norm. Images as in dp4tl_rn18_16. Not as there:

    - Nesterov momentum; theirs is plain;
    - no weight decay on any vector; theirs spares parameters with `bn` in their name, which those
      of the shortcuts' batch norm and the head's bias have not;
    - the rate starts at 0, not at 5e-5;
    - batch statistics over 128 images, so that eight workers can share a step; theirs are over the
      1,024 of one GPU;
    - bf16 for fp16 with scaled gradients.

    There, test images (256 pixels) are averaged with their mirror images; the source is not
    evaluated here, and a transfer does so with `tta: flip`.
    """

    objective: Literal["ffcv_rn18_16"] = "ffcv_rn18_16"
    network: Network = TorchvisionResNet(arch="resnet18", blurpool=True)
    """Architecture."""
    budget: Budget = Budget(epochs=16)
    """How long to train."""
    batch_size: Count = 1024
    """Examples per optimizer step, over all workers."""
    optimizer: Optimizer = Optimizer(
        name="sgd", lr=0.5, momentum=0.9, weight_decay=5e-5, decay_norms=False
    )
    """Update rule."""
    schedule: Schedule = Schedule(name="cyclic", warmup=2 / 16)
    """Learning rate over the budget."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability mass spread over all classes."""
    augmentation: Augmentation = RESIZED_CROPS
    """Random changes of the training images."""
    resolution: Resolution | None = Resolution()
    """Smaller images at first; null trains on images of full size."""
    batch_norm: BatchNorm = BatchNorm(group_size=128)
    """Groups over which batch statistics are computed."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 computes forward and backward under autocast; weights stay fp32."""
    head: Literal["compact", "source"] = "source"
    """compact: one output per kept class; source: one per class of the source, as in the paper."""


class Pretrained(Spec):
    """Weights from elsewhere instead of a training; only files of plain tensors are read.

    As surrogate it scores; among `pretraining` it is a reference that nothing was pruned from.
    """

    objective: Literal["pretrained"] = "pretrained"
    network: Network
    """Architecture, which the weights must fit."""
    weights: Annotated[str, Field(min_length=1)]
    """torchvision:NAME, such as torchvision:IMAGENET1K_V1; timm, the weights that a timm network's
    name stands for; or a file (.safetensors, or .pt, .pth and .pth.tar that hold nothing but
    tensors)."""
    outputs: Literal["source", "dropped"] = "dropped"
    """source: its outputs are the source's classes in the order of their names, which methods need
    that read predictions, such as label_mapping; dropped keeps features only."""
    pixels: Literal["imagenet", "source"] = "imagenet"
    """Mean and deviation that pixels are normalised by: ImageNet's (timm, torchvision and files of
    this package say their own), or those of the source."""


class Untrained(Spec):
    """Control: the networks that the study trains, as initialised. A floor."""

    objective: Literal["none"] = "none"


class RawPixels(Spec):
    """Control: linear probe on the pixels themselves. A floor."""

    objective: Literal["raw_pixels"] = "raw_pixels"


AnyPreset = DP4TLResNet18 | DP4TLResNet50 | DP4TLResNet101 | DP4TLViT | FFCVResNet18
AnyTrained = Supervised | AnyPreset | AnySelfSupervised
"""What a network is trained by, on the whole source or on a part of it."""
AnyPretraining = AnyTrained | Pretrained | Untrained | RawPixels
Trained = Annotated[
    AnyTrained | Pretrained, Field(discriminator="objective"), BareName("objective")
]
Pretraining = Annotated[AnyPretraining, Field(discriminator="objective"), BareName("objective")]


def misfit(spec: Pretrained) -> str:
    """Say in words why weights cannot be those of a network; empty if nothing is known."""
    network = spec.network
    if spec.weights.startswith("torchvision:"):
        match network:
            case TorchvisionResNet(small_images=False, blurpool=False):
                return ""
            case VisionTransformer(patch_size=16):
                return ""
        return f"weights {spec.weights} are of torchvision's own networks, such as resnet18"
    if spec.weights == "timm" and not (isinstance(network, TimmNetwork) and "." in network.name):
        return "weights: timm needs a timm network whose name says which, such as resnet18.a1_in1k"
    return ""


Demand = Literal["features", "predictions", "dynamics"]
"""features: of its last layer; predictions: over the source's classes; dynamics: those while it
learns the source's labels."""


def lacks(surrogate: AnyTrained | Pretrained, demanded: frozenset[Demand]) -> str:
    """Say in words what a surrogate cannot give; empty if it gives all that is demanded."""
    match surrogate:
        case Supervised():
            return ""
        case Pretrained(outputs=outputs):
            if "predictions" in demanded and outputs == "dropped":
                return (
                    "reads predictions over the source's classes, which a pretrained surrogate "
                    "gives with outputs: source"
                )
            if "dynamics" in demanded:
                return "reads how the surrogate learns, so it cannot be pretrained elsewhere"
        case _:
            if not demanded.isdisjoint({"predictions", "dynamics"}):
                return (
                    f"reads the source's labels through the surrogate, and {surrogate.objective} "
                    "learns none: take a supervised one, or a method of features such as "
                    "feature_mapping"
                )
    return ""
