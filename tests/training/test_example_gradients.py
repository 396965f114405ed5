from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from dp4tl_ray.specs.network import SmallResNet
from dp4tl_ray.training import example_gradients
from dp4tl_ray.training.example_gradients import gradient_norms
from dp4tl_ray.training.examples import to_pixels
from dp4tl_ray.training.networks import Classifier, build_classifier
from dp4tl_ray.training.worker import Worker
from tests.conftest import draw_class


def network() -> Classifier:
    """A network whose running statistics are not the initial ones."""
    model = build_classifier(
        SmallResNet(width=4),
        num_classes=3,
        image_size=16,
        statistics=np.array([[0.5], [0.25]], np.float32),
        group_size=4,
        seed=0,
    )
    model.train()
    model(torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    return model


def transformer() -> Classifier:
    """A vision transformer with a single small layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = torchvision.models.VisionTransformer(
            image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
        )
        backbone.conv_proj = torch.nn.Conv2d(1, 8, 8, 8)
        backbone.heads = torch.nn.Identity()
        model = Classifier(backbone, num_features=8, num_classes=3)
    model.register_buffer("pixel_mean", torch.full((1, 1, 1, 1), 0.5))
    model.register_buffer("pixel_std", torch.full((1, 1, 1, 1), 0.25))
    return model


IMAGES = np.stack([draw_class(i % 3, np.random.default_rng(i)) for i in range(14)])[..., None]
ROWS = np.array([12, 3, 4, 0, 7, 9, 13])
LABELS = ROWS % 3


@pytest.mark.parametrize("build", [network, transformer])
def test_gradient_norms_match_a_loop_of_autograd(build: Callable[[], Classifier]) -> None:
    model = build().eval()
    norms = []
    for row, label in zip(ROWS, LABELS, strict=True):
        logits = model(to_pixels(IMAGES[[row]], torch.device("cpu")))
        loss = F.cross_entropy(logits, torch.tensor([label]))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
    model.train()
    scores = gradient_norms(model, IMAGES, ROWS, LABELS, Worker())
    np.testing.assert_allclose(scores, norms, rtol=1e-5)


@pytest.mark.parametrize("examples_per_pass", [1, 3])
def test_gradient_norms_do_not_depend_on_the_batch(
    examples_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    whole = gradient_norms(model, IMAGES, ROWS, LABELS, Worker())
    size = 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(example_gradients, "GRADIENT_BYTES", examples_per_pass * size)
    scores = gradient_norms(model, IMAGES, ROWS, LABELS, Worker())
    np.testing.assert_allclose(scores, whole, rtol=1e-5)
    order = np.array([2, 0, 1, 6, 5, 4, 3])
    permuted = gradient_norms(model, IMAGES, ROWS[order], LABELS[order], Worker())
    np.testing.assert_allclose(permuted, whole[order], rtol=1e-5)


def test_the_network_is_left_as_it_was() -> None:
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    gradient_norms(model, IMAGES, ROWS, LABELS, Worker())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_wrong_label_has_the_larger_gradient() -> None:
    model = network()
    assert model.head is not None
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    right = gradient_norms(model, IMAGES, ROWS, np.zeros(7, np.int64), Worker())
    wrong = gradient_norms(model, IMAGES, ROWS, np.ones(7, np.int64), Worker())
    assert (wrong > right).all()


def test_a_label_per_row_is_asked_for() -> None:
    with pytest.raises(ValueError, match="6 labels, but 7 rows"):
        gradient_norms(network(), IMAGES, ROWS, LABELS[:-1], Worker())
