"""Data: read or render a dataset once; every other stage meets it as memory-mapped arrays."""

import contextlib
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from dp4tl_ray.data.image_folder import DatasetError, Pixels, Read
from dp4tl_ray.data.load import load_images
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.stages.bench import Job, Metrics, StageError
from dp4tl_ray.training.fit import Halted

AT_A_TIME = 64
"""Images that a thread reads at once: of many sizes, a few megabytes."""
REPORT_SECONDS = 5.0


def run_data(spec: DataStep, job: Job) -> Metrics:
    """Write images, labels, splits, ids, class names and pixel statistics."""
    writer = _Writer(job)
    try:
        data = load_images(spec.dataset, spec.role, writer.write)
    except DatasetError as error:
        raise StageError(str(error)) from error
    bench = job.bench
    bench.array("labels", data.labels)
    bench.array("splits", data.splits)
    bench.array("statistics", _statistics(writer.sums, data.images.shape))
    bench.json("ids", data.ids)
    bench.json("class_names", data.class_names)
    return {"num_examples": len(data.labels), "num_classes": len(data.class_names)}


class _Writer:
    """Writes images as they are read, by as many threads as the worker has, and sums pixels.

    Memory is bounded: nothing but what the threads are reading is held. Decoders release the
    interpreter's lock. Sums are of integers: exact, and independent of the order of the images.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.sums = np.zeros((2, 1), np.int64)
        """Sum and sum of squares of each channel, (2, channels)."""

    def write(self, shape: tuple[int, ...], read: Read) -> Pixels:
        """Write `images`; returns the array, memory-mapped."""
        total = shape[0]
        parts = [slice(at, min(at + AT_A_TIME, total)) for at in range(0, total, AT_A_TIME)]
        with contextlib.ExitStack() as stack:
            images = stack.enter_context(self.job.bench.growing("images", shape, np.uint8))
            pool = ThreadPoolExecutor(torch.get_num_threads())
            stack.callback(pool.shutdown, cancel_futures=True)

            def move(part: slice) -> npt.NDArray[np.int64]:
                images[part] = block = read(part)
                return _sums(block)

            reported = time.monotonic()
            for part, sums in zip(parts, pool.map(move, parts), strict=True):
                self.sums = self.sums + sums
                if time.monotonic() - reported >= REPORT_SECONDS:
                    reported = time.monotonic()
                    if not self.job.worker.report({"step": part.stop, "steps": total}):
                        raise Halted(f"halted after {part.stop} of {total} images")
        return images


def _statistics(sums_2C: npt.NDArray[np.int64], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return mean and deviation of the pixels in [0, 1], (2, channels)."""
    pixels = math.prod(shape[:3])
    mean = sums_2C[0] / pixels / 255
    std = np.sqrt(np.maximum(sums_2C[1] / pixels / 255**2 - mean**2, 1e-6))
    return np.stack([mean, std]).astype(np.float32)


def _sums(images_NHWC: Pixels) -> npt.NDArray[np.int64]:
    """Return sum and sum of squares of each channel, (2, channels)."""
    # whole rows of pixels at a time: three channels alone would be too short a loop
    rows = images_NHWC.reshape(-1, images_NHWC.shape[2] * images_NHWC.shape[3])
    squares = np.square(rows, dtype=np.uint16)
    columns = np.stack([values.sum(axis=0, dtype=np.int64) for values in (rows, squares)])
    sums: npt.NDArray[np.int64] = columns.reshape(2, -1, images_NHWC.shape[3]).sum(axis=1)
    return sums
