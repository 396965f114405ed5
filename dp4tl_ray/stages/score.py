"""Score: give every unit of the source a number; higher is kept."""

from typing import assert_never

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.example_scores import el2n_scores, stratified_scores
from dp4tl_ray.algorithms.label_mapping import label_mapping_scores
from dp4tl_ray.algorithms.selection import Scores
from dp4tl_ray.specs.method import EL2N, LabelMapping, RandomClasses, RandomExamples
from dp4tl_ray.specs.steps import ScoreStep
from dp4tl_ray.stages.bench import Job, Metrics, num_classes
from dp4tl_ray.store import Artifact
from dp4tl_ray.training.worker import seed_for


def run_score(spec: ScoreStep, job: Job) -> Metrics:
    """Write the scores of the units, how ties go, and the order within units."""
    source = job.inputs["source"]
    labels = np.asarray(source.array("labels"))
    classes = num_classes(source)
    rng = np.random.default_rng(seed_for(spec.seed, "score"))
    within = np.random.default_rng(seed_for(spec.seed, "within classes")).random(len(labels))
    votes = None
    match spec.method:
        case RandomClasses():
            scores = Scores(rng.random(classes), np.zeros(classes), labels, within)
        case RandomExamples(stratified=stratified):
            drawn = rng.random(len(labels))
            scores = _example_scores(stratified_scores(drawn, labels) if stratified else drawn)
        case EL2N():
            logits = np.asarray(job.inputs["embed"].array("logits"))
            scores = _example_scores(el2n_scores(logits, labels))
        case LabelMapping(keep=keep):
            votes, mass = label_mapping_scores(np.asarray(job.inputs["embed"].array("logits")))
            sign = 1.0 if keep == "highest" else -1.0
            scores = Scores(sign * votes.astype(np.float64), sign * mass, labels, within)
        case _:
            assert_never(spec.method)
    for name in ("score_U", "tie_break_U", "unit_of_N", "priority_N"):
        job.bench.array(name, getattr(scores, name))
    if votes is None:
        return {"num_units": len(scores.score_U)}
    job.bench.array("votes_C", votes)
    return {"num_units": classes, "num_unvoted": int((votes == 0).sum())}


def _example_scores(score_N: npt.NDArray[np.float64]) -> Scores:
    """Make every example its own unit."""
    n = len(score_N)
    return Scores(score_N, np.zeros(n), np.arange(n), np.zeros(n))


def load_scores(artifact: Artifact) -> Scores:
    """Read what a score step wrote."""
    return Scores(
        *(
            np.asarray(artifact.array(n))
            for n in ("score_U", "tie_break_U", "unit_of_N", "priority_N")
        )
    )
