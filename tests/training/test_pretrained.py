import argparse
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from dp4tl_ray.scoring.elsewhere import ScorerError, pretrained_fingerprint
from dp4tl_ray.specs.network import (
    AnyNetwork,
    SmallResNet,
    SmallVisionTransformer,
    TimmNetwork,
    TorchvisionResNet,
)
from dp4tl_ray.specs.pretraining import Pretrained
from dp4tl_ray.training.networks import Classifier, build_classifier
from dp4tl_ray.training.pretrained import Facts, PretrainedError, load_pretrained

State = dict[str, Tensor]
SOURCE = np.array([[0.5, 0.4, 0.3], [0.2, 0.3, 0.25]], np.float32)
DARK = SOURCE / np.float32(2)
SMALL = SmallResNet(width=2)
CLASSES = 5
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def load(
    weights: object,
    network: AnyNetwork = SMALL,
    size: int = 32,
    classes: int = CLASSES,
    source: npt.NDArray[np.float32] = SOURCE,
    **options: Any,
) -> tuple[Classifier, Facts]:
    spec = Pretrained(network=network, weights=str(weights), **options)
    model, facts = load_pretrained(
        spec,
        source_statistics=source,
        num_source_classes=classes,
        image_size=size,
        group_size=4,
    )
    return model.eval(), facts


def message(weights: object, **options: Any) -> str:
    with pytest.raises(PretrainedError) as caught:
        load(weights, **options)
    return str(caught.value)


def trained(network: AnyNetwork = SMALL, num_classes: int = CLASSES) -> Classifier:
    """A network whose every tensor differs from an untrained one's."""
    model = build_classifier(
        network, num_classes=num_classes, image_size=32, statistics=SOURCE, group_size=4, seed=7
    )
    for _ in range(5):
        model(pixels())
    return model.eval()


