"""What each stage of a plan is asked to do; together with its inputs, a step's identity."""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.adversarial import Checks
from dp4tl_ray.specs.base import Spec
from dp4tl_ray.specs.data import Source, Target
from dp4tl_ray.specs.example_methods import Clustering
from dp4tl_ray.specs.method import Method
from dp4tl_ray.specs.network import Network
from dp4tl_ray.specs.pretraining import Trained
from dp4tl_ray.specs.selector import Selector
from dp4tl_ray.specs.transfer import Transfer

Stage = Literal["data", "surrogate", "embed", "cluster", "score", "prune", "pretrain", "finetune"]
STAGES: tuple[Stage, ...] = (
    "data",
    "surrogate",
    "embed",
    "cluster",
    "score",
    "prune",
    "pretrain",
    "finetune",
)


class DataStep(Spec):
    """Bring a dataset into the store as arrays."""

    stage: Literal["data"] = "data"
    dataset: Source | Target
    """Dataset to read or render."""
    role: Literal["source", "target"]
    """A source is read for training only; a target with its splits."""
    fingerprint: str = ""
    """Names, sizes and times of the files that the dataset lies in, which identify it wherever it
    lies; empty for embedded ones."""


class SurrogateStep(Spec):
    """Train the surrogate on the whole source, or read its weights."""

    stage: Literal["surrogate"] = "surrogate"
    surrogate: Trained
    """Recipe, or where the weights are."""
    fingerprint: str = ""
    """Checksum of a file of weights."""
    record: Literal["nothing", "dynamics", "divergences"] = "nothing"
    """Histories of every example that are kept while it trains, as far as a method needs them."""
    seed: int
    """Seed of weights, order and augmentation."""


class EmbedStep(Spec):
    """Pass a dataset's train images through the surrogate."""

    stage: Literal["embed"] = "embed"
    shots: int | None
    """Train images per class, drawn by the seed; null takes all."""
    seed: int
    """Seed of the draw; 0 where everything is taken."""


class ClusterStep(Spec):
    """Cluster the source's features, once for all methods that need clusters."""

    stage: Literal["cluster"] = "cluster"
    clustering: Clustering
    """Number of clusters and algorithm."""
    seed: int
    """Seed of the first centres and of the order of batches."""


class ScoreStep(Spec):
    """Score the units of the source."""

    stage: Literal["score"] = "score"
    method: Method
    """Pruning method; how it selects is left to the prune step."""
    fingerprint: str = ""
    """Version of a plug-in, or checksum of a file of scores or of a list."""
    seed: int
    """Seed of random methods and of the order within units."""


class PruneStep(Spec):
    """Turn scores and a ratio into kept examples."""

    stage: Literal["prune"] = "prune"
    pruning_ratio: float
    """Share of the examples removed."""
    select: Selector
    """How scores become an order of the examples."""
    seed: int
    """Seed of a selector that draws; 0 for the others."""


class PretrainStep(Spec):
    """Pretrain a network on the kept examples, or only initialise it."""

    stage: Literal["pretrain"] = "pretrain"
    pretraining: Trained | None
    """Recipe, or where the weights are; null leaves the network as initialised."""
    fingerprint: str = ""
    """Checksum of a file of weights."""
    network: Network
    """Architecture."""
    seed: int
    """Seed of weights, order and augmentation."""


class FinetuneStep(Spec):
    """Transfer to a target and look at its test split once."""

    stage: Literal["finetune"] = "finetune"
    shots: int | None
    """Train images per class, drawn by the seed; null takes all."""
    transfer: Transfer
    """Protocol."""
    robustness: Checks = ()
    """Attacks on the test images."""
    seed: int
    """Seed of the target draw and of the transfer."""


StepSpec = Annotated[
    DataStep
    | SurrogateStep
    | EmbedStep
    | ClusterStep
    | ScoreStep
    | PruneStep
    | PretrainStep
    | FinetuneStep,
    Field(discriminator="stage"),
]
