"""The pretraining objectives, weights from elsewhere, and the two controls without pretraining."""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Spec
from dp4tl_ray.specs.network import Network, TimmNetwork, TorchvisionResNet, VisionTransformer
from dp4tl_ray.specs.self_supervised import AnySelfSupervised
from dp4tl_ray.specs.training import Recipe


class Supervised(Recipe):
    """Pretraining with the source's labels."""

    objective: Literal["supervised"] = "supervised"
    head: Literal["compact", "source"] = "compact"
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


AnyTrained = Supervised | AnySelfSupervised
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
