"""What surrogate and pretraining have in common: a recipe, rows of the source, a network."""

from collections.abc import Mapping

from dp4tl_ray.algorithms.attacks import overfitting_alarm
from dp4tl_ray.algorithms.collapse import collapse_alarm
from dp4tl_ray.data.draws import Rows
from dp4tl_ray.specs.adversarial import Standard
from dp4tl_ray.specs.network import AnyNetwork
from dp4tl_ray.specs.pretraining import AnyTrained, Pretrained
from dp4tl_ray.specs.self_supervised import QUEUE_SHARE, MoCoV2, SelfSupervised, SimSiam
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
    _check_size(recipe, len(rows))
    group_size = recipe.batch_norm.group_size
    model = initialised(recipe.network, job, outputs=outputs, group_size=group_size, seed=seed)
    images = images_of(job.inputs["source"])
    checkpoint = Checkpoint(job.bench.checkpoint, job.bench.publish)
    examples = Examples(images, rows, labels)
    summary = fit(model, examples, recipe, seed, job.worker, checkpoint, recorder)
    metrics = summary.metrics()
    if isinstance(recipe, SelfSupervised):
        metrics["alarm"] = _collapse_alarm(recipe, model, summary.facts)
    elif recipe.adversarial != Standard():
        metrics["alarm"] = overfitting_alarm(summary.facts["attacked_accuracy_drop"])
    return model, metrics


def _collapse_alarm(recipe: SelfSupervised, model: Classifier, facts: Mapping[str, float]) -> str:
    """Say whether embeddings fill less of the space than they could."""
    limits = [recipe.dim, model.num_features, int(facts["num_embeddings"]) - 1]
    if isinstance(recipe, SimSiam):
        limits.append(recipe.bottleneck)
    return collapse_alarm(facts["embedding_spread"], facts["embedding_rank"], min(limits))


def _check_size(recipe: AnyTrained, kept: int) -> None:
    """Refuse to train on fewer examples than a batch, or on too few for a queue."""
    if kept < recipe.batch_size:
        raise StageError(
            f"{kept} examples are kept, fewer than one batch of {recipe.batch_size}; prune less "
            f"or lower the batch_size of {recipe.objective}"
        )
    if isinstance(recipe, MoCoV2) and recipe.queue_size * QUEUE_SHARE > kept:
        raise StageError(
            f"queue_size {recipe.queue_size} is more than a quarter of the {kept} examples that "
            f"are kept; at most {kept // QUEUE_SHARE}"
        )


def read_weights(spec: Pretrained, fingerprint: str, job: Job) -> Metrics:
    """Write a network with weights from elsewhere; return where they are from.

    Args:
        spec: Where they are.
        fingerprint: Checksum of their file when the study was planned; empty for what is no file.
        job: Gives the source.
    """
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
    if fingerprint and facts["weights_sha256"] != fingerprint:
        raise StageError(
            f"weights {spec.weights} have changed since the study was planned; run it again"
        )
    if job.writes:
        save_network(job, model)
    return {"optimizer_steps": 0, "examples_seen": 0, **facts}
