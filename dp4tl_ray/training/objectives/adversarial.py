"""Adversarial training: the images of each pass are perturbed before the network learns from them.

An attack asks the network for gradients of images alone, by `autograd.grad`: those of weights would
cost as much again. Noise is drawn batch-norm group by batch-norm group, and an attack by running
statistics takes those of all workers, so that their number changes nothing but the order of float
additions; with `attack_bn: train` it also changes the running statistics a little, which no attack
then looks at.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp4tl_ray.algorithms.attacks import Gradient, ball_noise, fgsm_step, pgd, project
from dp4tl_ray.specs.adversarial import (
    FGSMRS,
    NFGSM,
    PGD,
    TRADES,
    AnyAttack,
    AttackBatchNorm,
    DP4TLAsIsAttack,
    Free,
)
from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.training.batch_norm import GroupedBatchNorm
from dp4tl_ray.training.examples import Examples, to_pixels
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.supervised import Shown, SupervisedBatch, SupervisedObjective
from dp4tl_ray.training.parallel import Parallel
from dp4tl_ray.training.passes import DivergedError, Pass
from dp4tl_ray.training.recorder import DynamicsRecorder
from dp4tl_ray.training.worker import Worker, number_for, seed_for

PROBED, PROBE_STEPS = 256, 5
"""Training images that are attacked after every epoch, as they are, and steps of that attack."""
TRADES_NOISE = 0.001
"""Deviation of the start; at the image itself the divergence has no gradient."""
Loss = Callable[[Tensor], Tensor]


class AdversarialObjective(SupervisedObjective):
    """The loss on perturbed images, of which each pass makes its own."""

    def __init__(
        self,
        model: Classifier,
        examples: Examples,
        recipe: Recipe,
        attack: AnyAttack,
        seed: int,
        worker: Worker,
        total: int,
        recorder: DynamicsRecorder | None,
    ) -> None:
        super().__init__(model, examples, recipe, seed, worker, total, recorder)
        self.attack = attack
        self.replays = attack.replays if isinstance(attack, Free) else 1
        self.model = model
        self.broken = torch.zeros((), device=worker.device)
        self.reach = torch.zeros((), device=worker.device)
        self.accuracies = list[float]()
        self.replayed = list[tuple[Tensor, Tensor]]()

    def backward(self, parallel: Parallel, batch: SupervisedBatch, step: int) -> Tensor:
        """Leave the gradient of the batch's mean loss in the parameters."""
        passes = [one for share in self.passes for one in share]
        if isinstance(self.attack, Free):
            return self._replay(parallel, batch, passes, step)
        shown: Iterable[Shown] = (
            self._attacked(parallel, self.show(batch, one), one, step) for one in passes
        )
        if self.attack.attack_bn == "eval":
            self._share_statistics(parallel.model)
            shown = list(shown)  # all by the statistics that there are before the first pass
        if self.attack.awp is None:
            return self.descend(parallel, shown, step)
        shown = list(shown)
        with frozen_statistics(parallel.model):
            self.descend(parallel, shown, step, record=False)
        with uphill_weights(parallel.model, self.attack.awp):
            return self.descend(parallel, shown, step)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss; TRADES has the images themselves first, then the perturbed ones."""
        if not isinstance(self.attack, TRADES):
            return super().loss(logits, labels)
        natural, perturbed = logits.chunk(2)
        divergence = _divergence(perturbed, natural) / len(labels)
        return super().loss(natural, labels) + self.attack.beta * divergence

    def end_epoch(self, parallel: Parallel) -> None:
        """Refuse gradients that are not numbers; attack a fixed batch of training images."""
        self.worker.sum_([self.broken])
        if self.broken:
            raise DivergedError(f"{int(self.broken)} gradients of images are not finite")
        reaches = self.reach.new_zeros(self.worker.world_size)
        reaches[self.worker.rank] = self.reach
        self.worker.sum_([reaches])
        self.reach = reaches.max()
        if self.worker.rank == 0:
            self.accuracies.append(self._probe(parallel))

    def memory(self) -> list[float]:
        """Return what a checkpoint must keep."""
        return [float(self.reach), *self.accuracies]

    def remember(self, memory: list[float]) -> None:
        """Take back what a checkpoint kept."""
        reach, *self.accuracies = memory
        self.reach.fill_(reach)

    def facts(self) -> dict[str, float]:
        """Say how far perturbations went, and how the fixed batch fared under attack."""
        accuracies = self.accuracies or [0.0]
        drops = [0.0, *(before - after for before, after in pairwise(accuracies))]
        return {
            "largest_perturbation": float(self.reach),
            "attacked_accuracy": accuracies[-1],
            "attacked_accuracy_drop": max(drops),
        }

    def _attacked(self, parallel: Parallel, shown: Shown, one: Pass, step: int) -> Shown:
        """Perturb the images of a pass."""
        attack, pixels = self.attack, shown.pixels
        network, eps = parallel.alone, attack.eps
        gradient = self._gradient(network, self._ascended(shown.labels))
        climb = partial(pgd, pixels, norm="linf", eps=eps)

        def noise(norm: str = "linf", radius: float = eps) -> Tensor:
            return self._noise(one, step, pixels, lambda shape, g: _ball(shape, norm, radius, g))

        with attacking(parallel.model, attack.attack_bn):
            match attack:
                case PGD(norm=norm, steps=steps):
                    start, size = noise(norm) if attack.random_start else None, _step_size(attack)
                    perturbed = climb(gradient, norm=norm, steps=steps, step_size=size, noise=start)
                case FGSMRS():
                    size = attack.relative_step * eps
                    perturbed = climb(gradient, steps=1, step_size=size, noise=noise())
                case NFGSM():
                    far = noise(radius=attack.noise * eps)
                    perturbed = fgsm_step(pixels, gradient, eps=eps, noise=far)
                case TRADES(steps=steps):
                    with torch.no_grad():
                        natural = self.run(network, pixels).float()
                    away = self._gradient(network, lambda logits: _divergence(logits, natural))
                    start, size = self._noise(one, step, pixels, _normal), _step_size(attack)
                    perturbed = climb(away, steps=steps, step_size=size, noise=start)
                case DP4TLAsIsAttack(steps=steps):
                    std, size = self.model.pixel_std.to(pixels.device), 2 * eps / attack.steps
                    perturbed = climb(
                        gradient, steps=steps, step_size=size, noise=noise(), scale=std
                    )
                case Free():
                    raise AssertionError("its perturbations come from the training's own passes")
                case _:
                    assert_never(attack)
        self._look(perturbed, pixels)
        if isinstance(attack, TRADES):
            # side by side in one pass, whose batch-norm groups keep them apart
            perturbed = torch.cat([pixels, perturbed])
        return replace(shown, pixels=perturbed)

    def _share_statistics(self, model: nn.Module) -> None:
        """Give every worker the running statistics of all, which are else averaged per epoch."""
        norms = [module for module in model.modules() if isinstance(module, GroupedBatchNorm)]
        moving = (
            statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)
        )
        self.worker.mean_([statistic for statistic in moving if statistic is not None], self.weight)

    def _replay(
        self, parallel: Parallel, batch: SupervisedBatch, passes: list[Pass], step: int
    ) -> Tensor:
        """Learn from images as the last replay left them; move them by the same gradient."""
        eps = self.attack.eps
        if step % self.replays == 0:
            self.replayed = []
            for one in passes:
                pixels = self.show(batch, one).pixels
                start = self._noise(
                    one, step, pixels, lambda shape, g: _ball(shape, "linf", eps, g)
                )
                self.replayed.append((pixels, (pixels + start).clamp(0, 1)))
        shown = []
        for one, (_, perturbed) in zip(passes, self.replayed, strict=True):
            leaf = perturbed.detach().requires_grad_()
            shown.append(replace(self.show(batch, one), pixels=leaf))
        loss = self.descend(parallel, shown, step)
        moved = []
        for (pixels, perturbed), seen in zip(self.replayed, shown, strict=True):
            gradient = seen.pixels.grad
            assert gradient is not None
            self._count(gradient)
            further = project(perturbed + eps * gradient.sign(), pixels, "linf", eps)
            self._look(further, pixels)
            moved.append((pixels, further))
        self.replayed = moved
        return loss

    def _ascended(self, labels: Tensor) -> Loss:
        return lambda logits: F.cross_entropy(logits, labels, reduction="sum")

    def _gradient(self, network: Callable[..., Tensor], loss: Loss) -> Gradient:
        """Return the function that attacks climb."""

        def gradient(pixels: Tensor) -> Tensor:
            leaf = pixels.detach().requires_grad_()
            [found] = torch.autograd.grad(loss(self.run(network, leaf).float()), [leaf])
            self._count(found)
            return found

        return gradient

    def _count(self, gradient: Tensor) -> None:
        """Count examples whose gradient is not a number, without waiting for the device."""
        self.broken += (~gradient.isfinite()).flatten(1).any(dim=1).sum()

    def _look(self, perturbed: Tensor, pixels: Tensor) -> None:
        self.reach = torch.maximum(self.reach, (perturbed - pixels).detach().abs().max())

    def _noise(
        self,
        one: Pass,
        step: int,
        pixels: Tensor,
        draw: Callable[[torch.Size, torch.Generator], Tensor],
    ) -> Tensor:
        """Draw noise for the rows of a pass, each batch-norm group from a stream of its own."""
        size, parts = self.recipe.batch_norm.group_size, list[Tensor]()
        for first in range(one.rows.start, one.rows.stop, size):
            generator = generator_for(pixels.device, self.seed, "attack", step, first)
            rows = min(size, one.rows.stop - first)
            parts.append(draw(torch.Size([rows, *pixels.shape[1:]]), generator))
        return torch.cat(parts)

    def _probe(self, parallel: Parallel) -> float:
        """Measure accuracy on fixed training images under PGD, in evaluation mode and fp32."""
        rng = np.random.default_rng(seed_for(self.seed, "probed"))
        size = min(PROBED, len(self.examples))
        positions = np.sort(rng.choice(len(self.examples), size, replace=False))
        pixels = to_pixels(self.examples.images[self.examples.rows[positions]], self.worker.device)
        labels = torch.from_numpy(self.labels[positions]).to(self.worker.device)

        def gradient(at: Tensor) -> Tensor:
            leaf = at.detach().requires_grad_()
            loss = F.cross_entropy(parallel.model(leaf), labels, reduction="sum")
            return torch.autograd.grad(loss, [leaf])[0]

        attack = self.attack
        norm = attack.norm if isinstance(attack, PGD) else "linf"
        generator = generator_for(self.worker.device, self.seed, "probe")
        with attacking(parallel.model, "eval"):
            perturbed = pgd(
                pixels,
                gradient,
                norm=norm,
                eps=attack.eps,
                steps=PROBE_STEPS,
                step_size=2.5 * attack.eps / PROBE_STEPS,
                noise=ball_noise(pixels.shape, norm, attack.eps, generator),
            )
            with torch.no_grad():
                predicted = parallel.model(perturbed).argmax(dim=1)
        return float((predicted == labels).double().mean())


def generator_for(device: torch.device, seed: int, *purpose: str | int) -> torch.Generator:
    """Seed a stream of noise on a device."""
    return torch.Generator(device).manual_seed(number_for(seed, *purpose))


@contextlib.contextmanager
def attacking(model: nn.Module, attack_bn: AttackBatchNorm) -> Iterator[None]:
    """Let batch norm do while attacking what a study says, and afterwards what it did before."""
    match attack_bn:
        case "train":
            yield
        case "train_frozen_stats":
            with frozen_statistics(model):
                yield
        case "eval":
            training = model.training
            model.eval()
            try:
                yield
            finally:
                model.train(training)
        case _:
            assert_never(attack_bn)


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the statistics of each batch, and leave the running ones as they are."""
    norms = [module for module in model.modules() if isinstance(module, GroupedBatchNorm)]
    try:
        for norm in norms:
            norm.frozen = True
        yield
    finally:
        for norm in norms:
            norm.frozen = False


