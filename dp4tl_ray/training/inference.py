"""The only pass without gradients: logits and features of given rows."""

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.training.fit import to_pixels
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.worker import Worker

BATCH = 512
"""Examples per pass; fixed, so that the result does not depend on a setting."""


def infer(
    model: Classifier, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], worker: Worker
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return logits (N, classes) and features (N, D) of N rows, in evaluation mode, in fp32."""
    model.to(worker.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    logits, features = [], []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            pixels = to_pixels(images[rows[start : start + BATCH]], worker.device)
            h = model.features(pixels)
            features.append(h.float().cpu().numpy())
            logits.append(model.head(h).float().cpu().numpy())
    return np.concatenate(logits), np.concatenate(features)
