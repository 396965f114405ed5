"""Pretrain: train a network on the kept part of the source; fewer examples, fewer steps."""

import numpy as np

from dp4tl_ray.data.draws import Rows
from dp4tl_ray.specs.network import BatchNorm
from dp4tl_ray.specs.pretraining import Pretrained, Supervised
from dp4tl_ray.specs.steps import PretrainStep
from dp4tl_ray.stages.bench import Job, Metrics, StageError, images_of, num_classes, save_network
from dp4tl_ray.stages.prune import load_kept
from dp4tl_ray.stages.train import initialised, read_weights, train


def run_pretrain(spec: PretrainStep, job: Job) -> Metrics:
    """Train on the kept examples, or leave the network untrained, and write the weights."""
    recipe = spec.pretraining
    if recipe is None:
        group_size = BatchNorm().group_size
        if job.writes:
            model = initialised(spec.network, job, outputs=0, group_size=group_size, seed=spec.seed)
            save_network(job, model)
        return {"optimizer_steps": 0, "examples_seen": 0}
    if isinstance(recipe, Pretrained):
        return read_weights(recipe, spec.fingerprint, job)
    kept = load_kept(job.inputs.get("prune"), len(images_of(job.inputs["source"])))
    labels, outputs = _labels(recipe, job, kept) if isinstance(recipe, Supervised) else (None, 0)
    model, metrics = train(recipe, job, kept, labels, outputs, spec.seed)
    if job.writes:
        save_network(job, model)
    return metrics


def _labels(recipe: Supervised, job: Job, kept: Rows) -> tuple[Rows, int]:
    """Return the labels of the kept examples, and how many classes the head tells apart."""
    source = job.inputs["source"]
    labels, outputs = np.asarray(source.array("labels"))[kept], num_classes(source)
    names, compact = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise StageError(
            f"the {len(kept)} examples that are kept are of {len(names)} class(es); supervised "
            "pretraining needs at least 2"
        )
    return (compact, len(names)) if recipe.head == "compact" else (labels, outputs)
