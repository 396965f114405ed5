"""Networks by architecture, and how their batch normalisation groups examples."""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Count, Spec, Whole


class SmallResNet(Spec):
    """A residual network of three stages for images of 16 to 64 pixels, made for CPUs."""

    arch: Literal["resnet9"] = "resnet9"
    width: Count = 16
    """Channels of the first block; each later block doubles them."""
    stem_stride: Annotated[Literal[1, 2], Whole] = 2
    """2 halves the image before the first block: about a quarter of the cost."""


class TorchvisionResNet(Spec):
    """torchvision's ResNet."""

    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    small_images: bool = False
    """Replace the 7x7 stride-2 stem and its pooling by a 3x3 convolution, for images of 16 to 64
    pixels."""
    blurpool: bool = False
    """Blur what a convolution with a stride reads, so that no pattern between its samples passes
    for another (Zhang 2019): by [1 2 1] x [1 2 1] / 16 before each that has at least 16 input
    channels, which is all but the stem, as ffcv-imagenet does. Weights keep their names."""


class VisionTransformer(Spec):
    """torchvision's ViT-B/16."""

    arch: Literal["vit_b_16"] = "vit_b_16"
    patch_size: Annotated[Literal[2, 4, 8, 16], Whole] = 16
    """Height and width of a patch, which must divide the images'; smaller ones are for small
    images."""


class SmallVisionTransformer(Spec):
    """A vision transformer of any size, by default one for images of 16 to 64 pixels."""

    arch: Literal["vit"] = "vit"
    patch_size: Annotated[Literal[2, 4, 8, 16], Whole] = 4
    """Height and width of a patch, which must divide the images'."""
    width: Count = 192
    """Features of a token; the hidden layer of a block has four times as many."""
    depth: Count = 6
    """Blocks."""
    num_heads: Count = 3
    """Attention heads of a block; must divide the width."""


class TimmNetwork(Spec):
    """A network of the package timm: `pip install 'dp4tl_ray[timm]'`."""

    arch: Literal["timm"] = "timm"
    name: Annotated[str, Field(min_length=1)]
    """timm's name, such as vit_small_patch16_224; the part after a dot, as in resnet18.a1_in1k,
    says which weights `weights: timm` means."""


AnyNetwork = (
    SmallResNet | TorchvisionResNet | VisionTransformer | SmallVisionTransformer | TimmNetwork
)
Network = Annotated[AnyNetwork, Field(discriminator="arch"), BareName("arch")]


def problem(network: AnyNetwork, image_size: int) -> str:
    """Say in words why a network cannot take images of a size, or "" if nothing is known.

    Args:
        network: Architecture.
        image_size: Height and width of the images, pixels.
    """
    match network:
        case VisionTransformer() | SmallVisionTransformer() if image_size % network.patch_size:
            return f"patch_size {network.patch_size} does not divide image_size {image_size}"
        case SmallVisionTransformer() if network.width % network.num_heads:
            return f"num_heads {network.num_heads} does not divide the width {network.width}"
    return ""


class BatchNorm(Spec):
    """Batch statistics are computed over fixed groups, whichever worker holds them.

    So the number of workers cannot change the recipe.
    """

    group_size: Count = 64
    """Examples per group; must divide the batch."""
