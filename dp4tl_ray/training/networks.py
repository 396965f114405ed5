"""Network specs -> modules: a backbone, a head, and the normalisation of the pixels."""

from functools import partial
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp4tl_ray.specs.network import (
    AnyNetwork,
    SmallResNet,
    TorchvisionResNet,
    VisionTransformer,
)
from dp4tl_ray.training.batch_norm import GroupedBatchNorm2d

Norm = partial[GroupedBatchNorm2d]


class Classifier(nn.Module):
    """Pixels in [0, 1] -> normalised pixels -> backbone -> features -> head -> logits.

    Normalisation is part of the network, so that whoever changes pixels works in pixel units.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(num_features, num_classes)

    def features(self, pixels_NCHW: Tensor) -> Tensor:
        """Return the backbone's output, (N, num_features)."""
        normalised: Tensor = (pixels_NCHW - self.pixel_mean) / self.pixel_std
        features: Tensor = self.backbone(normalised)
        return features

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Return logits, (N, num_classes)."""
        logits: Tensor = self.head(self.features(pixels_NCHW))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, width_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm(width)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and width_in == width
            else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), norm(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual + shortcut)."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


def _small_resnet(spec: SmallResNet, channels: int, norm: Norm) -> tuple[nn.Module, int]:
    width = spec.width
    backbone = nn.Sequential(
        nn.Conv2d(channels, width, 3, spec.stem_stride, 1, bias=False),
        norm(width),
        nn.ReLU(),
        ResidualBlock(width, width, 1, norm),
        ResidualBlock(width, 2 * width, 2, norm),
        ResidualBlock(2 * width, 4 * width, 2, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return backbone, 4 * width


def _torchvision_resnet(
    spec: TorchvisionResNet, channels: int, norm: Norm
) -> tuple[nn.Module, int]:
    import torchvision

    net = getattr(torchvision.models, spec.arch)(norm_layer=norm)
    if spec.small_images:
        net.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    num_features: int = net.fc.in_features
    net.fc = nn.Identity()
    return net, num_features


def _vision_transformer(
    spec: VisionTransformer, channels: int, image_size: int
) -> tuple[nn.Module, int]:
    import torchvision

    width = 768
    net = torchvision.models.VisionTransformer(
        image_size=image_size,
        patch_size=spec.patch_size,
        num_layers=12,
        num_heads=12,
        hidden_dim=width,
        mlp_dim=3072,
    )
    if channels != 3:
        net.conv_proj = nn.Conv2d(channels, width, spec.patch_size, spec.patch_size)
    net.heads = nn.Identity()
    return net, width


def build_classifier(
    spec: AnyNetwork,
    *,
    num_classes: int,
    image_size: int,
    statistics: npt.NDArray[np.float32],
    group_size: int,
    seed: int,
) -> Classifier:
    """Build and initialise a network, leaving torch's global generator as it was.

    Args:
        spec: Architecture.
        num_classes: Outputs of the head.
        image_size: Height and width of the images.
        statistics: Mean and deviation of the source's pixels in [0, 1], (2, channels).
        group_size: Examples per batch-norm group.
        seed: Seed of the weights.
    """
    channels = statistics.shape[1]
    norm = partial(GroupedBatchNorm2d, group_size=group_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match spec:
            case SmallResNet():
                backbone, num_features = _small_resnet(spec, channels, norm)
            case TorchvisionResNet():
                backbone, num_features = _torchvision_resnet(spec, channels, norm)
            case VisionTransformer():
                backbone, num_features = _vision_transformer(spec, channels, image_size)
            case _:
                assert_never(spec)
        model = Classifier(backbone, num_features, num_classes)
    mean, std = torch.from_numpy(np.array(statistics)).view(2, 1, channels, 1, 1)
    model.register_buffer("pixel_mean", mean)
    model.register_buffer("pixel_std", std)
    return model


def new_head(model: Classifier, num_classes: int, seed: int) -> None:
    """Replace the head by a fresh one, as transfer to another task asks for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.head = nn.Linear(model.head.in_features, num_classes)


def blocks(model: Classifier) -> list[nn.Module]:
    """Return the repeated blocks of a backbone: the outermost modules with parts of their own that
    stand in a sequence, as residual and encoder blocks do."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, nn.Sequential) and list(child.children()):
                found.append(child)
            else:
                look(child)

    look(model.backbone)
    return found