def pixels(channels: int = 3) -> Tensor:
    return torch.rand(4, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    return x.sub(torch.tensor(mean)[:, None, None]).div(torch.tensor(std)[:, None, None])


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def linear(outputs: int = CLASSES, inputs: int = 8) -> State:
    return {"weight": torch.randn(outputs, inputs), "bias": torch.randn(outputs)}


Wrapping = Callable[[State], Any]
WRAPPINGS: dict[str, Wrapping] = {
    "plain": lambda s: s,
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "ddp": lambda s: {"epoch": 3, "state_dict": prefixed(s, "module."), "optimizer": {"lr": 0.1}},
    "model": lambda s: {"model": s},
    "lightning": lambda s: {"state_dict": prefixed(s, "model.")},
    "backbone": lambda s: {"state_dict": prefixed(s, "backbone.")},
    "moco": lambda s: {
        "state_dict": {
            **prefixed({n: torch.zeros_like(t) for n, t in s.items()}, "module.encoder_k."),
            **prefixed(s, "module.encoder_q."),
            **prefixed(linear(), "module.encoder_q.fc."),
            "module.queue": torch.randn(8, 20),
        }
    },
    "moco v3": lambda s: {
        "state_dict": {
            **prefixed(s, "module.base_encoder."),
            **prefixed(linear(), "module.base_encoder.fc.0."),
            **prefixed(s, "module.momentum_encoder."),
        }
    },
    "simsiam": lambda s: {
        "state_dict": {
            **prefixed(s, "module.encoder."),
            **prefixed(linear(), "module.encoder.fc.0."),
            **prefixed(linear(), "module.predictor.0."),
        }
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_backbone_is_found_however_it_is_wrapped(wrapping: str, tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "weights.pth"
    torch.save(WRAPPINGS[wrapping](model.backbone.state_dict()), path)
    loaded, facts = load(path, pixels="source")
    assert torch.equal(loaded.features(pixels()), model.features(pixels()))
    assert loaded.num_classes == 0
    assert facts == {
        "weights": str(path),
        "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "not stated",
        "num_parameters": sum(p.numel() for p in model.backbone.parameters()),
    }


def test_a_network_of_ours_comes_back_whole(tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "network.safetensors"
    save_file(model.state_dict(), path)
    loaded, _ = load(path, outputs="source", source=DARK)
    assert torch.equal(loaded(pixels()), model(pixels()))  # by its own statistics
    shown, _ = load(path, pixels="source", source=DARK)
    assert torch.equal(shown.pixel_mean.ravel(), torch.from_numpy(DARK[0]))


@pytest.mark.parametrize("head", ["fc", "heads.head", "head", "classifier"])
def test_a_linear_classifier_is_the_head(head: str, tmp_path: Path) -> None:
    path, layer = tmp_path / "weights.safetensors", linear()
    state = trained().backbone.state_dict()
    save_file({**state, **prefixed(layer, f"{head}.")}, path)
    loaded, _ = load(path, outputs="source")
    assert loaded.head is not None
    assert torch.equal(loaded.head.weight, layer["weight"])
    assert torch.equal(loaded.head.bias, layer["bias"])
    dropped, _ = load(path)
    assert dropped.head is None


def test_as_many_outputs_as_the_source_has_classes_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_file(trained().state_dict(), path)
    said = message(path, outputs="source", classes=92)
    assert "5 outputs, the source 92 classes; outputs: dropped" in said


@pytest.mark.parametrize("wrapping", ["plain", "moco", "moco v3"])
def test_a_projection_is_no_classifier(wrapping: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WRAPPINGS[wrapping](trained().backbone.state_dict()), path)
    assert "has no linear classifier behind its 8 features" in message(path, outputs="source")


def test_the_first_misfit_is_named_with_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(trained().backbone.state_dict(), path)
    said = message(path, network=SmallResNet(width=4))
    assert said.startswith(f"{path} does not fit resnet9(width=4): 0.weight is (2, 3, 3, 3), the ")
    assert "the network has (4, 3, 3, 3); 0 of 45 tensors fit" in said


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.safetensors", trained().backbone.state_dict()
    del state["4.conv2.weight"]
    save_file(state, path)
    said = message(path)
    assert "4.conv2.weight is missing, the network has (4, 4, 3, 3); 44 of 45 tensors fit" in said


def test_weights_of_a_deeper_network_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    shallow, deep = (SmallVisionTransformer(width=12, depth=depth) for depth in (1, 2))
    save_file(trained(deep).backbone.state_dict(), path)
    assert "but also encoder.layers.encoder_layer_1." in message(path, network=shallow)
    assert "encoder_layer_2" in message(path, network=SmallVisionTransformer(width=12, depth=3))


def test_positions_of_another_image_size_are_explained(tmp_path: Path) -> None:
    path, network = tmp_path / "weights.safetensors", SmallVisionTransformer(width=12, depth=1)
    save_file(trained(network).backbone.state_dict(), path)
    said = message(path, network=network, size=16)
    assert "pos_embedding is (1, 65, 12), the network has (1, 17, 12), which depends on the" in said


def test_grey_images_are_shown_to_all_channels(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(trained().backbone.state_dict(), path)
    model, _ = load(path, source=SOURCE[:, :1])
    grey = pixels(channels=1)
    x = normalised(grey.expand(-1, 3, -1, -1), IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(model.features(grey), model.backbone(x))


def test_colours_cannot_be_shown_to_a_grey_network(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    grey = build_classifier(
        SMALL, num_classes=0, image_size=32, statistics=SOURCE[:, :1], group_size=4, seed=0
    )
    save_file(grey.state_dict(), path)
    assert "takes images of 1 channel(s), the source has 3" in message(path)


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_what_holds_more_than_tensors_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, path = trained(), tmp_path / "other.pth"
    state = model.backbone.state_dict()
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, path)
    said = message(path)
    assert "(argparse.Namespace), and nothing is unpickled here" in said
    exec("\n".join(line.strip() for line in said.splitlines()[1:]))
    loaded, _ = load("other.safetensors", pixels="source")
    assert torch.equal(loaded.features(pixels()), model.features(pixels()))


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_unpickled(zipped: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    torch.save({"a": Trap(trace)}, path, _use_new_zipfile_serialization=zipped)
    assert "nothing is unpickled" in message(path)
    assert not trace.exists()


def test_what_is_no_file_of_weights_is_said(tmp_path: Path) -> None:
    assert "cannot be read: [Errno 2]" in message(tmp_path / "none.safetensors")
    assert "allowed are torchvision:NAME, timm, and files" in message("imagenet")
    (tmp_path / "empty.pth").touch()
    assert "cannot be read: empty" in message(tmp_path / "empty.pth")
    (tmp_path / "text.safetensors").write_text("no weights, for certain")
    assert "cannot be read: " in message(tmp_path / "text.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "0 of 45 tensors fit" in message(tmp_path / "list.pt")


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"content")
    spec = Pretrained(network=SMALL, weights=str(path))
    assert pretrained_fingerprint(spec) == hashlib.sha256(b"content").hexdigest()
    path.unlink()
    with pytest.raises(ScorerError, match=r"weights .*weights\.pth: No such file"):
        pretrained_fingerprint(spec)
    for name in ("timm", "torchvision:IMAGENET1K_V1"):
        assert pretrained_fingerprint(Pretrained(network=SMALL, weights=name)) == ""


RESNET18 = TorchvisionResNet(arch="resnet18")


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps what it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_torchvisions_weights_give_torchvisions_outputs(downloads: Path) -> None:
    theirs, weights = torchvision.models.resnet18(), torchvision.models.ResNet18_Weights
    for _ in range(3):
        theirs(pixels())
    torch.save(theirs.state_dict(), downloads / Path(weights.IMAGENET1K_V1.url).name)
    ours, facts = load("torchvision:IMAGENET1K_V1", RESNET18, classes=1000, outputs="source")
    expected = theirs.eval()(normalised(pixels(), IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(ours(pixels()), expected, rtol=1e-5, atol=1e-5)
    theirs.fc = nn.Identity()
    expected = theirs(normalised(pixels(), IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(ours.features(pixels()), expected, rtol=1e-5, atol=1e-5)
    assert facts == {
        "weights": "torchvision:resnet18.IMAGENET1K_V1",
        "weights_url": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        "licence": "not stated; see "
        "https://github.com/pytorch/vision/tree/main/references/classification#resnet",
        "num_parameters": 11_689_512,
    }


def test_weights_that_torchvision_does_not_have_are_answered_with_those_it_has() -> None:
    said = message("torchvision:IMAGENET1K_V3", network=TorchvisionResNet(arch="resnet50"))
    assert "no weights 'IMAGENET1K_V3' for resnet50; did you mean" in said
    assert said.endswith("allowed: IMAGENET1K_V1, IMAGENET1K_V2")
    assert "resnet9 is none of them" in message("torchvision:IMAGENET1K_V1")


def test_a_failed_download_names_its_address(
    downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    said = message("torchvision:IMAGENET1K_V1", network=RESNET18)
    assert "cannot be loaded from https://download.pytorch.org/models/resnet18-f37072fd" in said


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where huggingface_hub keeps what it has downloaded; there is no other network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def in_hub(hub: Path, name: str, state: State, file: str) -> None:
    """Leave a file as a download of timm's weights would."""
    repository = hub / f"models--timm--{name}"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    if file.endswith(".safetensors"):
        save_file(state, snapshot / file)
    else:
        torch.save(state, snapshot / file)


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_vit.r160_in1k"])
def test_timms_weights_give_timms_outputs(name: str, hub: Path) -> None:
    theirs, size = timm.create_model(name), timm.get_pretrained_cfg(name).input_size[1]
    in_hub(hub, name, theirs.state_dict(), "model.safetensors")
    x = torch.rand(2, 3, size, size)
    network = TimmNetwork(name=name)
    ours, facts = load("timm", network, size=size, classes=1000, outputs="source")
    expected = theirs.eval()(normalised(x, [0.5] * 3, [0.5] * 3))
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
    theirs.reset_classifier(0)
    expected = theirs(normalised(x, [0.5] * 3, [0.5] * 3))
    torch.testing.assert_close(ours.features(x), expected, rtol=1e-5, atol=1e-5)
    assert facts == {
        "weights": f"timm:{name}",
        "weights_url": f"https://huggingface.co/timm/{name}",
        "licence": "apache-2.0",
        "num_parameters": sum(p.numel() for p in ours.parameters()),
    }


def test_timms_positions_follow_the_image_size(hub: Path) -> None:
    name = "test_vit.r160_in1k"
    in_hub(hub, name, timm.create_model(name).state_dict(), "model.safetensors")
    model, _ = load("timm", TimmNetwork(name=name), size=32)
    assert model.features(pixels()).std(dim=0).mean() > 0.01


def test_timm_unpickles_nothing_either(hub: Path, tmp_path: Path) -> None:
    name, trace = "test_resnet.r160_in1k", tmp_path / "trace"
    in_hub(hub, name, {"a": Trap(trace)}, "pytorch_model.bin")  # type: ignore[dict-item]
    said = message("timm", network=TimmNetwork(name=name))
    assert "timm's weights of test_resnet.r160_in1k cannot be loaded: " in said
    assert "weights_only" in said
    assert not trace.exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_weights_that_timm_cannot_get_are_named(hub: Path) -> None:
    said = message("timm", network=TimmNetwork(name="test_resnet.r160_in1k"))
    assert "timm's weights of test_resnet.r160_in1k cannot be loaded" in said
    assert "weights timm are those of a network" in message("timm")
