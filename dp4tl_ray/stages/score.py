"""Score: give every unit of the source a number; higher is kept."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dp4tl_ray.algorithms.combination import combine_scores
from dp4tl_ray.algorithms.selection import Scores
from dp4tl_ray.scoring.examples import score_examples
from dp4tl_ray.scoring.given import left_out_alarm
from dp4tl_ray.scoring.inputs import Clusters, Embedding, Floats, Ints, ScorerInputs
from dp4tl_ray.scoring.units import score_units
from dp4tl_ray.specs.example_methods import Combine, Given
from dp4tl_ray.specs.method import combined, within
from dp4tl_ray.specs.steps import ScoreStep
from dp4tl_ray.specs.unit_methods import UnitMethod
from dp4tl_ray.stages.bench import (
    Job,
    Metrics,
    StageError,
    free_memory,
    images_of,
    load_network,
    num_classes,
)
from dp4tl_ray.stages.listing import listing_of
from dp4tl_ray.store import Artifact
from dp4tl_ray.training.example_gradients import gradient_norms
from dp4tl_ray.training.recorder import Dynamics
from dp4tl_ray.training.worker import Worker

PARTS = ("score_U", "tie_break_U", "unit_of_N", "priority_N")


def run_score(spec: ScoreStep, job: Job) -> Metrics:
    """Write the scores of the units, how ties go, and the order of the examples within units."""
    rule = combined(spec.method)
    try:
        scores, votes, facts = _compute(spec, job) if rule is None else (*_combine(rule, job), {})
    except ValueError as error:
        raise StageError(str(error)) from error
    for name in PARTS:
        job.bench.array(name, getattr(scores, name))
    metrics: Metrics = {"num_units": len(scores.score_U), **facts}
    if isinstance(spec.method, Given):
        metrics["alarm"] = left_out_alarm(spec.method.path, scores.score_U)
    if votes is None:
        return metrics
    job.bench.array("votes_U", votes)
    return metrics | {"num_unvoted": int((votes == 0).sum())}


def _compute(spec: ScoreStep, job: Job) -> tuple[Scores, Ints | None, dict[str, float]]:
    """Score for one target, or for none where the method knows of none."""
    inputs, method = scorer_inputs(job.inputs, spec.seed, job.worker), spec.method
    if not isinstance(method, UnitMethod):
        score, tie_break = score_examples(method, inputs)
        return Scores(score, tie_break, np.arange(len(score)), np.zeros(len(score))), None, {}
    units = score_units(method, inputs)
    if (inner := within(method)) is None:
        priority = inputs.rng("within classes").random(len(inputs.labels))
    else:
        of_inner = replace(inputs, clusters=_clusters(job.inputs.get("within_clusters")))
        priority, _ = score_examples(inner, of_inner)
    empty = np.bincount(units.unit_of, minlength=len(units.score)) == 0
    score = np.where(empty, -np.inf, units.score)  # there is nothing to keep
    return Scores(score, units.tie_break, units.unit_of, priority), units.votes, units.facts


def _combine(rule: Combine, job: Job) -> tuple[Scores, Ints | None]:
    """Make one score of the scores for several targets."""
    names = sorted(name for name in job.inputs if name.startswith("score_"))
    artifacts = [job.inputs[name] for name in names]
    each = [load_scores(artifact) for artifact in artifacts]
    score, tie_break = combine_scores(
        np.stack([s.score_U for s in each]), np.stack([s.tie_break_U for s in each]), rule
    )
    priority = each[0].priority_N
    if any(not np.array_equal(s.priority_N, priority) for s in each):
        order = np.stack([s.priority_N for s in each])
        priority, _ = combine_scores(order, np.zeros_like(order), rule)
    votes = None
    if all("votes_U.npy" in artifact.manifest.files for artifact in artifacts):
        votes = sum((np.asarray(a.array("votes_U")) for a in artifacts), np.zeros(1, np.int64))
    return Scores(score, tie_break, each[0].unit_of_N, priority), votes


def scorer_inputs(found: Mapping[str, Artifact], seed: int, worker: Worker) -> ScorerInputs:
    """Open what a score step is given, by role."""
    source = found["source"]
    labels = np.asarray(source.array("labels"))
    surrogate = found.get("surrogate")
    return ScorerInputs(
        labels=labels,
        num_classes=num_classes(source),
        seed=seed,
        limit_bytes=free_memory() / 2,
        device=worker.device,
        ids=lambda: list(source.json("ids")),
        listing=lambda: listing_of(source),
        source=embedding(found.get("source_embedding")),
        target=embedding(found.get("target_embedding")),
        clusters=_clusters(found.get("clusters")),
        dynamics=_dynamics(surrogate),
        gradient_norms=lambda: _gradient_norms(surrogate, source, worker),
        subsets=_subsets(found),
    )


def embedding(artifact: Artifact | None) -> Embedding | None:
    """Open what an embed step wrote."""
    if artifact is None:
        return None
    names = ("features", "logits", "labels")
    return Embedding(*(artifact.array(name) for name in names))


def _clusters(artifact: Artifact | None) -> Clusters | None:
    if artifact is None:
        return None
    return Clusters(np.asarray(artifact.array("centres")), np.asarray(artifact.array("cluster")))


def _dynamics(surrogate: Artifact | None) -> Dynamics | None:
    """Open the histories that a surrogate recorded, if it did."""
    if surrogate is None or "correct_EN.npy" not in surrogate.manifest.files:
        return None
    divergence = "divergence_EN.npy" in surrogate.manifest.files
    return Dynamics(
        surrogate.array("correct_EN"),
        surrogate.array("margin_EN"),
        surrogate.array("true_probability_EN"),
        surrogate.array("divergence_EN") if divergence else None,
    )


def _gradient_norms(surrogate: Artifact | None, source: Artifact, worker: Worker) -> Floats:
    assert surrogate is not None
    images, labels = images_of(source), np.asarray(source.array("labels"))
    model = load_network(surrogate, image_size=images.shape[1])
    return gradient_norms(model, images, np.arange(len(labels)), labels, worker)


def _subsets(found: Mapping[str, Artifact]) -> dict[int, tuple[Ints, float]] | None:
    """Read what each random half of the classes led to on the target's validation images."""
    numbers = sorted(int(n.removeprefix("subset_")) for n in found if n.startswith("subset_"))
    if not numbers:
        return None
    return {
        n: (
            np.asarray(found[f"subset_{n}"].array("kept_indices")),
            float(found[f"transfer_{n}"].manifest.metrics["val_accuracy"] or 0.0),
        )
        for n in numbers
    }


def load_scores(artifact: Artifact) -> Scores:
    """Read what a score step wrote."""
    return Scores(*(np.asarray(artifact.array(name)) for name in PARTS))
