"""Embed: pass the train images of a dataset through the surrogate, once for all scorers."""

import contextlib

import numpy as np
import torch

from dp4tl_ray.data.draws import draw_target
from dp4tl_ray.specs.steps import EmbedStep
from dp4tl_ray.stages.bench import Job, Metrics, StageError, images_of, load_network
from dp4tl_ray.training.inference import infer_parts


def run_embed(spec: EmbedStep, job: Job) -> Metrics:
    """Write logits, features and labels of the train images; no other split is looked at."""
    data, surrogate = job.inputs["data"], job.inputs["surrogate"]
    labels, splits = np.asarray(data.array("labels")), np.asarray(data.array("splits"))
    model = load_network(surrogate, image_size=images_of(data).shape[1])
    if spec.shots is None:
        rows = np.flatnonzero(splits == 0)
    else:
        try:
            rows = draw_target(labels, splits, spec.shots, spec.seed).train
        except ValueError as error:
            raise StageError(str(error)) from error
    not_finite = torch.zeros((), dtype=torch.int64, device=job.worker.device)
    with contextlib.ExitStack() as stack:
        if job.writes:
            logits, features = (
                stack.enter_context(job.bench.growing(name, (len(rows), columns), np.float32))
                for name, columns in (
                    ("logits", model.num_classes),
                    ("features", model.num_features),
                )
            )
        for part, z, h in infer_parts(model, images_of(data), rows, job.worker):
            logits[part], features[part] = z, h
            finite = np.isfinite(z).all(axis=1) & np.isfinite(h).all(axis=1)
            if not finite.all() and not not_finite:
                not_finite += 1 + part.start + int(finite.argmin())
        # only rank 0 has looked, and only when the others are through may it raise
        job.worker.sum_([not_finite])
        if not_finite:
            name = data.json("ids")[rows[int(not_finite) - 1]]
            raise StageError(f"the surrogate's output for example {name!r} is not finite")
    if job.writes:
        job.bench.array("rows", rows)
        job.bench.array("labels", labels[rows])
    return {"num_examples": len(rows)}
