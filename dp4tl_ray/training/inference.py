"""The only pass without gradients: logits and features of given rows."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.training.fit import to_pixels
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.worker import Worker

BATCH = 512
"""Examples per pass; fixed, so that the result does not depend on a setting."""


Floats = npt.NDArray[np.float32]


def infer_parts(
    model: Classifier, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], worker: Worker
) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield logits and features of rows[part], part after part, in evaluation mode, in fp32."""
    model.to(worker.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for start in range(0, len(rows), BATCH):
        part = slice(start, min(start + BATCH, len(rows)))
        with torch.inference_mode():
            h = model.features(to_pixels(images[rows[part]], worker.device))
            logits, features = model.head(h).float().cpu().numpy(), h.float().cpu().numpy()
        yield part, logits, features


def infer(
    model: Classifier, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], worker: Worker
) -> tuple[Floats, Floats]:
    """Return logits (N, classes) and features (N, D) of N rows."""
    parts = [(logits, features) for _, logits, features in infer_parts(model, images, rows, worker)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
