"""Pruning methods that score single examples. A score is high where an example should be kept."""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.base import BareName, Count, Options, Positive, Spec
from dp4tl_ray.specs.selector import ExampleSelector, Gumbel, Top

Combine = Literal["mean", "max", "round_robin", "soft_min"]
"""How the scores of several targets become one: standard scores are averaged or their largest is
taken, percentiles give a smooth smallest, or the targets take turns."""


class Clustering(Spec):
    """k-means on the surrogate's features of the source; reads no labels."""

    num_clusters: Count = 1000
    """Clusters; at most one per source example."""
    algorithm: Literal["mini_batch", "lloyd"] = "mini_batch"
    """lloyd is exact and passes over the source in every iteration."""
    num_iterations: Count = 20
    """Passes of lloyd."""


class ExampleMethod(Spec):
    """What all methods that score examples have in common."""

    surrogate: str | None = None
    """Name of one of the study's `surrogates` to score by; null takes its `surrogate`."""
    select: ExampleSelector = Top()
    """How scores become kept examples; `dp4tl list selectors`."""


class TargetAwareExampleMethod(ExampleMethod):
    """A method whose scores differ between targets."""

    combine: Combine | None = None
    """null keeps a subset for each target; mean, max, round_robin and soft_min keep one for all
    targets of the study."""


class RandomExamples(ExampleMethod):
    """Keep examples drawn at random: the control for example-level methods."""

    method: Literal["random_examples"] = "random_examples"


class EL2N(ExampleMethod):
    """Keep the largest error norms |softmax - one-hot| of the surrogate (Paul et al. 2021)."""

    method: Literal["el2n"] = "el2n"


class GraNd(ExampleMethod):
    """Keep the largest gradient norms of the loss, at the trained surrogate (Paul et al. 2021)."""

    method: Literal["grand"] = "grand"
    parameters: Literal["head", "all"] = "head"
    """head: in closed form from logits and features; all: one backward pass per example."""


class Forgetting(ExampleMethod):
    """Keep what the surrogate forgot most often while training (Toneva et al. 2019).

    An example that it never learned counts as forgotten infinitely often.
    """

    method: Literal["forgetting"] = "forgetting"


class AUM(ExampleMethod):
    """Area under the margin: mean over epochs of the true logit less the largest other one.

    Pleiss et al. 2020.
    """

    method: Literal["aum"] = "aum"
    keep: Literal["hard", "easy"] = "hard"
    """hard keeps small margins, among which mislabelled examples are; easy keeps large ones."""


class DynUnc(ExampleMethod):
    """Keep what the surrogate was undecided about: deviation of the true probability over epochs.

    He et al. 2023, Dyn-Unc.
    """

    method: Literal["dyn_unc"] = "dyn_unc"
    window: Annotated[int, Field(ge=2, le=10_000)] = 5
    """Epochs over which a deviation is taken; the mean over all windows is the score."""


class TDDS(ExampleMethod):
    """Keep what moves the prediction most, and unevenly, over the epochs (Zhang et al. 2024)."""

    method: Literal["tdds"] = "tdds"
    window: Annotated[int, Field(ge=3, le=10_000)] = 5
    """Epochs over which the spread of the movement is taken."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Weight of the last window; earlier ones fall geometrically."""


class Uncertainty(ExampleMethod):
    """Keep what the trained surrogate is least sure of (Coleman et al. 2020); reads no labels."""

    method: Literal["uncertainty"] = "uncertainty"
    measure: Literal["entropy", "margin", "least_confidence"] = "entropy"
    """margin: the smallest gap between the two largest probabilities."""


class Moderate(ExampleMethod):
    """Keep the examples at the median distance from the centre of their class (Xia et al. 2023)."""

    method: Literal["moderate"] = "moderate"
    scope: Literal["class", "source"] = "class"
    """Whether the median is taken in each class, or over the source, as the released code does."""


class Herding(ExampleMethod):
    """Keep, class by class, the examples whose mean is nearest to the class's (Welling 2009)."""

    method: Literal["herding"] = "herding"


class KCenter(ExampleMethod):
    """Keep, class by class, the example farthest from all kept ones (Sener & Savarese 2018)."""

    method: Literal["k_center"] = "k_center"


class FacilityLocation(ExampleMethod):
    """Keep, class by class, the examples that are most similar to all others of the class."""

    method: Literal["facility_location"] = "facility_location"


class Prototypes(ExampleMethod):
    """Keep by the distance from the nearest of k-means' prototypes (Sorscher et al. 2022).

    Reads no labels.
    """

    method: Literal["prototypes"] = "prototypes"
    keep: Literal["far", "near"] = "far"
    """far keeps hard examples, good where data is plentiful; near keeps easy ones."""
    clustering: Clustering = Clustering()
    """Prototypes."""


