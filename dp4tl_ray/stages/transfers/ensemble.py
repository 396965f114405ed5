"""AutoAttack, the ensemble that final tables are made with (Croce and Hein 2020).

Its standard version assumes ten classes or more and fails below that; here its members are chosen
by the number of classes.
"""

import logging

import torch
from torch import Tensor

from dp4tl_ray.specs.adversarial import Norm
from dp4tl_ray.stages.bench import StageError
from dp4tl_ray.stages.transfers.task import Logits

STANDARD_TARGETS = 9
"""Classes that a targeted attack aims at, where there are as many others."""


def members(num_classes: int) -> list[str]:
    """Name the attacks of the ensemble that a number of classes allows.

    The targeted loss compares four logits and the untargeted one three; with two classes both are
    the margin, which FAB and Square look at too.
    """
    if num_classes >= 4:
        return ["apgd-ce", "apgd-t", "fab-t", "square"]
    if num_classes == 3:
        return ["apgd-ce", "apgd-dlr", "fab-t", "square"]
    return ["apgd-ce", "fab-t", "square"]


def autoattack(
    logits: Logits,
    pixels: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    norm: Norm,
    eps: float,
    seed: int,
) -> Tensor:
    """Perturb images by each member in turn, only those that withstood the ones before.

    Args:
        logits: The classifier.
        pixels: Images that it classifies correctly, (N, C, H, W).
        labels: Their classes, (N,).
        num_classes: Outputs of the classifier.
        norm: Of the ball.
        eps: Its radius.
        seed: Of everything that is drawn.

    Raises:
        StageError: The package is not installed.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise StageError(
            "robustness by autoattack needs pyautoattack: pip install 'dp4tl_ray[autoattack]'"
        ) from error
    # it warns of classes too few for members that are not taken
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    ensemble = AutoAttack(
        lambda x: logits(x).float(),
        norm={"linf": "Linf", "l2": "L2"}[norm],
        eps=eps,
        attacks=members(num_classes),
        version="custom",
        device=pixels.device,
        seed=seed,
    )
    # as its standard version has them
    ensemble.apgd.n_restarts = ensemble.apgd_targeted.n_restarts = ensemble.fab.n_restarts = 1
    targets = min(STANDARD_TARGETS, num_classes - 1)
    ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = targets
    devices = [pixels.device] if pixels.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # it seeds the global generator
        perturbed, _ = ensemble.run_standard_evaluation(pixels, labels, batch_size=len(pixels))
    found: Tensor = perturbed
    return found
