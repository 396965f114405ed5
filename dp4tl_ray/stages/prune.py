"""Prune: turn scores and a ratio into the list of kept examples."""

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.selection import Scores
from dp4tl_ray.scoring.given import shortage
from dp4tl_ray.scoring.select import select
from dp4tl_ray.specs.example_methods import Given
from dp4tl_ray.specs.steps import PruneStep, ScoreStep
from dp4tl_ray.stages.bench import Job, Metrics, StageError, free_memory, num_classes
from dp4tl_ray.stages.score import embedding, load_scores
from dp4tl_ray.store import Artifact
from dp4tl_ray.training.worker import seed_for


def run_prune(spec: PruneStep, job: Job) -> Metrics:
    """Write the kept rows of the source, ascending."""
    source, score = job.inputs["source"], job.inputs["score"]
    labels, scores = np.asarray(source.array("labels")), load_scores(score)
    if len(scores.unit_of_N) != len(labels):
        raise StageError(
            f"the scores are of {len(scores.unit_of_N)} examples, the source has {len(labels)}"
        )
    _check_list(score, scores, spec.pruning_ratio)
    features = embedding(job.inputs.get("source_embedding"))
    rng = np.random.default_rng(seed_for(spec.seed, "select"))
    try:
        kept = select(
            spec.select, scores, spec.pruning_ratio, labels, features, rng, free_memory() / 2
        )
    except ValueError as error:
        raise StageError(str(error)) from error
    kept_classes = np.unique(labels[kept])
    job.bench.array("kept_indices", kept)
    metrics: Metrics = {
        "num_source": len(labels),
        "num_kept": len(kept),
        "num_classes_kept": len(kept_classes),
        "class_ratio": 1 - len(kept_classes) / num_classes(source),
    }
    if "votes_U.npy" in score.manifest.files:
        votes = np.asarray(score.array("votes_U"))
        metrics["unvoted_share"] = float((votes[np.unique(scores.unit_of_N[kept])] == 0).mean())
    return metrics


def _check_list(score: Artifact, scores: Scores, pruning_ratio: float) -> None:
    """Refuse a list of examples that a ratio keeps more than all of."""
    spec = score.manifest.spec
    assert isinstance(spec, ScoreStep)
    if isinstance(spec.method, Given):
        listed = int(np.isfinite(scores.score_U).sum())
        if problem := shortage(spec.method.path, listed, len(scores.score_U), pruning_ratio):
            raise StageError(problem)


def load_kept(pruned: Artifact | None, num_source: int) -> npt.NDArray[np.int64]:
    """Return the kept rows; all of them where nothing was pruned."""
    return np.arange(num_source) if pruned is None else np.asarray(pruned.array("kept_indices"))
