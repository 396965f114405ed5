"""Cluster: k-means on the source's features; reads no labels."""

import numpy as np

from dp4tl_ray.algorithms.kmeans import kmeans
from dp4tl_ray.specs.steps import ClusterStep
from dp4tl_ray.stages.bench import Job, Metrics, StageError
from dp4tl_ray.training.worker import seed_for


def run_cluster(spec: ClusterStep, job: Job) -> Metrics:
    """Write the centres, and the cluster of every source example."""
    features = job.inputs["source_embedding"].array("features")
    rng = np.random.default_rng(seed_for(spec.seed, "cluster"))
    wanted = spec.clustering
    try:
        found = kmeans(
            features,
            wanted.num_clusters,
            rng,
            algorithm=wanted.algorithm,
            num_iterations=wanted.num_iterations,
            device=job.worker.device,
        )
    except ValueError as error:
        raise StageError(str(error)) from error
    job.bench.array("centres", found.centres_KD)
    job.bench.array("cluster", found.cluster_N)
    sizes = np.bincount(found.cluster_N, minlength=wanted.num_clusters)
    return {
        "objective": found.objective,
        "largest": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
    }
