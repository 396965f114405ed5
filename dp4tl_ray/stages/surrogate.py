"""Surrogate: train a small network on the whole source; it is used only to score."""

import numpy as np

from dp4tl_ray.specs.steps import SurrogateStep
from dp4tl_ray.stages.bench import Job, Metrics, images_of, num_classes, save_network, statistics
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.fit import Examples, fit
from dp4tl_ray.training.networks import build_classifier
from dp4tl_ray.training.recorder import Dynamics, DynamicsRecorder


def run_surrogate(spec: SurrogateStep, job: Job) -> Metrics:
    """Train on every source example and write the weights."""
    source = job.inputs["source"]
    labels = np.asarray(source.array("labels"))
    model = build_classifier(
        spec.surrogate.network,
        num_classes=num_classes(source),
        image_size=images_of(source).shape[1],
        statistics=statistics(source),
        group_size=spec.surrogate.batch_norm.group_size,
        seed=spec.seed,
    )
    examples = Examples(images_of(source), np.arange(len(labels)), labels)
    checkpoint = Checkpoint(job.bench.checkpoint, job.bench.publish)
    recorder = None
    if spec.record != "nothing":
        recorder = DynamicsRecorder(
            len(labels), num_classes(source), job.worker, divergences=spec.record == "divergences"
        )
    summary = fit(model, examples, spec.surrogate, spec.seed, job.worker, checkpoint, recorder)
    if job.writes:
        save_network(job, model)
        if recorder is not None:
            _save_dynamics(job, recorder.dynamics())
    return summary.metrics()


def _save_dynamics(job: Job, dynamics: Dynamics) -> None:
    """Write the histories of the examples, (E, N)."""
    for name, history in vars(dynamics).items():
        if history is not None:
            job.bench.array(name, history)
