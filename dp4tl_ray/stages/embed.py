"""Embed: pass the train images of a dataset through the surrogate, once for all scorers."""

import numpy as np

from dp4tl_ray.data.draws import draw_target
from dp4tl_ray.specs.steps import EmbedStep
from dp4tl_ray.stages.bench import Job, Metrics, StageError, images_of, load_network
from dp4tl_ray.training.inference import infer


def run_embed(spec: EmbedStep, job: Job) -> Metrics:
    """Write logits and features of the train images; no other split is ever looked at."""
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
    logits, features = infer(model, images_of(data), rows, job.worker)
    if not np.isfinite(logits).all():
        raise StageError("the surrogate's logits are not finite")
    job.bench.array("rows", rows)
    job.bench.array("logits", logits)
    job.bench.array("features", features)
    return {"num_examples": len(rows)}
