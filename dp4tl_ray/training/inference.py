"""The only pass without gradients: logits and features of given rows."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from dp4tl_ray.data.images import Images
from dp4tl_ray.training.examples import to_pixels
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.worker import Worker

BATCH = 512
"""Examples per pass; fixed, so that the result does not depend on a setting."""


Floats = npt.NDArray[np.float32]


def infer_parts(
    model: Classifier, images: Images, rows: npt.NDArray[np.int64], worker: Worker
) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield logits and features of rows[part], part after part, in evaluation mode, in fp32.

    Where several workers call this together, they take the batches in turn; rank 0 yields all
    parts, the others none, and every worker must use its iterator up. Each batch is the same as
    one worker's, and so is the result.
    """
    model.to(worker.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    starts = range(0, len(rows), BATCH)
    for first in range(0, len(starts), worker.world_size):
        turn = [
            slice(start, min(start + BATCH, len(rows)))
            for start in starts[first : first + worker.world_size]
        ]
        if worker.rank < len(turn):
            outputs = _outputs(model, images[rows[turn[worker.rank]]], worker.device)
            if worker.rank > 0:
                _send(outputs)
        if worker.rank == 0:
            for rank, part in enumerate(turn):
                if rank > 0:
                    outputs = _receive(model, part.stop - part.start, rank, worker.device)
                logits, features = (tensor.cpu().numpy() for tensor in outputs)
                yield part, logits, features


def _outputs(
    model: Classifier, images_NHWC: npt.NDArray[np.uint8], device: torch.device
) -> list[Tensor]:
    with torch.inference_mode():
        features = model.features(to_pixels(images_NHWC, device))
        return [model.logits(features).float(), features.float()]


def _send(outputs: list[Tensor]) -> None:
    for tensor in filter(torch.numel, outputs):
        dist.send(tensor.contiguous(), dst=0)


def _receive(model: Classifier, size: int, rank: int, device: torch.device) -> list[Tensor]:
    columns = (model.num_classes, model.num_features)
    outputs = [torch.empty(size, width, device=device) for width in columns]
    for tensor in filter(torch.numel, outputs):
        dist.recv(tensor, src=rank)
    return outputs


def infer(
    model: Classifier, images: Images, rows: npt.NDArray[np.int64], worker: Worker
) -> tuple[Floats, Floats]:
    """Return logits (N, classes) and features (N, D) of N rows; of none where rank > 0."""
    logits = [np.empty((0, model.num_classes), np.float32)]
    features = [np.empty((0, model.num_features), np.float32)]
    for _, z, h in infer_parts(model, images, rows, worker):
        logits.append(z)
        features.append(h)
    return np.concatenate(logits), np.concatenate(features)
