"""Surrogate: train a small network on the whole source, or read one; it is used only to score."""

import numpy as np

from dp4tl_ray.specs.pretraining import Pretrained, Supervised
from dp4tl_ray.specs.steps import SurrogateStep
from dp4tl_ray.stages.bench import Job, Metrics, images_of, num_classes, save_network
from dp4tl_ray.stages.train import read_weights, train
from dp4tl_ray.training.recorder import Dynamics, DynamicsRecorder


def run_surrogate(spec: SurrogateStep, job: Job) -> Metrics:
    """Train on every source example, and write the weights."""
    source, recipe = job.inputs["source"], spec.surrogate
    if isinstance(recipe, Pretrained):
        return read_weights(recipe, spec.fingerprint, job)
    rows, labels, outputs = np.arange(len(images_of(source))), None, 0
    recorder = None
    if isinstance(recipe, Supervised):
        labels, outputs = np.asarray(source.array("labels")), num_classes(source)
        if spec.record != "nothing":
            recorder = DynamicsRecorder(
                len(rows), outputs, job.worker, divergences=spec.record == "divergences"
            )
    model, metrics = train(recipe, job, rows, labels, outputs, spec.seed, recorder)
    if job.writes:
        save_network(job, model)
        if recorder is not None:
            _save_dynamics(job, recorder.dynamics())
    return metrics


def _save_dynamics(job: Job, dynamics: Dynamics) -> None:
    """Write the histories of the examples, (E, N)."""
    for name, history in vars(dynamics).items():
        if history is not None:
            job.bench.array(name, history)
