"""Weights from elsewhere: torchvision's, timm's, or a file's; only plain tensors are read.

Checkpoints wrap the same tensors in many ways. What is common is unwrapped: a dictionary around
them, prefixes of DDP and torch.compile, and the names under which MoCo, SimSiam and this package
keep a backbone. The network asked for must then be there whole, and nothing more of it.
"""

import contextlib
import hashlib
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dp4tl_ray.specs.base import did_you_mean, label
from dp4tl_ray.specs.network import TimmNetwork, TorchvisionResNet, VisionTransformer
from dp4tl_ray.specs.pretraining import Pretrained
from dp4tl_ray.training.networks import Classifier, NetworkError, build_classifier, create_timm

Facts = dict[str, float | int | str | bool | None]
Statistics = npt.NDArray[np.float32]

IMAGENET: Statistics = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
"""Mean and deviation of ImageNet's pixels."""
TORCH_FILES = (".pt", ".pth", ".pth.tar")
WRAPPERS = ("state_dict", "model")
"""Keys of a checkpoint under which its tensors may be."""
OUTER = ("_orig_mod.", "module.", "model.")
"""Prefixes that all names of a checkpoint may have."""
INNER = {
    "": True,
    "backbone.": True,
    "encoder_q.": False,
    "base_encoder.": False,
    "encoder.": False,
}
"""Prefixes of a backbone's names, and whether a linear layer behind it is a classifier; that of
MoCo (v2, v3) and SimSiam is a projection."""
HEADS = ("fc", "heads.head", "head", "classifier")
"""Names of a linear classifier."""


class PretrainedError(NetworkError):
    """Weights from elsewhere cannot be used; the message says which and why."""


@dataclass(frozen=True)
class _Found:
    """Weights as they were found."""

    whence: str
    tensors: dict[str, Tensor]
    facts: Facts
    statistics: Statistics | None = None
    """Their own mean and deviation of the pixels, if they say so."""
    heads: tuple[str, ...] = HEADS


def load_pretrained(
    spec: Pretrained,
    *,
    source_statistics: Statistics,
    num_source_classes: int,
    image_size: int,
    group_size: int,
) -> tuple[Classifier, Facts]:
    """Build a network with weights from elsewhere; where they were trained on colours, it shows
    grey images alike to each channel.

    Args:
        spec: Which weights for which architecture.
        source_statistics: Mean and deviation of the source's pixels in [0, 1], (2, channels).
        num_source_classes: Outputs that the weights must have where they are the source's.
        image_size: Height and width of the images.
        group_size: Examples per batch-norm group.

    Returns:
        The network, and what is known of its weights: `weights` (where from), `weights_sha256` or
        `weights_url`, `licence`, `num_parameters`.

    Raises:
        PretrainedError: The weights are not there, hold more than tensors, or do not fit.
        NetworkError: The network itself cannot be built.
    """
    found = _find(spec, source_statistics.shape[1], image_size)
    own = found.statistics if found.statistics is not None else IMAGENET
    statistics = source_statistics if spec.pixels == "source" else own
    takes, given = statistics.shape[1], source_statistics.shape[1]
    if given not in (1, takes):
        raise PretrainedError(
            f"{found.whence} takes images of {takes} channel(s), the source has {given}"
        )

    model = build_classifier(
        spec.network,
        num_classes=num_source_classes if spec.outputs == "source" else 0,
        image_size=image_size,
        statistics=statistics,
        group_size=group_size,
        seed=0,
    )
    prefix = _fill_backbone(model, found, label(spec.network))
    if spec.outputs == "source":
        _fill_head(model, found, prefix)
    return model, {**found.facts, "num_parameters": sum(p.numel() for p in model.parameters())}


def _find(spec: Pretrained, channels: int, image_size: int) -> _Found:
    """Read the weights from where the spec says that they are."""
    kind, _, name = spec.weights.partition(":")
    if kind == "torchvision":
        return _from_torchvision(spec, name)
    if spec.weights == "timm":
        return _from_timm(spec, channels if spec.pixels == "source" else 3, image_size)
    return _from_file(Path(spec.weights))


