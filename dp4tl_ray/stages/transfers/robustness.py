"""Accuracy under attack of whatever a transfer has made."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.attacks import ball_noise, pgd
from dp4tl_ray.data.draws import Rows
from dp4tl_ray.specs.adversarial import Robustness
from dp4tl_ray.stages.bench import StageError
from dp4tl_ray.stages.transfers.task import Logits, Task
from dp4tl_ray.training.examples import to_pixels
from dp4tl_ray.training.objectives.adversarial import generator_for

BATCH = 256
"""Images attacked together; fixed, so that noise does not depend on a setting."""


def attacked_predictions(
    logits: Logits, task: Task, predicted: Rows, checks: Sequence[Robustness]
) -> npt.NDArray[np.int64]:
    """Return the class of each test image under each attack, (attacks, N), in the order of eps.

    An image that the classifier gets wrong as it is, or within a smaller ball of the same norm,
    keeps that class: the smaller perturbation is one within the larger ball.
    """
    found = []
    for check in checks:
        under_attack = predicted.copy()
        for eps in sorted(check.eps):
            truth = task.labels[task.draw.test]
            for start in range(0, len(truth), BATCH):
                here = np.arange(start, min(start + BATCH, len(truth)))
                left = here[under_attack[here] == truth[here]]
                if len(left):
                    under_attack[left] = _attack(logits, task, check, eps, left)
            found.append(under_attack.copy())
    return np.stack(found)


def _attack(logits: Logits, task: Task, check: Robustness, eps: float, which: Rows) -> Rows:
    """Return the classes of some test images after PGD."""
    rows, device = task.draw.test[which], task.job.worker.device
    pixels = to_pixels(task.images[rows], device)
    labels = torch.from_numpy(task.labels[rows]).to(device)
    purpose = f"{check.norm} {eps:.6g} {which[0]}"
    generator = generator_for(device, task.seed, "robustness", purpose)
    perturbed = pgd(
        pixels,
        _gradient(logits, labels),
        norm=check.norm,
        eps=eps,
        steps=check.steps,
        step_size=eps / 4,
        noise=ball_noise(pixels.shape, check.norm, eps, generator),
    )
    with torch.no_grad():
        classes: Rows = logits(perturbed).argmax(dim=1).cpu().numpy()
    return classes


def _gradient(logits: Logits, labels: Tensor) -> Callable[[Tensor], Tensor]:
    def gradient(pixels: Tensor) -> Tensor:
        leaf = pixels.detach().requires_grad_()
        loss = F.cross_entropy(logits(leaf), labels, reduction="sum")
        [found] = torch.autograd.grad(loss, [leaf])
        if not found.isfinite().all():
            raise StageError("the gradient of a test image is not finite: its robustness is none")
        return found

    return gradient
