"""All pruning methods, and what each is computed from."""

from typing import Annotated, Literal, assert_never

from pydantic import Field

from dp4tl_ray.specs.base import BareName
from dp4tl_ray.specs.example_methods import (
    AUM,
    DSIR,
    EL2N,
    TDDS,
    AnyExampleMethod,
    Clustering,
    Combine,
    DomainClassifier,
    DynUnc,
    ExamplePlugin,
    FacilityLocation,
    Forgetting,
    Given,
    GradientMatching,
    GraNd,
    Herding,
    KCenter,
    Moderate,
    NormSim,
    Prototypes,
    RandomExamples,
    Retrieval,
    ScoresFile,
    SemDeDup,
    Uncertainty,
)
from dp4tl_ray.specs.pretraining import Demand
from dp4tl_ray.specs.selector import CoverageCentric, Gumbel, MessagePassing, Quota
from dp4tl_ray.specs.unit_methods import (
    AnyUnitMethod,
    ClassFacilityLocation,
    Counterfactual,
    EMDGreedy,
    FeatureMapping,
    LabelAwareMapping,
    LabelMapping,
    Mapping,
    RandomClasses,
    UnitMethod,
)

AnyMethod = AnyUnitMethod | AnyExampleMethod
Method = Annotated[AnyMethod, Field(discriminator="method"), BareName("method")]

Need = Literal["source", "target", "clusters", "network", "dynamics", "divergences", "subsets"]
"""source, target: their train images passed through the surrogate; clusters: of the former;
network: the surrogate's weights; dynamics, divergences: histories recorded while it trained;
subsets: pretrainings on random halves of the classes."""


def needs(method: AnyMethod) -> frozenset[Need]:
    """Say what a method's score is computed from, beside the source's labels.

    A method that needs the target is target-aware: its subset differs between targets.
    """
    needed = _own_needs(method)
    if isinstance(method, UnitMethod) and method.within is not None:
        needed |= needs(method.within)
    return needed


def _own_needs(method: AnyMethod) -> frozenset[Need]:
    match method:
        case RandomClasses() | RandomExamples() | ScoresFile() | Given():
            return frozenset()
        case Forgetting() | AUM() | DynUnc():
            return frozenset({"dynamics"})
        case TDDS():
            return frozenset({"dynamics", "divergences"})
        case EL2N() | Uncertainty() | Moderate() | Herding() | KCenter() | FacilityLocation():
            return frozenset({"source"})
        case GraNd(parameters=parameters):
            return frozenset({"source"} if parameters == "head" else {"network"})
        case Prototypes() | SemDeDup():
            return frozenset({"source", "clusters"})
        case LabelMapping() | LabelAwareMapping():
            return frozenset({"target"})
        case FeatureMapping() | DSIR():
            return frozenset({"source", "target", "clusters"})
        case NormSim() | Retrieval() | DomainClassifier() | GradientMatching():
            return frozenset({"source", "target"})
        case EMDGreedy() | ClassFacilityLocation():
            return frozenset({"source", "target"})
        case Counterfactual():
            return frozenset({"subsets"})
        case ExamplePlugin(target_aware=target_aware):
            return frozenset({"source", "target"} if target_aware else {"source"})
        case _:
            assert_never(method)


def demands(method: AnyMethod) -> frozenset[Demand]:
    """Say what a method, and the one within, take from the surrogate."""
    demanded: set[Demand] = set()
    needed = needs(method)
    if not needed.isdisjoint({"dynamics", "divergences"}):
        demanded.add("dynamics")
    if not needed.isdisjoint({"source", "target", "network"}):
        demanded.add("features")
    inner = within(method)
    if _reads_predictions(method) or (inner is not None and _reads_predictions(inner)):
        demanded.add("predictions")
    return frozenset(demanded)


def _reads_predictions(method: AnyMethod) -> bool:
    return isinstance(
        method,
        LabelMapping | LabelAwareMapping | EL2N | GraNd | Uncertainty | GradientMatching,
    )


def is_target_aware(method: AnyMethod) -> bool:
    """Say whether the scores of a method differ between targets."""
    return not needs(method).isdisjoint({"target", "subsets"})


def combined(method: AnyMethod) -> Combine | None:
    """Say how one subset is made for all targets; null where each has its own."""
    return getattr(method, "combine", None) if is_target_aware(method) else None


def clustering(method: AnyMethod) -> Clustering | None:
    """Return the clusters that a method, or the one within, is computed from."""
    return getattr(method, "clustering", None)


def within(method: AnyMethod) -> AnyExampleMethod | None:
    """Return the method that orders the examples of a unit; null where they are drawn."""
    return method.within if isinstance(method, UnitMethod) else None


def scored_as(method: AnyMethod) -> AnyMethod:
    """Return the method apart from how it selects, and from the name of its surrogate, which is
    an input: equal scores have equal specs."""
    default = type(method).model_fields["select"].default
    return method.model_copy(update={"select": default, "surrogate": None})


def for_one_target(method: AnyMethod) -> AnyMethod:
    """Return the method with a subset of its own for each target."""
    return method.model_copy(update={"combine": None}) if combined(method) else method


def selects_at_random(method: AnyMethod) -> bool:
    """Say whether turning scores into kept examples takes a draw."""
    return isinstance(method.select, CoverageCentric | Gumbel)


def selects_by_features(method: AnyMethod) -> bool:
    """Say whether turning scores into kept examples takes the surrogate's features."""
    return isinstance(method.select, MessagePassing)


def contradiction(method: AnyMethod) -> str:
    """Say which fields of a method contradict each other; empty when none do."""
    if isinstance(method, Mapping) and method.capacity is not None and method.temperature == 0:
        return "capacity needs a temperature above 0: a vote cannot be split; 0.05 is nearly one"
    if method.surrogate is not None and not (demands(method) or selects_by_features(method)):
        return "scores without a surrogate: leave surrogate out"
    if isinstance(method.select, Quota):
        if not isinstance(method, Mapping | LabelAwareMapping):
            return "quota needs the mass that a mapping moves; allowed: top, whole_units, gumbel"
        if isinstance(method, LabelMapping) and method.keep == "lowest":
            return "quota keeps in proportion to the mass, lowest against it"
    if isinstance(method, UnitMethod) and (within := method.within) is not None:
        if isinstance(within, Given):
            return "given keeps a list as it is, and orders no units; scores_file can stand within"
        if within.select != type(within).model_fields["select"].default:
            return "within only orders the examples of a unit; write select outside of it"
        if within.surrogate is not None:
            return "within takes the surrogate of its method; write surrogate outside of it"
        if getattr(within, "combine", None) is not None:
            return "within takes the targets of its method; write combine outside of it"
    return ""