class SemDeDup(ExampleMethod):
    """Remove the nearest duplicates first, cluster by cluster (Abbas et al. 2023); no labels."""

    method: Literal["semdedup"] = "semdedup"
    clustering: Clustering = Clustering()
    """Clusters in which duplicates are looked for."""


class NormSim(TargetAwareExampleMethod):
    """Keep what is most similar to the target's train images (Wang et al. 2024, NormSim)."""

    method: Literal["normsim"] = "normsim"
    norm: Literal["inf", "2"] = "inf"
    """inf: the largest cosine; 2: the root mean square of all."""


class Retrieval(TargetAwareExampleMethod):
    """Keep the nearest neighbours of the target's train images, the images taking turns."""

    method: Literal["retrieval"] = "retrieval"
    num_neighbors: Count = 200
    """Places per target image; what is in none of these lists follows by its largest cosine."""


class DomainClassifier(TargetAwareExampleMethod):
    """Keep what a logistic regression takes for the target (cf. Chakraborty et al. 2020)."""

    method: Literal["domain_classifier"] = "domain_classifier"
    l2: Positive = 1e-3
    """Strength of the penalty."""
    num_negatives: Count = 10_000
    """Source examples drawn to tell the target from."""


class DSIR(TargetAwareExampleMethod):
    """Importance resampling over k-means codes: P(code | target) / P(code | source).

    Xie et al. 2023, DSIR, with clusters in place of hashed n-grams.
    """

    method: Literal["dsir"] = "dsir"
    select: ExampleSelector = Gumbel()
    """How scores become kept examples; the default resamples, as the authors do."""
    smoothing: Positive = 1.0
    """Count added to every code."""
    clustering: Clustering = Clustering()
    """Codes."""


class GradientMatching(TargetAwareExampleMethod):
    """Keep the examples whose mean gradient follows the target's (Killamsetty et al. 2021).

    Gradients are those of the head, with the target's train images as validation; every kept
    example weighs the same, as it will in pretraining.
    """

    method: Literal["gradient_matching"] = "gradient_matching"
    block_size: Annotated[int, Field(ge=2, le=1_000_000)] = 2048
    """Examples that are matched together, drawn at random; memory grows with its square."""


class ScoresFile(ExampleMethod):
    """Scores from elsewhere: an .npz with `ids` and `scores`, joined by id. Every example of the
    source needs one; others may have one, too."""

    method: Literal["scores_file"] = "scores_file"
    path: Annotated[str, Field(min_length=1)]
    """File that every machine can read; its content is part of the identity."""


class Given(ExampleMethod):
    """Keep a list that comes from elsewhere, such as `dp4tl export` writes; its first examples are
    the most wanted.

    A ratio r keeps the first round((1 - r) N) of the list, N the examples of the source. A list
    that is shorter than that is refused; one of exactly this length is kept as it is. What
    `exclude` and `corrupt: skip` left out of the source counts as not listed, with an alarm.
    """

    method: Literal["given"] = "given"
    path: Annotated[str, Field(min_length=1)]
    """File that every machine can read: .txt of ids, one per line; .csv with a column id, or else
    index; .npy of indices; .json of `dp4tl export --format dp4tl`. An index counts what the
    source's dataset lists, before `exclude` and `corrupt: skip` leave some out. A relative path
    starts at the working directory, not at `data_root`. Its content is part of the identity."""
    select: Annotated[Top, BareName("rule")] = Top()
    """The list is the order."""


class ExamplePlugin(TargetAwareExampleMethod):
    """A scorer of another package, found through the entry point group `dp4tl_ray.scorers`."""

    method: Literal["plugin"] = "plugin"
    scorer: Annotated[str, Field(min_length=1)]
    """Name of the entry point."""
    target_aware: bool = False
    """Whether it also receives the embedded target."""
    options: Options = Field(default={})
    """Keyword arguments of the scorer."""


AnyExampleMethod = (
    RandomExamples
    | EL2N
    | GraNd
    | Forgetting
    | AUM
    | DynUnc
    | TDDS
    | Uncertainty
    | Moderate
    | Herding
    | KCenter
    | FacilityLocation
    | Prototypes
    | SemDeDup
    | NormSim
    | Retrieval
    | DomainClassifier
    | DSIR
    | GradientMatching
    | ScoresFile
    | Given
    | ExamplePlugin
)
Within = Annotated[AnyExampleMethod, Field(discriminator="method"), BareName("method")]
"""Method that orders the examples inside a unit."""
