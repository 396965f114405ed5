"""What surrogate and pretraining have in common: a recipe, rows of the source, a network."""

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.collapse import collapse_alarm
from dp4tl_ray.specs.network import AnyNetwork
from dp4tl_ray.specs.pretraining import AnyTrained, Pretrained
from dp4tl_ray.specs.self_supervised import SelfSupervised
from dp4tl_ray.stages.bench import (
    Job,
    Metrics,
    StageError,
    images_of,
    num_classes,
    save_network,
    statistics,
)
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.examples import Examples
from dp4tl_ray.training.fit import fit
from dp4tl_ray.training.networks import Classifier, build_classifier
from dp4tl_ray.training.pretrained import PretrainedError, load_pretrained
from dp4tl_ray.training.recorder import DynamicsRecorder

Rows = npt.NDArray[np.int64]


def initialised(
    network: AnyNetwork, job: Job, *, outputs: int, group_size: int, seed: int
) -> Classifier:
    """Build a network for the source's images.

    Normalisation uses the statistics of the whole source, so that pruning changes nothing but the
    examples.
    """
    source = job.inputs["source"]
    return build_classifier(
        network,
        num_classes=outputs,
        image_size=images_of(source).shape[1],
        statistics=statistics(source),
        group_size=group_size,
        seed=seed,
    )


def train(
    recipe: AnyTrained,
    job: Job,
    rows: Rows,
    labels: Rows | None,
    outputs: int,
    seed: int,
    recorder: DynamicsRecorder | None = None,
) -> tuple[Classifier, Metrics]:
    """Train a network on rows of the source, and sound an alarm if it has learned nothing.

    Args:
        recipe: How.
        job: Gives the source, and a place for checkpoints.
        rows: Of the source, (N,).
        labels: Of these rows, in [0, outputs); None for a training without labels.
        outputs: Classes to tell apart; 0 builds no head.
        seed: Of weights, order and augmentation.
        recorder: Sees every example as it is learned.
    """
    group_size = recipe.batch_norm.group_size
    model = initialised(recipe.network, job, outputs=outputs, group_size=group_size, seed=seed)
    images = images_of(job.inputs["source"])
    checkpoint = Checkpoint(job.bench.checkpoint, job.bench.publish)
    examples = Examples(images, rows, labels)
    summary = fit(model, examples, recipe, seed, job.worker, checkpoint, recorder)
    metrics = summary.metrics()
    if isinstance(recipe, SelfSupervised):
        width = min(recipe.dim, model.num_features)
        metrics["alarm"] = collapse_alarm(**summary.facts, width=width)
    return model, metrics


def read_weights(spec: Pretrained, job: Job) -> Metrics:
    """Write a network with weights from elsewhere; return where they are from."""
    source = job.inputs["source"]
    try:
        model, facts = load_pretrained(
            spec,
            source_statistics=statistics(source),
            num_source_classes=num_classes(source),
            image_size=images_of(source).shape[1],
            group_size=1,
        )
    except PretrainedError as error:
        raise StageError(str(error)) from error
    if job.writes:
        save_network(job, model)
    return {"optimizer_steps": 0, "examples_seen": 0, **facts}
