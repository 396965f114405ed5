"""Accuracy under attack of whatever a transfer has made."""

from collections.abc import Callable, Sequence
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dp4tl_ray.algorithms.attacks import ball_noise, pgd_classes
from dp4tl_ray.algorithms.masking import Withstood, masking_alarm
from dp4tl_ray.data.draws import Rows
from dp4tl_ray.specs.adversarial import (
    AnyRobustness,
    AutoAttackRobustness,
    Norm,
    PGDRobustness,
)
from dp4tl_ray.specs.base import pixels_text
from dp4tl_ray.stages.bench import StageError
from dp4tl_ray.stages.transfers.ensemble import autoattack
from dp4tl_ray.stages.transfers.task import Logits, Task
from dp4tl_ray.training.examples import to_pixels
from dp4tl_ray.training.objectives.adversarial import generator_for
from dp4tl_ray.training.worker import number_for, seed_for

BATCH = 256
"""Images attacked together; fixed, so that noise does not depend on a setting."""
STEPS = 20
"""Of the PGD that goes before an ensemble, and of the one in a ball without bounds."""
NUM_NOISES = 10
"""Random points of a ball that are tried against an image."""
NOT_ATTACKED = -1
"""Stands for the class of an image that an attack was spared."""


def attacked_predictions(
    logits: Logits, task: Task, predicted: Rows, checks: Sequence[AnyRobustness]
) -> npt.NDArray[np.int64]:
    """Return the class of each test image under each attack, (attacks, N), in the order of eps.

    An image that the classifier gets wrong as it is, or within a smaller ball of the same norm,
    keeps that class: the smaller perturbation is one within the larger ball.
    """
    victim, found = _Victim(logits, task), []
    for check in checks:
        under_attack = np.where(_chosen(check, victim), predicted, NOT_ATTACKED)
        for eps in sorted(check.eps):
            match check:
                case PGDRobustness():
                    attack = _pgd(victim, check.norm, eps, check.steps, eps / 4)
                    victim.attack(under_attack, attack)
                case AutoAttackRobustness():
                    victim.attack(under_attack, _pgd(victim, check.norm, eps, STEPS, eps / 4))
                    victim.attack(under_attack, _autoattack(victim, check.norm, eps))
                case _:
                    assert_never(check)
            found.append(under_attack.copy())
    return np.stack(found)


def masking(
    logits: Logits, task: Task, attacked: npt.NDArray[np.int64], checks: Sequence[AnyRobustness]
) -> str:
    """Look for signs of masked gradients at the largest radius of each PGD; empty without any.

    Args:
        logits: The classifier.
        task: Gives the test images, of which the first correctly classified ones are looked at.
        attacked: What `attacked_predictions` found.
        checks: The attacks.
    """
    victim, rows = _Victim(logits, task), iter(attacked)
    alarms = []
    for check in checks:
        *_, last = (next(rows) for _ in check.eps)
        if isinstance(check, PGDRobustness) and max(check.eps) > 0:
            eps = max(check.eps)
            if alarm := masking_alarm(_withstood(victim, check, eps, last)):
                alarms.append(f"under pgd {check.norm} {pixels_text(eps)}, {alarm}")
    return "; ".join(alarms)


Attack = Callable[[Tensor, Tensor, int], Tensor]
"""Pixels, labels, and the place of the first of them, for its noise -> what they are taken for."""


