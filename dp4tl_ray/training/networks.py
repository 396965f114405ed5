"""Network specs -> modules: a backbone, a head, and the normalisation of the pixels."""

import difflib
from functools import partial
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dp4tl_ray.specs.network import (
    AnyNetwork,
    SmallResNet,
    SmallVisionTransformer,
    TimmNetwork,
    TorchvisionResNet,
    VisionTransformer,
)
from dp4tl_ray.training.batch_norm import GroupedBatchNorm2d

Norm = partial[GroupedBatchNorm2d]


class NetworkError(Exception):
    """A network cannot be built; the message is for a person."""


class Classifier(nn.Module):
    """Pixels in [0, 1] -> normalised pixels -> backbone -> features -> head -> logits.

    Normalisation is part of the network, so that whoever changes pixels works in pixel units. A
    network that learns without labels has no head, and no logits.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    head: nn.Linear | None
    mirrored = False
    """Whether features are means over an image and its mirror image, as some are tested; logits,
    which are affine in them, are then such means too."""

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features = num_features
        self.head = nn.Linear(num_features, num_classes) if num_classes else None

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 without one."""
        return self.head.out_features if self.head is not None else 0

    def features(self, pixels_NCHW: Tensor) -> Tensor:
        """Return the backbone's output, (N, num_features).

        Grey images are shown alike to each channel of a network that has several.
        """
        normalised: Tensor = (pixels_NCHW - self.pixel_mean) / self.pixel_std
        features: Tensor = self.backbone(normalised)
        return (features + self.backbone(normalised.flip(3))) / 2 if self.mirrored else features

    def logits(self, features: Tensor) -> Tensor:
        """Return the head's output for features, (N, num_classes)."""
        if self.head is None:
            return features.new_empty(len(features), 0)
        logits: Tensor = self.head(features)
        return logits

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Return logits, (N, num_classes)."""
        return self.logits(self.features(pixels_NCHW))


class EveryOther(nn.Module):
    """Keep one of `stride` rows and columns.

    A 1x1 convolution with a stride reads the same. But backward through one with few channels,
    channels last, oneDNN writes beyond its memory (uxlfoundation/oneDNN#6035).
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return (N, C, ceil(H / stride), ceil(W / stride))."""
        return x_NCHW[:, :, :: self.stride, :: self.stride]


class BlurredConv2d(nn.Conv2d):
    """A convolution of its input blurred by [1 2 1] x [1 2 1] / 16, channel by channel.

    Beyond the edges are zeros, as they are to the convolution itself.
    """

    blur: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take the place of a convolution without bias, and its weight."""
        sizes = conv.kernel_size, conv.stride, conv.padding
        super().__init__(conv.in_channels, conv.out_channels, *sizes, bias=False)  # type: ignore[arg-type]
        self.weight = conv.weight
        binomial_3 = torch.tensor([0.25, 0.5, 0.25])
        blur_33 = binomial_3[:, None] * binomial_3
        blur = blur_33.repeat(conv.in_channels, 1, 1, 1)
        self.register_buffer("blur", blur, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Blur (N, C, H, W), then convolve."""
        return super().forward(F.conv2d(input, self.blur, padding=1, groups=self.in_channels))


def _blur_strides(net: nn.Module) -> None:
    """Blur before every convolution with a stride, but for a stem's few channels."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.stride > (1, 1) and child.in_channels >= 16:
                setattr(module, name, BlurredConv2d(child))


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
            else nn.Sequential(
                EveryOther(stride), nn.Conv2d(width_in, width, 1, bias=False), norm(width)
            )
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
    if spec.blurpool:
        _blur_strides(net)
    num_features: int = net.fc.in_features
    net.fc = nn.Identity()
    return net, num_features


def _vision_transformer(
    spec: VisionTransformer | SmallVisionTransformer, channels: int, image_size: int
) -> tuple[nn.Module, int]:
    import torchvision

    width, depth, num_heads = (
        (spec.width, spec.depth, spec.num_heads)
        if isinstance(spec, SmallVisionTransformer)
        else (768, 12, 12)
    )
    net = torchvision.models.VisionTransformer(
        image_size=image_size,
        patch_size=spec.patch_size,
        num_layers=depth,
        num_heads=num_heads,
        hidden_dim=width,
        mlp_dim=4 * width,
    )
    if channels != 3:
        net.conv_proj = nn.Conv2d(channels, width, spec.patch_size, spec.patch_size)
        # as torchvision initialises the one for three channels
        nn.init.trunc_normal_(net.conv_proj.weight, std=(channels * spec.patch_size**2) ** -0.5)
        nn.init.zeros_(net.conv_proj.bias)
    net.heads = nn.Identity()
    return net, width


def create_timm(name: str, *, channels: int, image_size: int, **options: Any) -> nn.Module:
    """Build a network of timm as timm does.

    Args:
        name: timm's name, with or without that of weights.
        channels: Channels of the images.
        image_size: Height and width of the images.
        options: For timm.create_model.

    Raises:
        NetworkError: timm is not installed, or does not know the name.
    """
    try:
        import timm
    except ImportError as error:
        raise NetworkError(
            f"network {name!r} is timm's, which is not installed: pip install 'dp4tl_ray[timm]'"
        ) from error
    known = {*timm.list_models(), *timm.list_pretrained()}
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=5)
        hint = f"; the nearest names: {', '.join(near)}" if near else ""
        raise NetworkError(f"timm {timm.__version__} has no network {name!r}{hint}")
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    net: nn.Module = timm.create_model(name, in_chans=channels, **options)
    return net


class _GroupedBatchNormAct2d(GroupedBatchNorm2d):
    """timm's BatchNormAct2d, which drops and activates what it has normalised."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, drop, activate."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


def _grouped(norm: _BatchNorm, group_size: int, whose: str) -> GroupedBatchNorm2d:
    """Return the same batch norm over groups."""
    from timm.layers import BatchNormAct2d

    kind, parts = GroupedBatchNorm2d, ["weight", "bias", "running_mean", "running_var"]
    if type(norm) is BatchNormAct2d:
        kind, parts = _GroupedBatchNormAct2d, [*parts, "drop", "act"]
    elif type(norm) is not nn.BatchNorm2d:
        raise NetworkError(
            f"timm's {whose} normalises by {type(norm).__name__}, whose statistics would depend "
            "on the number of workers; only BatchNorm2d and BatchNormAct2d can be grouped"
        )
    grouped = kind(norm.num_features, group_size=group_size, eps=norm.eps, affine=norm.affine)
    for part in parts:
        setattr(grouped, part, getattr(norm, part))
    return grouped


def _timm_network(
    spec: TimmNetwork, channels: int, image_size: int, group_size: int
) -> tuple[nn.Module, int]:
    try:
        net = create_timm(spec.name, channels=channels, image_size=image_size, num_classes=0)
        with torch.no_grad():
            shape = net.eval()(torch.zeros(1, channels, image_size, image_size)).shape
    except (RuntimeError, AssertionError, ValueError) as error:
        raise NetworkError(
            f"timm's {spec.name} does not take images of {image_size} pixels: {error}"
        ) from error
    if len(shape) != 2:
        raise NetworkError(f"timm's {spec.name} gives no vector of features but {tuple(shape)[1:]}")
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, _grouped(child, group_size, spec.name))
    return net.train(), shape[1]


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
        num_classes: Outputs of the head; 0 for a network without one.
        image_size: Height and width of the images.
        statistics: Mean and deviation of the source's pixels in [0, 1], (2, channels).
        group_size: Examples per batch-norm group.
        seed: Seed of the weights.

    Raises:
        NetworkError: A network of timm that is not there, or does not fit.
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
            case VisionTransformer() | SmallVisionTransformer():
                backbone, num_features = _vision_transformer(spec, channels, image_size)
            case TimmNetwork():
                backbone, num_features = _timm_network(spec, channels, image_size, group_size)
            case _:
                assert_never(spec)
        model = Classifier(backbone, num_features, num_classes)
    mean, std = torch.from_numpy(np.array(statistics)).view(2, 1, channels, 1, 1)
    model.register_buffer("pixel_mean", mean)
    model.register_buffer("pixel_std", std)
    return model


def new_head(model: Classifier, num_classes: int, seed: int) -> None:
    """Give a network a fresh head, as transfer to another task asks for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.head = nn.Linear(model.num_features, num_classes)


def patch_embedding(model: Classifier) -> list[nn.Parameter]:
    """Return the parameters by which a vision transformer embeds patches; of others, none."""
    modules = (getattr(model.backbone, name, None) for name in ("conv_proj", "patch_embed"))
    return [p for module in modules if module is not None for p in module.parameters()]


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of networks: the outermost modules with parts of their own that
    stand in a sequence, as residual and encoder blocks do."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, nn.Sequential) and list(child.children()):
                found.append(child)
            else:
                look(child)

    look(model)
    return found
