"""The losses of the lightly library as a second oracle, where it is installed."""

from importlib import import_module
from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.contrastive import info_nce, nt_xent
from dp4tl_ray.algorithms.key_queue import enqueue
from dp4tl_ray.algorithms.non_contrastive import negative_cosine, vicreg
from dp4tl_ray.specs.self_supervised import (
    BYOL_SECOND_VIEW,
    BYOL_VIEW,
    MOCO_V2_VIEW,
    SIMCLR_VIEW,
    VICREG_VIEW,
    SimSiam,
)

lightly = pytest.importorskip("lightly.loss")


def views(seed: int, batch: int = 16, dim: int = 32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(batch, dim, generator=g)
    own = torch.randn(2, batch, dim, generator=g)
    first, second = shared + 0.5 * own
    return first.requires_grad_(), second.requires_grad_()


def same(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Compare two losses, and their gradients with respect to the inputs."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    gradients = (torch.autograd.grad(loss, inputs) for loss in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_contrast_with_a_queue_over_many_batches() -> None:
    theirs = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(64, 32))
    queue, pointer = theirs.memory_bank.bank.clone(), torch.tensor(0)
    for seed in range(10):
        query, key = views(seed)
        ours = info_nce(query, key, queue, 0.2)
        same(ours, theirs(query, key), (query, key))
        enqueue(queue, pointer, F.normalize(key))
        assert torch.equal(queue, theirs.memory_bank.bank)
        assert int(pointer) == int(theirs.memory_bank.bank_ptr)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrast_within_the_batch(temperature: float) -> None:
    both = views(0)
    same(nt_xent(*both, temperature), lightly.NTXentLoss(temperature)(*both), both)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 2.0, 30.0)])
def test_vicreg(weights: tuple[float, float, float]) -> None:
    first, second = (0.8 * view for view in views(0, batch=24))
    same(
        vicreg(first, second, *weights),
        lightly.VICRegLoss(*weights)(first, second),
        (first, second),
    )


def test_negative_cosine() -> None:
    both = views(0)
    same(negative_cosine(*both), lightly.NegativeCosineSimilarity()(*both), both)


def test_default_views_are_those_of_lightly() -> None:
    byol = import_module("lightly.transforms.byol_transform")
    transforms = import_module("lightly.transforms")
    pairs = {
        transforms.MoCoV2Transform: MOCO_V2_VIEW,
        transforms.SimSiamTransform: SimSiam().augmentation,
        transforms.SimCLRTransform: SIMCLR_VIEW,
        transforms.VICRegTransform: VICREG_VIEW,
        byol.BYOLView1Transform: BYOL_VIEW,
        byol.BYOLView2Transform: BYOL_SECOND_VIEW,
    }
    for transform, view in pairs.items():
        defaults = {n: p.default for n, p in signature(transform.__init__).parameters.items()}
        strength = defaults["cj_strength"]
        colours = (view.brightness, view.contrast, view.saturation, view.hue)
        names = ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")
        assert colours == pytest.approx([strength * defaults[name] for name in names])
        solarize = defaults.get("solarization_prob", defaults.get("solarize_prob", 0.0))
        assert view.model_dump() == view.model_dump() | {
            "crop": defaults["min_scale"],
            "flip": defaults["hf_prob"] == 0.5,
            "jitter": defaults["cj_prob"],
            "grayscale": defaults["random_gray_scale"],
            "blur": defaults["gaussian_blur"],
            "blur_sigma": defaults["sigmas"],
            "solarize": solarize,
            "shift": 0,
        }
