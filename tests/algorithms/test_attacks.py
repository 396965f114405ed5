"""Attacks against torchattacks, foolbox, closed forms, and what must hold of every one of them."""

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp4tl_ray.algorithms.attacks import (
    ball_noise,
    fgsm_step,
    overfitting_alarm,
    pgd,
    pgd_classes,
    project,
)

EPS = 8 / 255
Norm = Literal["linf", "l2"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 9, 4),
    )
    return net.eval()


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(16, 3, 12, 12, generator=generator)
    # some at the borders of the box, where projecting onto it counts
    pixels[:4] = pixels[:4].round()
    return pixels, torch.randint(4, (16,), generator=generator)


def gradient_of(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def gradient(pixels: Tensor) -> Tensor:
        leaf = pixels.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), [leaf])[0]

    return gradient


def cross_entropy(network: nn.Module, labels: Tensor) -> Callable[[Tensor], Tensor]:
    # the mean, as the oracles take: a factor may change the last bit of a normalised gradient
    return gradient_of(lambda x: F.cross_entropy(network(x), labels))


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_linf_pgd_is_bit_equal_to_torchattacks(
    network: nn.Module, images: tuple[Tensor, Tensor], steps: int
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    pixels, labels = images
    attack = torchattacks.PGD(network, eps=EPS, alpha=2 / 255, steps=steps, random_start=False)
    own = pgd(
        pixels, cross_entropy(network, labels), norm="linf", eps=EPS, steps=steps, step_size=2 / 255
    )
    assert torch.equal(own, attack(pixels, labels))


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_l2_pgd_is_equal_to_torchattacks(
    network: nn.Module, images: tuple[Tensor, Tensor], steps: int
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    pixels, labels = images
    attack = torchattacks.PGDL2(network, eps=1.0, alpha=0.2, steps=steps, random_start=False)
    own = pgd(
        pixels, cross_entropy(network, labels), norm="l2", eps=1.0, steps=steps, step_size=0.2
    )
    torch.testing.assert_close(own, attack(pixels, labels), rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_that_of_foolbox(
    network: nn.Module, images: tuple[Tensor, Tensor], norm: Norm
) -> None:
    foolbox = pytest.importorskip("foolbox")
    pixels, labels = images
    eps, size, steps = (EPS, 2 / 255, 20) if norm == "linf" else (1.0, 0.1, 10)
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    attack = kind(abs_stepsize=size, steps=steps, random_start=False)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, clipped, _ = attack(model, pixels, labels, epsilons=eps)
    own = pgd(
        pixels, cross_entropy(network, labels), norm=norm, eps=eps, steps=steps, step_size=size
    )
    torch.testing.assert_close(own, clipped, rtol=0, atol=1e-6 if norm == "linf" else 1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_image_is_fooled_by_the_first_point_that_is_taken_for_another_class(
    network: nn.Module, images: tuple[Tensor, Tensor], norm: Norm
) -> None:
    pixels = images[0]
    labels = network(pixels).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 4  # wrong before anything is done
    eps, size = (EPS, 2 / 255) if norm == "linf" else (0.7, 0.1)
    noise = ball_noise(pixels.shape, norm, eps, torch.Generator().manual_seed(3))
    found = pgd_classes(
        pixels, labels, network, norm=norm, eps=eps, steps=6, step_size=size, noise=noise
    )
    assert (found != labels).any() and (found == labels).any()
    for n in range(len(pixels)):  # one image at a time, all points
        one, label = pixels[n : n + 1], labels[n : n + 1]
        climb = cross_entropy(network, label)
        expected = label
        for steps in range(7):
            point = pgd(
                one, climb, norm=norm, eps=eps, steps=steps, step_size=size, noise=noise[n : n + 1]
            )
            if expected == label:
                expected = network(point).argmax(dim=1)
        assert found[n] == expected


def test_a_gradient_that_is_not_finite_is_an_error(images: tuple[Tensor, Tensor]) -> None:
    pixels = images[0]

    def broken(x: Tensor) -> Tensor:
        return torch.cat([1 + x.flatten(1)[:, :1] * 0, (x.flatten(1)[:, :1] * 0).sqrt()], dim=1)

    with pytest.raises(ValueError, match="not finite"):
        pgd_classes(
            pixels, torch.zeros(16).long(), broken, norm="linf", eps=EPS, steps=1, step_size=EPS
        )


def test_fgsm_rs_is_bit_equal_to_torchattacks(
    network: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    pixels, labels = images
    torch.manual_seed(5)
    theirs = torchattacks.FFGSM(network, eps=EPS, alpha=1.25 * EPS)(pixels, labels)
    torch.manual_seed(5)
    noise = torch.randn_like(pixels).uniform_(-EPS, EPS)
    own = pgd(
        pixels,
        cross_entropy(network, labels),
        norm="linf",
        eps=EPS,
        steps=1,
        step_size=1.25 * EPS,
        noise=noise,
    )
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-7)


def test_the_attack_of_trades_is_that_of_torchattacks(
    network: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    pixels, labels = images
    torch.manual_seed(7)
    theirs = torchattacks.TPGD(network, eps=EPS, alpha=2 / 255, steps=5)(pixels, labels)
    torch.manual_seed(7)
    noise = 0.001 * torch.randn_like(pixels)
    natural = network(pixels).detach()

    def divergence(x: Tensor) -> Tensor:
        wanted = natural.softmax(dim=1)
        return F.kl_div(network(x).log_softmax(dim=1), wanted, reduction="sum")

    own = pgd(
        pixels,
        gradient_of(divergence),
        norm="linf",
        eps=EPS,
        steps=5,
        step_size=2 / 255,
        noise=noise,
    )
    # they do not bring the start into the box; the first projection does
    torch.testing.assert_close(own, theirs, rtol=0, atol=2 / 255 + 1e-6)
    agreement = (own - theirs).abs().lt(1e-6).double().mean()
    assert agreement > 0.95


def test_a_linear_model_is_fooled_as_far_as_it_can_be() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3 * 4 * 4, generator=generator)
    pixels = 0.25 + 0.5 * torch.rand(9, 3, 4, 4, generator=generator)  # the box is far
    labels = torch.arange(9) % 2
    gradient = gradient_of(
        lambda x: F.cross_entropy(x.flatten(1) @ weight.T, labels, reduction="sum")
    )
    towards = (weight[1 - labels] - weight[labels]).view_as(pixels)
    linf = pgd(pixels, gradient, norm="linf", eps=0.1, steps=5, step_size=0.05)
    torch.testing.assert_close(linf, pixels + 0.1 * towards.sign())
    l2 = pgd(pixels, gradient, norm="l2", eps=0.5, steps=5, step_size=0.2)
    unit = towards / towards.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(l2, pixels + 0.5 * unit)
    single = fgsm_step(pixels, gradient, eps=0.1, noise=torch.full_like(pixels, 0.05))
    torch.testing.assert_close(single, pixels + 0.05 + 0.1 * towards.sign())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_neither_ball_nor_box_is_left(
    network: nn.Module, images: tuple[Tensor, Tensor], norm: Norm, memory_format: Any
) -> None:
    pixels, labels = images[0].to(memory_format=memory_format), images[1]
    eps = EPS if norm == "linf" else 0.7
    noise = ball_noise(pixels.shape, norm, eps, torch.Generator().manual_seed(3))
    climb = cross_entropy(network, labels)
    found = pgd(pixels, climb, norm=norm, eps=eps, steps=7, step_size=eps, noise=noise)
    delta = (found - pixels).flatten(1)
    lengths = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    assert lengths.max() <= eps * (1 + 1e-5)
    assert lengths.max() >= 0.9 * eps, "the attack hardly moves"
    assert found.min() >= 0 and found.max() <= 1
    loss = F.cross_entropy(network(found), labels)
    assert loss > F.cross_entropy(network(pixels), labels)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_step_or_no_radius_is_the_image_itself(
    network: nn.Module, images: tuple[Tensor, Tensor], norm: Norm
) -> None:
    pixels, labels = images
    climb = cross_entropy(network, labels)
    assert torch.equal(pgd(pixels, climb, norm=norm, eps=0.1, steps=0, step_size=0.1), pixels)
    noise = torch.ones_like(pixels)
    none = pgd(pixels, climb, norm=norm, eps=0.0, steps=3, step_size=0.1, noise=noise)
    assert torch.equal(none, pixels)


def test_noise_fills_its_ball() -> None:
    shape = torch.Size([4000, 1, 2, 2])
    linf = ball_noise(shape, "linf", 0.3, torch.Generator().manual_seed(0))
    assert linf.abs().max() <= 0.3 and abs(float(linf.std()) - 0.3 / 3**0.5) < 0.003
    l2 = ball_noise(shape, "l2", 0.3, torch.Generator().manual_seed(0)).flatten(1).norm(dim=1)
    assert l2.max() <= 0.3 and abs(float(l2.mean()) - 0.15) < 0.005


def test_what_the_released_code_reaches(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    # a loop over what it does to normalised images, from its description
    pixels, labels = images
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    noise = torch.empty_like(pixels).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(2))
    normalised = (pixels - mean) / std + noise
    for _ in range(3):
        raw = ((normalised * std + mean) - pixels).clamp(-EPS, EPS) + pixels
        normalised = (raw.clamp(0, 1) - mean) / std
        leaf = normalised.detach().requires_grad_()
        loss = F.cross_entropy(network(leaf * std + mean), labels)
        [gradient] = torch.autograd.grad(loss, [leaf])
        normalised = normalised + 2 * EPS / 3 * gradient.sign()
    raw = ((normalised * std + mean) - pixels).clamp(-EPS, EPS) + pixels
    expected = raw.clamp(0, 1)
    own = pgd(
        pixels,
        cross_entropy(network, labels),
        norm="linf",
        eps=EPS,
        steps=3,
        step_size=2 * EPS / 3,
        noise=noise,
        scale=std,
    )
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    reach = (own - pixels).abs().amax(dim=(0, 2, 3))
    assert (reach <= 3 * std.view(3) * EPS + 1e-6).all()
    assert float(reach.max()) <= 0.6871 * EPS
    assert float(reach.max()) >= 0.6 * EPS


def test_projecting_twice_changes_nothing(images: tuple[Tensor, Tensor]) -> None:
    pixels = images[0]
    far = pixels + torch.randn(pixels.shape, generator=torch.Generator().manual_seed(4))
    for norm in ("linf", "l2"):
        once = project(far, pixels, norm, 0.3)
        torch.testing.assert_close(project(once, pixels, norm, 0.3), once)


def test_the_alarm_sounds_beyond_a_fall_of_a_fifth() -> None:
    assert overfitting_alarm(0.2) == ""
    assert "0.35" in overfitting_alarm(0.35)


def test_an_attack_leaves_the_network_alone(
    network: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    network = copy.deepcopy(network)
    network.zero_grad(set_to_none=True)
    before = copy.deepcopy(network.state_dict())
    pixels, labels = images
    pgd(pixels, cross_entropy(network, labels), norm="linf", eps=EPS, steps=2, step_size=EPS)
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
