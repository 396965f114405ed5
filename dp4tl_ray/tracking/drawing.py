"""What is put into a run beyond numbers: artifacts, tables, curves, pictures."""

import contextlib
from typing import Any

import numpy as np
import wandb

from dp4tl_ray.tracking.messages import Item, Overview


def attach(run: Any, item: Item, offline: bool) -> None:
    """Say that a run made or used an artifact.

    The client cannot use artifacts offline; the digests in a run's configuration say the same.
    """
    if offline and not item.made:
        return
    artifact = wandb.Artifact(item.name, type=item.kind, metadata=item.metadata)
    for name, path in item.files.items():
        artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    for name, uri in item.references.items():
        with contextlib.suppress(Exception):  # s3:// needs boto3; the metadata names the URI
            artifact.add_reference(uri, name=name, checksum=False)
    if item.made:
        run.log_artifact(artifact)
    else:
        run.use_artifact(artifact)


def draw(run: Any, overview: Overview) -> None:
    """Fill the summary run of a study."""
    charts: dict[str, Any] = {
        "results": wandb.Table(columns=[*overview.columns], data=[list(r) for r in overview.rows])
    }
    for title, (xs, ys, keys) in overview.curves.items():
        charts[f"curves/{title}"] = wandb.plot.line_series(
            xs=xs, ys=ys, keys=keys, title=title, xname="pruning_ratio"
        )
    for name, (counts, edges) in overview.scores.items():
        spread = np.asarray(counts), np.asarray(edges)
        charts[f"scores/{name}"] = wandb.Histogram(np_histogram=spread)
    for path in overview.pictures:
        charts[f"report/{path.stem}"] = wandb.Image(str(path))
    run.log(charts)
