import sys

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from dp4tl_ray.specs.network import (
    AnyNetwork,
    SmallResNet,
    SmallVisionTransformer,
    TimmNetwork,
    TorchvisionResNet,
    VisionTransformer,
    problem,
)
from dp4tl_ray.training.batch_norm import GroupedBatchNorm
from dp4tl_ray.training.inference import infer
from dp4tl_ray.training.networks import (
    BlurredConv2d,
    Classifier,
    NetworkError,
    blocks,
    build_classifier,
    new_head,
    patch_embedding,
)
from dp4tl_ray.training.worker import Worker

STATISTICS = np.array([[0.5, 0.4, 0.3], [0.2, 0.3, 0.25]], np.float32)


def build(spec: AnyNetwork, size: int = 32, channels: int = 3, num_classes: int = 0) -> Classifier:
    return build_classifier(
        spec,
        num_classes=num_classes,
        image_size=size,
        statistics=STATISTICS[:, :channels],
        group_size=4,
        seed=0,
    )


def pixels(n: int = 4, size: int = 32, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def normalised(x: Tensor) -> Tensor:
    mean, std = torch.from_numpy(STATISTICS)[:, :, None, None]
    return x.sub(mean).div(std)


@torch.no_grad()
def assert_same_features(model: Classifier, oracle: nn.Module, size: int = 32) -> None:
    for _ in range(20):
        model.train().features(pixels(8))  # else batch norm has nothing to do in evaluation
    oracle.load_state_dict(model.backbone.state_dict())
    expected = oracle.eval()(normalised(pixels(size=size)))
    actual = model.eval().features(pixels(size=size))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert actual.std(dim=0).mean() > 1e-3  # images are told apart


def test_a_resnets_features_are_torchvisions() -> None:
    oracle = torchvision.models.resnet18()
    oracle.fc = nn.Identity()
    assert_same_features(build(TorchvisionResNet(arch="resnet18")), oracle)


def blurred_by_hand(x_CHW: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The definition, in loops; zeros beyond the edges."""
    channels, height, width = x_CHW.shape
    out = np.zeros_like(x_CHW)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                for dy, wy in ((-1, 1), (0, 2), (1, 1)):
                    for dx, wx in ((-1, 1), (0, 2), (1, 1)):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            out[c, y, x] += wy * wx * x_CHW[c, y + dy, x + dx] / 16
    return out


@pytest.mark.parametrize("size", [(7, 6), (1, 1), (2, 5)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_blurred_convolution_is_a_blur_and_a_convolution(
    size: tuple[int, int], kernel: int
) -> None:
    g = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(16, 4, kernel, 2, kernel // 2, bias=False).double()
    x = torch.randn(2, 16, *size, generator=g, dtype=torch.float64)
    blurred = torch.from_numpy(np.stack([blurred_by_hand(image) for image in x.numpy()]))
    torch.testing.assert_close(BlurredConv2d(conv).double()(x), conv(blurred))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("small_images", [False, True])
def test_blurpool_blurs_before_every_stride_but_the_stems(arch: str, small_images: bool) -> None:
    plain = TorchvisionResNet(arch=arch, small_images=small_images)  # type: ignore[arg-type]
    nets = [build(plain), build(plain.model_copy(update={"blurpool": True}))]
    weights, same = (net.state_dict() for net in nets)
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    blurred = {n for n, m in nets[1].backbone.named_modules() if isinstance(m, BlurredConv2d)}
    # torchvision's ResNet halves images in the first block of its last three layers, and beside it
    conv = "conv1" if arch == "resnet18" else "conv2"
    expected = {f"layer{k}.0.{name}" for k in (2, 3, 4) for name in (conv, "downsample.0")}
    assert blurred == expected
    assert not any(isinstance(m, BlurredConv2d) for m in nets[0].modules())


def test_a_network_with_blurpool_is_torchvisions_with_blurs_in_between() -> None:
    oracle = torchvision.models.resnet18()
    oracle.fc = nn.Identity()

    def blur(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        images = [blurred_by_hand(image) for image in inputs[0].double().numpy()]
        return torch.from_numpy(np.stack(images)).float()

    for name, module in oracle.named_modules():
        if isinstance(module, nn.Conv2d) and 2 in module.stride and name != "conv1":
            module.register_forward_pre_hook(blur)
    assert_same_features(build(TorchvisionResNet(arch="resnet18", blurpool=True)), oracle)


def test_a_transformers_features_are_torchvisions_class_token() -> None:
    oracle = torchvision.models.VisionTransformer(32, 4, 2, 3, 48, 192)
    oracle.heads = nn.Identity()
    spec = SmallVisionTransformer(width=48, depth=2)
    model = build(spec)
    torch.nn.init.normal_(model.backbone.class_token)  # type: ignore[arg-type]
    assert_same_features(model, oracle)
    tokens: list[Tensor] = []
    model.backbone.encoder.register_forward_hook(lambda *a: tokens.append(a[2]))  # type: ignore[union-attr]
    assert torch.equal(model.features(pixels()), tokens[0][:, 0])


@pytest.mark.parametrize(
    "name", ["test_resnet.r160_in1k", "test_vit.r160_in1k", "test_efficientnet"]
)
def test_a_timm_networks_features_are_timms(name: str) -> None:
    options = {"img_size": 32} if "vit" in name else {}
    oracle = timm.create_model(name, num_classes=0, **options)
    assert_same_features(build(TimmNetwork(name=name)), oracle)


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vit_b_16"]
)
def test_torchvisions_weights_fit_by_name_and_shape(arch: str) -> None:
    spec = (
        VisionTransformer() if arch == "vit_b_16" else TorchvisionResNet(arch=arch)  # type: ignore[arg-type]
    )
    with torch.device("meta"):
        theirs = getattr(torchvision.models, arch)().state_dict()
        ours = build(spec, size=224).backbone.state_dict()
    shapes = {n: t.shape for n, t in theirs.items() if not n.startswith(("fc.", "heads."))}
    assert {n: t.shape for n, t in ours.items()} == shapes


@pytest.mark.parametrize("name", ["test_resnet", "tf_mobilenetv3_small_minimal_100"])
def test_all_batch_norm_of_timm_is_grouped(name: str) -> None:
    model = build(TimmNetwork(name=name))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, GroupedBatchNorm) and m.group_size == 4 for m in norms)
    x = pixels(8)
    model.train()
    torch.testing.assert_close(
        model.features(x), torch.cat([model.features(x[:4]), model.features(x[4:])])
    )
    theirs = [m for m in timm.create_model(name).modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.eps for m in norms] == [m.eps for m in theirs]


def test_a_batch_norm_that_cannot_be_grouped_is_refused_by_name() -> None:
    with pytest.raises(NetworkError, match="levit_128s normalises by BatchNorm1d"):
        build(TimmNetwork(name="levit_128s"), size=224)


def test_an_unknown_network_of_timm_is_answered_with_the_nearest() -> None:
    with pytest.raises(NetworkError, match=r"no network 'resnet18.a1_in1'; .*resnet18\.a1_in1k"):
        build(TimmNetwork(name="resnet18.a1_in1"))


def test_a_network_of_timm_says_which_images_it_does_not_take() -> None:
    with pytest.raises(
        NetworkError, match=r"test_vit does not take images of 24 pixels: .*divisible"
    ):
        build(TimmNetwork(name="test_vit"), size=24)
    with pytest.raises(NetworkError, match="inception_v3 does not take images of 32 pixels: "):
        build(TimmNetwork(name="inception_v3"))


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkError, match=r"pip install 'dp4tl_ray\[timm\]'"):
        build(TimmNetwork(name="resnet18"))


@pytest.mark.parametrize(
    ("spec", "embedding"),
    [
        (SmallResNet(), []),
        (SmallVisionTransformer(width=48, depth=1), ["conv_proj.weight", "conv_proj.bias"]),
        (TimmNetwork(name="test_vit"), ["patch_embed.proj.weight", "patch_embed.proj.bias"]),
        (TimmNetwork(name="test_resnet"), []),
    ],
    ids=lambda value: value.arch if isinstance(value, SmallResNet) else None,
)
def test_the_patch_embedding_is_found(spec: AnyNetwork, embedding: list[str]) -> None:
    model = build(spec)
    found = patch_embedding(model)
    named = dict(model.backbone.named_parameters())
    assert [name for name, p in named.items() if any(p is q for q in found)] == embedding
    assert len(blocks(model)) > 0  # what is sharded


def test_without_a_head_there_are_features_and_no_logits() -> None:
    model = build(SmallResNet(width=2), size=16)
    assert not any(name.startswith("head") for name in model.state_dict())
    assert model.num_classes == 0 and model.num_features == 8
    assert model(pixels(size=16)).shape == (4, 0)
    images = np.zeros((5, 16, 16, 3), np.uint8)
    logits, features = infer(model, images, np.arange(3), Worker())
    assert logits.shape == (3, 0) and features.shape == (3, 8)


def test_a_new_head_is_the_same_whatever_was_there() -> None:
    without, other = build(SmallResNet(width=2)), build(SmallResNet(width=2), num_classes=7)
    for model in (without, other):
        new_head(model, 3, seed=5)
        assert model.num_classes == 3
    assert torch.equal(without(pixels()), other(pixels()))


def test_a_head_changes_nothing_in_the_backbone() -> None:
    without = build(SmallResNet(width=2)).backbone.state_dict()
    other = build(SmallResNet(width=2), num_classes=7).backbone.state_dict()
    assert all(torch.equal(without[name], other[name]) for name in other)


def test_a_grey_transformer_embeds_patches_as_torchvision_does() -> None:
    conv = build(SmallVisionTransformer(), channels=1).backbone.conv_proj
    assert isinstance(conv, nn.Conv2d) and conv.in_channels == 1 and conv.bias is not None
    assert conv.weight.std().item() == pytest.approx((1 / 16) ** 0.5, rel=0.1)
    assert not conv.bias.any()


def test_what_does_not_fit_is_said_in_words() -> None:
    assert problem(VisionTransformer(), 32) == ""
    assert problem(VisionTransformer(), 40) == "patch_size 16 does not divide image_size 40"
    assert problem(SmallVisionTransformer(patch_size=8), 36).startswith("patch_size 8 does not")
    spec = SmallVisionTransformer(width=64)
    assert problem(spec, 32) == "num_heads 3 does not divide the width 64"
    assert problem(SmallResNet(), 17) == ""


def test_the_small_network_has_no_strided_1x1_convolution() -> None:
    # through which oneDNN goes backward with an overrun, see networks.EveryOther
    model = build_classifier(
        SmallResNet(width=4),
        num_classes=3,
        image_size=16,
        statistics=np.array([[0.5], [0.25]], np.float32),
        group_size=4,
        seed=0,
    )
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert {m.stride for m in convolutions if m.kernel_size == (1, 1)} == {(1, 1)}
