"""Attacks on images: where in a ball around an image a loss is large.

Pixels are in [0, 1]; all lengths are in their units. A `Gradient` returns, for pixels (N, C, H, W),
the gradient of a sum over examples; only its direction counts.
"""

from collections.abc import Callable
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]
Norm = Literal["linf", "l2"]
MAX_DROP = 0.2
TINY = 1e-10
"""Added to norms that are divided by: a gradient of zero moves nothing."""


def _lengths(x: Tensor) -> Tensor:
    """Return the L2 norm of each example, shaped to multiply it."""
    lengths: Tensor = torch.linalg.vector_norm(x.float().flatten(1), dim=1)
    return lengths.view(-1, *[1] * (x.ndim - 1))


def ball_noise(shape: torch.Size, norm: Norm, eps: float, generator: torch.Generator) -> Tensor:
    """Draw a random start: linf uniform in the ball; l2 a random direction of uniform length."""
    device = generator.device
    match norm:
        case "linf":
            return torch.empty(shape, device=device).uniform_(-eps, eps, generator=generator)
        case "l2":
            direction = torch.empty(shape, device=device).normal_(generator=generator)
            length = torch.empty(shape[0], device=device).uniform_(0, eps, generator=generator)
            length = length.view(-1, *[1] * (len(shape) - 1))
            return direction / (_lengths(direction) + TINY) * length
        case _:
            assert_never(norm)


def project(perturbed: Tensor, pixels: Tensor, norm: Norm, eps: float) -> Tensor:
    """Bring perturbed images back into the ball around the images, and into [0, 1].

    The second never undoes the first, because the images are in [0, 1] themselves.
    """
    delta = perturbed - pixels
    match norm:
        case "linf":
            delta = delta.clamp(-eps, eps)
        case "l2":
            delta = delta * (eps / (_lengths(delta) + TINY)).clamp(max=1.0)
        case _:
            assert_never(norm)
    return (pixels + delta).clamp(0, 1)


def uphill(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the direction in which a loss grows fastest, of length 1 in the norm."""
    match norm:
        case "linf":
            return gradient.sign()
        case "l2":
            return gradient / (_lengths(gradient) + TINY)
        case _:
            assert_never(norm)


def pgd(
    pixels: Tensor,
    gradient: Gradient,
    *,
    norm: Norm,
    eps: float,
    steps: int,
    step_size: float,
    noise: Tensor | None = None,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """Perturb images by projected gradient ascent (Madry et al. 2018).

    Args:
        pixels: Images, (N, C, H, W).
        gradient: Of what is to grow.
        norm: Of the ball.
        eps: Radius of the ball.
        steps: Number of steps.
        step_size: Length of a step in the norm.
        noise: Start relative to the images, (N, C, H, W); None starts at the images.
        scale: Factor of noise and steps, one per channel (C, 1, 1) or for all. The paper's released
            code moves normalised images, which in pixels is a factor of each channel's deviation.
    """
    if eps == 0:
        return pixels
    perturbed = pixels
    if noise is not None:
        perturbed = project(pixels + noise * scale, pixels, norm, eps)
    for _ in range(steps):
        direction = uphill(gradient(perturbed), norm)
        perturbed = project(perturbed + step_size * direction * scale, pixels, norm, eps)
    return perturbed


def pgd_classes(
    pixels: Tensor,
    labels: Tensor,
    logits: Callable[[Tensor], Tensor],
    *,
    norm: Norm,
    eps: float,
    steps: int,
    step_size: float,
    noise: Tensor | None = None,
) -> Tensor:
    """Return the classes that PGD on the cross-entropy makes of images, (N,).

    An image is fooled by the first of the start and the `steps` points after it that is taken for
    another class; it is then left alone, which never spares it and costs less. Arguments as of
    `pgd`; `logits` are those of a network in evaluation, whose images do not see each other.

    Raises:
        ValueError: A gradient is not finite.
    """
    classes, left = labels.clone(), torch.arange(len(pixels), device=pixels.device)
    perturbed = pixels if noise is None else project(pixels + noise, pixels, norm, eps)
    for step in range(steps + 1):
        leaf = perturbed.detach().requires_grad_()
        found = logits(leaf)
        predicted = found.argmax(dim=1)
        classes[left] = predicted
        stands = predicted == labels[left]
        if step == steps or not stands.any():
            break
        loss = F.cross_entropy(found[stands], labels[left[stands]], reduction="sum")
        [gradient] = torch.autograd.grad(loss, [leaf])
        left, gradient, perturbed = left[stands], gradient[stands], perturbed[stands]
        if not gradient.isfinite().all():
            raise ValueError("the gradient of an image is not finite")
        moved = perturbed + step_size * uphill(gradient, norm)
        perturbed = project(moved, pixels[left], norm, eps)
    return classes


def fgsm_step(pixels: Tensor, gradient: Gradient, *, eps: float, noise: Tensor) -> Tensor:
    """Perturb images by noise and one step of length eps, projected onto [0, 1] alone.

    N-FGSM (de Jorge et al. 2022), where the noise is uniform beyond the ball.
    """
    noisy = (pixels + noise).clamp(0, 1)
    return (noisy + eps * gradient(noisy).sign()).clamp(0, 1)


def overfitting_alarm(drop: float) -> str:
    """Say in words that a network has learned its attack instead of withstanding it.

    Catastrophic overfitting (Wong et al. 2020), by their sign: accuracy on training images under a
    stronger attack falls by more than 0.2 from one epoch to the next.

    Args:
        drop: Largest fall of that accuracy between two epochs.
    """
    if drop <= MAX_DROP:
        return ""
    return (
        f"overfitted to its attack: accuracy on training images under PGD fell by {drop:.2f} "
        "within an epoch"
    )
