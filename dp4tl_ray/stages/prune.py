"""Prune: turn scores and a ratio into the list of kept examples."""

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.selection import kept_indices
from dp4tl_ray.specs.steps import PruneStep
from dp4tl_ray.stages.bench import Job, Metrics, StageError, num_classes
from dp4tl_ray.stages.score import load_scores
from dp4tl_ray.store import Artifact


def run_prune(spec: PruneStep, job: Job) -> Metrics:
    """Write the kept rows of the source, ascending."""
    source, score = job.inputs["source"], job.inputs["score"]
    labels = np.asarray(source.array("labels"))
    kept = kept_indices(load_scores(score), spec.pruning_ratio, spec.whole_units)
    kept_classes = np.unique(labels[kept])
    if len(kept_classes) < 2:
        raise StageError(
            f"pruning_ratio {spec.pruning_ratio:g} keeps {len(kept)} examples of "
            f"{len(kept_classes)} class(es); supervised pretraining needs at least 2 classes"
        )
    job.bench.array("kept_indices", kept)
    metrics: Metrics = {
        "num_source": len(labels),
        "num_kept": len(kept),
        "num_classes_kept": len(kept_classes),
        "class_ratio": 1 - len(kept_classes) / num_classes(source),
    }
    if "votes_C.npy" in score.manifest.files:
        votes = np.asarray(score.array("votes_C"))
        metrics["unvoted_share"] = float((votes[kept_classes] == 0).mean())
    return metrics


def load_kept(pruned: Artifact | None, num_source: int) -> npt.NDArray[np.int64]:
    """Return the kept rows; all of them where nothing was pruned."""
    return np.arange(num_source) if pruned is None else np.asarray(pruned.array("kept_indices"))