@contextlib.contextmanager
def uphill_weights(model: nn.Module, relative: float) -> Iterator[None]:
    """Move weights along the gradient that they have, each by a share of its norm, for a while.

    Wu et al. 2020 (AWP). Vectors stay where they are. Gradients are gone inside.
    """
    before = [(p, p.detach().clone()) for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    with torch.no_grad():
        for parameter, weight in before:
            assert parameter.grad is not None
            gradient = parameter.grad
            length = relative * weight.norm() / (gradient.norm() + 1e-12)
            parameter.add_(gradient * length)
    for parameter in model.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in before:
                parameter.copy_(weight)


def _divergence(logits: Tensor, natural: Tensor) -> Tensor:
    """Return KL(natural || perturbed) summed over examples, from logits (n, classes)."""
    wanted = natural.log_softmax(dim=1)
    return F.kl_div(logits.log_softmax(dim=1), wanted, reduction="sum", log_target=True)


def _step_size(attack: PGD | TRADES) -> float:
    return 2 * attack.eps / attack.steps if attack.step_size is None else attack.step_size


def _ball(shape: torch.Size, norm: str, radius: float, generator: torch.Generator) -> Tensor:
    return ball_noise(shape, "l2" if norm == "l2" else "linf", radius, generator)


def _normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return TRADES_NOISE * torch.empty(shape, device=generator.device).normal_(generator=generator)
