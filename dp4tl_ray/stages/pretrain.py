"""Pretrain: train a network on the kept part of the source; fewer examples, fewer steps."""

import numpy as np

from dp4tl_ray.specs.network import BatchNorm
from dp4tl_ray.specs.steps import PretrainStep
from dp4tl_ray.stages.bench import (
    Job,
    Metrics,
    StageError,
    images_of,
    num_classes,
    save_network,
    statistics,
)
from dp4tl_ray.stages.prune import load_kept
from dp4tl_ray.store import Artifact
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.fit import Examples, fit
from dp4tl_ray.training.networks import Classifier, build_classifier


def _initialised(spec: PretrainStep, source: Artifact, outputs: int) -> Classifier:
    """Build the network.

    Normalisation uses the statistics of the whole source, so that pruning changes nothing but the
    examples.
    """
    batch_norm = spec.pretraining.batch_norm if spec.pretraining else BatchNorm()
    return build_classifier(
        spec.network,
        num_classes=outputs,
        image_size=images_of(source).shape[1],
        statistics=statistics(source),
        group_size=batch_norm.group_size,
        seed=spec.seed,
    )


def run_pretrain(spec: PretrainStep, job: Job) -> Metrics:
    """Train on the kept examples, or leave the network untrained, and write the weights."""
    source = job.inputs["source"]
    all_labels = np.asarray(source.array("labels"))
    kept = load_kept(job.inputs.get("prune"), len(all_labels))
    labels, outputs = all_labels[kept], num_classes(source)
    if spec.pretraining is None:
        if job.writes:
            save_network(job, _initialised(spec, source, outputs))
        return {"optimizer_steps": 0, "examples_seen": 0}
    if len(kept) < spec.pretraining.batch_size:
        raise StageError(
            f"{len(kept)} examples are kept, fewer than one batch of "
            f"{spec.pretraining.batch_size}; prune less or lower pretraining.batch_size"
        )
    if spec.pretraining.head == "compact":
        names, labels = np.unique(labels, return_inverse=True)
        outputs = len(names)
    model = _initialised(spec, source, outputs)
    examples = Examples(images_of(source), kept, labels)
    checkpoint = Checkpoint(job.bench.checkpoint, job.bench.publish)
    summary = fit(model, examples, spec.pretraining, spec.seed, job.worker, checkpoint)
    if job.writes:
        save_network(job, model)
    return summary.metrics()
