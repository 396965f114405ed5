"""Networks by architecture, and how their batch normalisation groups examples."""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Count, Spec, Whole


class SmallResNet(Spec):
    """A residual network of 4 blocks or fewer for images of 16 to 64 pixels, made for CPUs."""

    arch: Literal["resnet9"] = "resnet9"
    width: Count = 16
    """Channels of the first block; each later block doubles them."""
    stem_stride: Annotated[Literal[1, 2], Whole] = 2
    """2 halves the image before the first block: about a quarter of the cost."""


class TorchvisionResNet(Spec):
    """torchvision's ResNet, trained from scratch."""

    arch: Literal["resnet18", "resnet50", "resnet101"]
    small_images: bool = False
    """Replace the 7x7 stride-2 stem and its pooling by a 3x3 convolution, for images of 16 to 64
    pixels."""


class VisionTransformer(Spec):
    """torchvision's ViT-B/16, trained from scratch."""

    arch: Literal["vit_b_16"] = "vit_b_16"
    patch_size: Annotated[Literal[2, 4, 8, 16], Whole] = 16
    """Height and width of a patch; smaller ones are for small images."""


Network = Annotated[
    SmallResNet | TorchvisionResNet | VisionTransformer,
    Field(discriminator="arch"),
    BareName("arch"),
]
AnyNetwork = SmallResNet | TorchvisionResNet | VisionTransformer


class BatchNorm(Spec):
    """Batch statistics are computed over fixed groups, whichever worker holds them.

    So the number of workers cannot change the recipe.
    """

    group_size: Count = 64
    """Examples per group; must divide a worker's share of the batch."""
