"""Pruning methods that score units, the classes or clusters of a source; higher is kept."""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.base import BareName, NotNegative, Spec
from dp4tl_ray.specs.example_methods import Clustering, Combine, Within
from dp4tl_ray.specs.pretraining import Supervised
from dp4tl_ray.specs.selector import Top, UnitSelector
from dp4tl_ray.specs.transfer import LinearProbe


class UnitMethod(Spec):
    """What all methods that score classes or clusters have in common."""

    surrogate: str | None = None
    """Name of one of the study's `surrogates` to score by; null takes its `surrogate`."""
    select: UnitSelector = Top()
    """How scores become kept examples; `dp4tl list selectors`."""
    within: Within | None = None
    """Method that orders the examples of a unit that is kept in part; null draws them."""


class TargetAwareUnitMethod(UnitMethod):
    """A method whose scores differ between targets."""

    combine: Combine | None = None
    """null keeps a subset for each target; mean, max, round_robin and soft_min keep one for all
    targets of the study."""


class Mapping(TargetAwareUnitMethod):
    """Transport of the target's train images onto units of the source."""

    temperature: NotNegative = 0.0
    """0: every image votes for one unit, as in the paper; above: it spreads over several."""
    capacity: Annotated[float, Field(gt=1, le=1e9)] | None = None
    """Largest share of the images that a unit may take, in units of its share of the source; needs
    a temperature. null does not bound it."""
    prior_correction: bool = False
    """Divide by the unit's share of the source (Ngiam et al. 2018, DATL)."""


class RandomClasses(UnitMethod):
    """Keep classes drawn at random, the last one in part: the control for class-level methods."""

    method: Literal["random_classes"] = "random_classes"


class LabelMapping(Mapping):
    """Keep the classes that the surrogate predicts for the target's train images (the paper, LM).

    A class's score is the number of target train images whose predicted class it is, or with a
    temperature of 1 the sum of their probabilities. Ties, of which zero votes is the most frequent,
    go by that sum.
    """

    method: Literal["label_mapping"] = "label_mapping"
    keep: Literal["highest", "lowest"] = "highest"
    """lowest keeps the classes with the fewest votes: the opposite of the method, as a control."""


class FeatureMapping(Mapping):
    """Keep the clusters that are nearest to the target's train images (the paper, FM).

    Clusters are k-means' on the surrogate's features; no source label is read. A temperature is in
    units of the mean squared distance of a target image from its nearest cluster.
    """

    method: Literal["feature_mapping"] = "feature_mapping"
    clustering: Clustering = Clustering()
    """Pseudo-classes."""


class LabelAwareMapping(TargetAwareUnitMethod):
    """Label mapping that also reads the target's labels: what does a class tell about them?"""

    method: Literal["label_aware_mapping"] = "label_aware_mapping"
    statistic: Literal["counts", "mutual_information"] = "counts"
    """counts: Bayesian label mapping (Cai et al. 2024); mutual_information: the class's share of
    the information between predicted class and target label."""
    smoothing: NotNegative = 1.0
    """Added to the counts of every source class."""
    balanced: bool = True
    """Whether every target class weighs the same."""


class EMDGreedy(TargetAwareUnitMethod):
    """Keep the classes nearest to the target's, which take turns (Cui et al. 2018)."""

    method: Literal["emd_greedy"] = "emd_greedy"


class ClassFacilityLocation(TargetAwareUnitMethod):
    """Keep classes that cover the target's train images, greedily (facility-location mutual
    information)."""

    method: Literal["class_facility_location"] = "class_facility_location"
    eta: NotNegative = 1.0
    """Weight of a class's own similarity to the target against covering all of it."""


class Counterfactual(TargetAwareUnitMethod):
    """Keep the classes that help when present: regression over random halves (Jain et al. 2022).

    Pretrains on many random halves of the classes and transfers each; a class's score is its
    coefficient for the validation accuracy. Far too dear to save anything: a yardstick for the
    other methods, as good as the regression, whose share of explained variance is in the score's
    manifest (r2_loo). Looks at all train and validation images of the target, whatever its shots.
    """

    method: Literal["counterfactual"] = "counterfactual"
    num_subsets: Annotated[int, Field(ge=10, le=1_000_000)] = 300
    """Random halves to pretrain on; shared by all targets and seeds."""
    recipe: Annotated[Supervised, BareName("objective")]
    """How to pretrain on each."""
    transfer: LinearProbe = LinearProbe()
    """How to transfer each."""


AnyUnitMethod = (
    RandomClasses
    | LabelMapping
    | FeatureMapping
    | LabelAwareMapping
    | EMDGreedy
    | ClassFacilityLocation
    | Counterfactual
)