class _Victim:
    """A classifier and the test images that it is attacked with."""

    def __init__(self, logits: Logits, task: Task) -> None:
        self.logits, self.task, self.device = logits, task, task.job.worker.device
        self.truth = task.labels[task.draw.test]

    def images(self, which: Rows) -> tuple[Tensor, Tensor]:
        """Return pixels and labels of some test images."""
        pixels = to_pixels(self.task.images[self.task.draw.test[which]], self.device)
        return pixels, torch.from_numpy(self.truth[which]).to(self.device)

    def classes(self, pixels: Tensor) -> Tensor:
        """Return the class of each image."""
        with torch.no_grad():
            return self.logits(pixels).argmax(dim=1)

    def attack(self, under_attack: Rows, attack: Attack) -> None:
        """Attack the images that are still classified correctly; note their classes in place."""
        for start in range(0, len(self.truth), BATCH):
            here = np.arange(start, min(start + BATCH, len(self.truth)))
            left = here[under_attack[here] == self.truth[here]]
            if len(left):
                pixels, labels = self.images(left)
                under_attack[left] = attack(pixels, labels, int(left[0])).cpu().numpy()

    def noise(self, pixels: Tensor, norm: Norm, eps: float, *purpose: str | int) -> Tensor:
        """Draw a point of the ball for each image, the same at every call for a purpose."""
        told = ("robustness", norm, f"{eps:.6g}", *purpose)
        generator = generator_for(self.device, self.task.seed, *told)
        return ball_noise(pixels.shape, norm, eps, generator)


def _chosen(check: AnyRobustness, victim: _Victim) -> npt.NDArray[np.bool_]:
    """Choose the test images to attack, (N,): all of them, or as many as are asked for."""
    size = len(victim.truth)
    if isinstance(check, PGDRobustness) or check.num_images >= size:
        return np.ones(size, bool)
    rng = np.random.default_rng(seed_for(victim.task.seed, "attacked"))
    return np.isin(np.arange(size), rng.choice(size, check.num_images, replace=False))


def _pgd(victim: _Victim, norm: Norm, eps: float, steps: int, step_size: float) -> Attack:
    def attack(pixels: Tensor, labels: Tensor, first: int) -> Tensor:
        try:
            return pgd_classes(
                pixels,
                labels,
                victim.logits,
                norm=norm,
                eps=eps,
                steps=steps,
                step_size=step_size,
                noise=victim.noise(pixels, norm, eps, first),
            )
        except ValueError as error:
            raise StageError(f"{error}: the robustness of this network is none") from error

    return attack


def _autoattack(victim: _Victim, norm: Norm, eps: float) -> Attack:
    def attack(pixels: Tensor, labels: Tensor, first: int) -> Tensor:
        if eps == 0:
            return labels
        seed = number_for(victim.task.seed, "autoattack", first)
        outputs = victim.task.num_classes
        found = autoattack(victim.logits, pixels, labels, outputs, norm=norm, eps=eps, seed=seed)
        return victim.classes(found)

    return attack


def _withstood(victim: _Victim, check: PGDRobustness, eps: float, attacked: Rows) -> Withstood:
    """Attack some correctly classified images in ways that a truly robust network withstands."""
    some = np.arange(min(BATCH, len(victim.truth)))
    pixels, labels = victim.images(some)
    right = victim.classes(pixels) == labels
    if not right.any():
        return Withstood(0, 0, 0, 0, 0)
    pixels, labels, some = pixels[right], labels[right], some[right.cpu().numpy()]

    def share(classes: Tensor) -> float:
        return float((classes == labels).double().mean())

    norm, logits = check.norm, victim.logits
    single = pgd_classes(pixels, labels, logits, norm=norm, eps=eps, steps=1, step_size=eps)
    stands = torch.ones_like(labels, dtype=torch.bool)
    for n in range(NUM_NOISES):
        noise = victim.noise(pixels, norm, eps, "noise", n)
        stands &= victim.classes((pixels + noise).clamp(0, 1)) == labels
    # in short steps from the image: all corners of the box may look like one class
    whole = 1.0 if norm == "linf" else float(pixels[0].numel()) ** 0.5
    far = pgd_classes(
        pixels, labels, logits, norm=norm, eps=whole, steps=STEPS, step_size=whole / STEPS
    )
    leaf = pixels.detach().requires_grad_()
    [slope] = torch.autograd.grad(F.cross_entropy(logits(leaf), labels, reduction="sum"), [leaf])
    return Withstood(
        iterated=float((attacked[some] == victim.truth[some]).mean()),
        single=share(single),
        noise=float(stands.double().mean()),
        unbounded=share(far),
        flat=float((slope.flatten(1) == 0).all(dim=1).double().mean()),
    )