def _from_torchvision(spec: Pretrained, name: str) -> _Found:
    import torchvision

    network = spec.network
    if not isinstance(network, TorchvisionResNet | VisionTransformer):
        raise PretrainedError(
            f"weights {spec.weights} are for torchvision's networks, such as resnet18 and "
            f"vit_b_16; {network.arch} is none of them"
        )
    known = {
        weights.name: weights for weights in torchvision.models.get_model_weights(network.arch)
    }
    if name not in known:
        raise PretrainedError(
            f"torchvision has no weights {name!r} for {network.arch}; {did_you_mean(name, known)}"
        )
    weights = known[name]
    try:
        tensors = weights.get_state_dict(
            map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise PretrainedError(
            f"weights {spec.weights} of {network.arch} cannot be loaded from {weights.url}: {error}"
        ) from error
    pixels = weights.transforms()
    licence = weights.meta.get("license") or f"not stated; see {weights.meta['recipe']}"
    whence = f"torchvision:{network.arch}.{name}"
    facts: Facts = {"weights": whence, "weights_url": weights.url, "licence": licence}
    return _Found(whence, tensors, facts, np.array([pixels.mean, pixels.std], np.float32))


def _from_timm(spec: Pretrained, channels: int, image_size: int) -> _Found:
    if not isinstance(spec.network, TimmNetwork):
        raise PretrainedError(
            f"weights timm are those of a network {{arch: timm, name: ...}}, not of "
            f"{spec.network.arch}"
        )
    name = spec.network.name
    try:
        with _only_tensors():
            net = create_timm(name, channels=channels, image_size=image_size, pretrained=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise PretrainedError(f"timm's weights of {name} cannot be loaded: {error}") from error
    known: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    hub = known.get("hf_hub_id")
    url = f"https://huggingface.co/{hub}" if hub else known.get("url", "")
    classifier = known.get("classifier")
    whence = f"timm:{known['architecture']}.{known['tag']}"
    return _Found(
        whence,
        net.state_dict(),
        {
            "weights": whence,
            "weights_url": url,
            "licence": known.get("license") or f"not stated; see {url}",
        },
        np.array([known["mean"], known["std"]], np.float32),
        (classifier,) if isinstance(classifier, str) else (),
    )


@contextlib.contextmanager
def _only_tensors() -> Iterator[None]:
    """Let torch.load unpickle nothing, whoever calls it; timm takes safetensors where there are."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _from_file(path: Path) -> _Found:
    if not path.name.endswith((".safetensors", *TORCH_FILES)):
        raise PretrainedError(
            f"weights {str(path)!r} are none: allowed are torchvision:NAME, timm, and files "
            f".safetensors, {', '.join(TORCH_FILES)}"
        )
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = _unwrapped(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise PretrainedError(_how_to_convert(path)) from error
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise PretrainedError(f"weights {path} cannot be read: {str(error) or 'empty'}") from error
    for prefix in OUTER:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    statistics = None
    if {"pixel_mean", "pixel_std"} <= set(tensors):
        statistics = np.stack([tensors.pop(f"pixel_{s}").numpy().ravel() for s in ("mean", "std")])
    facts: Facts = {"weights": str(path), "weights_sha256": sha256, "licence": "not stated"}
    return _Found(str(path), tensors, facts, statistics)


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """Return the tensors by name that a checkpoint is made around."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            return {name: value for name, value in content.items() if isinstance(value, Tensor)}
        content = inner[0]
    return {}


def _how_to_convert(path: Path) -> str:
    globals_: list[str] = []
    with contextlib.suppress(ValueError):  # files of torch before 1.6 cannot be asked
        globals_ = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    what = f" ({', '.join(sorted(globals_))})" if globals_ else ""
    stem = path.name.partition(".")[0]
    return f"""\
weights {path} hold more than tensors{what}, and nothing is unpickled here, because that may run \
anything. If you trust the file, take its tensors out once:
    import torch; from safetensors.torch import save_file
    state = torch.load({str(path)!r}, weights_only=False, map_location="cpu")
    state = state.state_dict() if isinstance(state, torch.nn.Module) else state["state_dict"]
    save_file({{n: t.clone().contiguous() for n, t in state.items()}}, "{stem}.safetensors")"""


def _fill_backbone(model: Classifier, found: _Found, network: str) -> str:
    """Copy the weights of the backbone; return the prefix under which they were."""
    own = model.backbone.state_dict()
    # how many batches were seen is nothing that a grouped batch norm counts
    wanted = {name: t for name, t in own.items() if not name.endswith("num_batches_tracked")}
    prefix = max(INNER, key=lambda prefix: sum(prefix + name in found.tensors for name in wanted))
    there = {name: found.tensors.get(prefix + name) for name in wanted}
    fits = {n: t for n, t in there.items() if t is not None and t.shape == wanted[n].shape}
    for name, tensor in there.items():
        if name not in fits:
            has = "is missing" if tensor is None else f"is {tuple(tensor.shape)}"
            other_size = ", which depends on the image size" if "pos_embed" in name else ""
            raise PretrainedError(
                f"{found.whence} does not fit {network}: {prefix}{name} {has}, the network has "
                f"{tuple(wanted[name].shape)}{other_size}; {len(fits)} of {len(wanted)} tensors fit"
            )
    parts = {name.partition(".")[0] for name in own} - {h.partition(".")[0] for h in HEADS}
    for name in found.tensors:
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and rest.partition(".")[0] in parts and rest not in own:
            raise PretrainedError(
                f"{found.whence} does not fit {network}: it has all of its {len(wanted)} tensors, "
                f"but also {name} {tuple(found.tensors[name].shape)}"
            )
    model.backbone.load_state_dict({**own, **fits})
    return prefix


def _fill_head(model: Classifier, found: _Found, prefix: str) -> None:
    """Copy the weights of the linear classifier, which must have one output per class."""
    assert model.head is not None
    places = sorted({prefix, ""}, reverse=True) if INNER[prefix] else []
    for name in (place + head for place in places for head in found.heads):
        weight = found.tensors.get(f"{name}.weight")
        if weight is None or weight.ndim != 2 or weight.shape[1] != model.num_features:
            continue
        if len(weight) != model.num_classes:
            raise PretrainedError(
                f"{found.whence} has {len(weight)} outputs, the source {model.num_classes} "
                "classes; outputs: dropped keeps its features only"
            )
        bias = found.tensors.get(f"{name}.bias", torch.zeros(len(weight)))
        model.head.load_state_dict({"weight": weight, "bias": bias})
        return
    raise PretrainedError(
        f"{found.whence} has no linear classifier behind its {model.num_features} features; "
        "outputs: dropped keeps the features only"
    )
