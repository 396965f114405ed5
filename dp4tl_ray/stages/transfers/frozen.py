"""Transfer on frozen features: linear probe and nearest neighbours."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dp4tl_ray.algorithms.knn_classifier import best_k, knn_predict
from dp4tl_ray.algorithms.linear_probe import Probe, adam_probes, best_probe, solve_probe
from dp4tl_ray.data.draws import Rows
from dp4tl_ray.data.images import Images
from dp4tl_ray.specs.transfer import KNN, LinearProbe
from dp4tl_ray.stages.bench import Metrics, StageError
from dp4tl_ray.stages.transfers.task import Outcome, Task
from dp4tl_ray.training.batch_norm import GroupedBatchNorm
from dp4tl_ray.training.examples import to_pixels
from dp4tl_ray.training.inference import infer
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.worker import Worker, seed_for

ADAPT_BATCH = 256
"""Images whose batch statistics are taken together, as in most pretrainings."""
ADAM_LR, ADAM_BATCH, ADAM_EPOCHS = 0.01, 128, 50
"""Of the probe in the paper's code."""

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Features:
    """Frozen features, on the worker's device."""

    train: Labelled
    val: Labelled
    test: Tensor
    extract: Callable[[Tensor], Tensor]
    """Pixels in [0, 1] -> features."""

    @property
    def train_and_val(self) -> Labelled:
        """Train and validation images together."""
        (x, y), (more_x, more_y) = self.train, self.val
        return torch.cat([x, more_x]), torch.cat([y, more_y])


def linear_probe(spec: LinearProbe, task: Task) -> Outcome:
    """Fit a linear classifier of frozen features."""
    features = frozen_features(task, adapt=spec.batch_norm == "adapt", mirrored=spec.tta == "flip")
    chosen: Metrics = {}
    match spec.solver:
        case "lbfgs":
            best = best_probe(features.train, features.val, task.num_classes, spec.l2)
            probe, l2, val_accuracy = best
            chosen["l2"] = l2
            if spec.refit_on_val:
                refit = features.train_and_val
                probe = solve_probe(*refit, task.num_classes, l2, start=probe)
        case "adam":
            probe = _last(adam_probe_epochs(task, features.train, ADAM_EPOCHS))
            x, y = features.val
            val_accuracy = float((probe.predict(x) == y).double().mean())
            if spec.refit_on_val:
                refit = features.train_and_val
                probe = _last(adam_probe_epochs(task, refit, ADAM_EPOCHS))
        case _:
            assert_never(spec.solver)
    predicted = _rows(probe.predict(features.test))
    return Outcome(
        predicted,
        {**chosen, "val_accuracy": val_accuracy},
        lambda pixels: probe.logits(features.extract(pixels)),
    )


def knn(spec: KNN, task: Task) -> Outcome:
    """Let the nearest train images vote."""
    features = frozen_features(task, adapt=False)
    train, outputs = features.train, task.num_classes
    k, val_accuracy = best_k(train, features.val, outputs, spec.ks, spec.temperature)
    predicted = knn_predict(train, features.test, outputs, [k], spec.temperature)[k]
    return Outcome(_rows(predicted), {"k": k, "val_accuracy": val_accuracy})


def adam_probe_epochs(task: Task, train: Labelled, epochs: int) -> Iterator[Probe]:
    """Train a probe as the paper's code does; yields it as it is after each epoch."""
    order = np.random.default_rng(seed_for(task.seed, "probe"))
    return adam_probes(
        *train, task.num_classes, order, epochs=epochs, batch_size=ADAM_BATCH, lr=ADAM_LR
    )


def _last(probes: Iterator[Probe]) -> Probe:
    return deque(probes, maxlen=1).pop()


def frozen_features(task: Task, *, adapt: bool, mirrored: bool = False) -> Features:
    """Compute the features of all images; without a network the pixels are the features.

    Args:
        task: Target and network.
        adapt: Whether batch norm takes its statistics from the target's train images.
        mirrored: Whether features of other images are means over them and their mirror images.
    """
    draw, device = task.draw, task.job.worker.device
    rows = np.concatenate([draw.train, draw.val, draw.test])
    if task.job.inputs.get("pretrain") is None:
        pixels = task.images[rows].astype(np.float32) / 255
        if mirrored:
            tested = pixels[len(draw.train) :]
            tested[:] = (tested + tested[:, :, ::-1]) / 2
        features = pixels.reshape(len(rows), -1)
        extract = _flat_mirrored if mirrored else _flat
    else:
        model, features = _network_features(task, rows, adapt)
        if mirrored:
            model.mirrored, tested = True, rows[len(draw.train) :]
            _, features[len(draw.train) :] = infer(model, task.images, tested, task.job.worker)
        extract = model.features
    if not np.isfinite(features).all():
        raise StageError("the network's features are not finite")
    sizes = [len(draw.train), len(draw.val), len(draw.test)]
    train, val, test = torch.split(torch.from_numpy(features).to(device), sizes)
    y_train, y_val = (torch.from_numpy(task.labels[r]).to(device) for r in (draw.train, draw.val))
    return Features((train, y_train), (val, y_val), test, extract)


def _flat(pixels_NCHW: Tensor) -> Tensor:
    return pixels_NCHW.permute(0, 2, 3, 1).flatten(1)


def _flat_mirrored(pixels_NCHW: Tensor) -> Tensor:
    return _flat((pixels_NCHW + pixels_NCHW.flip(3)) / 2)


def _network_features(
    task: Task, rows: Rows, adapt: bool
) -> tuple[Classifier, npt.NDArray[np.float32]]:
    model, worker = task.network(ADAPT_BATCH), task.job.worker
    frozen = model.state_dict() if not adapt else dict(model.named_parameters())
    before = {name: tensor.detach().clone() for name, tensor in frozen.items()}
    if adapt:
        adapt_batch_norm(model, task.images, task.draw.train, worker, task.seed)
    _, features = infer(model, task.images, rows, worker)
    after = model.state_dict()
    assert all(torch.equal(before[n].cpu(), after[n].cpu()) for n in before), "not frozen"
    return model, features


def adapt_batch_norm(
    model: Classifier, images: Images, rows: Rows, worker: Worker, seed: int
) -> None:
    """Replace batch norm's running statistics by the mean over batches of these images.

    The images come once, in random order and batches of nearly equal size, of which each counts by
    its images. Nothing but the statistics changes.
    """
    model.to(worker.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    norms = [module for module in model.modules() if isinstance(module, GroupedBatchNorm)]
    order = np.random.default_rng(seed_for(seed, "adapt")).permutation(rows)
    seen = 0
    for batch in np.array_split(order, math.ceil(len(order) / ADAPT_BATCH)):
        seen += len(batch)
        for norm in norms:
            norm.train()
            norm.movement = torch.tensor(len(batch) / seen, device=worker.device)
        with torch.no_grad():
            model.features(to_pixels(images[batch], worker.device))


def _rows(predicted: Tensor) -> Rows:
    rows: Rows = predicted.cpu().numpy()
    return rows
