"""Data: read or render a dataset once; every other stage meets it as memory-mapped arrays."""

import numpy as np

from dp4tl_ray.data.image_folder import DatasetError
from dp4tl_ray.data.load import load_images
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.stages.bench import Job, Metrics, StageError


def run_data(spec: DataStep, job: Job) -> Metrics:
    """Write images, labels, splits, ids, class names and pixel statistics."""
    try:
        data = load_images(spec.dataset, spec.role)
    except DatasetError as error:
        raise StageError(str(error)) from error
    # integer sums: exact, and independent of the order of the images
    pixels = data.images.reshape(-1, data.images.shape[3])
    mean = pixels.sum(axis=0, dtype=np.int64) / len(pixels) / 255
    squares = np.stack([np.bincount(c, minlength=256) @ (np.arange(256) ** 2) for c in pixels.T])
    std = np.sqrt(np.maximum(squares / len(pixels) / 255**2 - mean**2, 1e-6))
    bench = job.bench
    bench.array("images", data.images)
    bench.array("labels", data.labels)
    bench.array("splits", data.splits)
    bench.array("statistics", np.stack([mean, std]).astype(np.float32))
    bench.json("ids", data.ids)
    bench.json("class_names", data.class_names)
    return {"num_examples": len(data.labels), "num_classes": len(data.class_names)}
