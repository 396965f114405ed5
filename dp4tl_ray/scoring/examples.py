"""Scores of single examples: one case per method."""

from typing import assert_never

import numpy as np

from dp4tl_ray.algorithms import coresets
from dp4tl_ray.algorithms.density import domain_classifier_scores, dsir_scores
from dp4tl_ray.algorithms.dynamics import (
    aum_scores,
    dyn_unc_scores,
    forgetting_scores,
    tdds_scores,
)
from dp4tl_ray.algorithms.example_scores import (
    el2n_scores,
    grand_last_layer_scores,
    uncertainty_scores,
)
from dp4tl_ray.algorithms.gradient_matching import (
    gradient_matching_scores,
    map_labels,
    target_gradient,
)
from dp4tl_ray.algorithms.kmeans import assign
from dp4tl_ray.algorithms.neighbors import max_cosine, normsim_2, retrieval_scores
from dp4tl_ray.algorithms.prototypes import prototype_scores, semdedup_scores
from dp4tl_ray.scoring.elsewhere import checked_scores, find_scorer, scores_from_file
from dp4tl_ray.scoring.given import Listing, list_scores, rows_of_list
from dp4tl_ray.scoring.inputs import Clusters, Embedding, Floats, ScorerInputs
from dp4tl_ray.specs.example_methods import (
    AUM,
    DSIR,
    EL2N,
    TDDS,
    AnyExampleMethod,
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
from dp4tl_ray.training.recorder import Dynamics


def score_examples(method: AnyExampleMethod, inputs: ScorerInputs) -> tuple[Floats, Floats]:
    """Return score and tie-break of every source example, (N,) each; higher is kept.

    Raises:
        ValueError: The method cannot be computed from these inputs; says why.
    """
    scores = _scores(method, inputs)
    return scores if isinstance(scores, tuple) else (scores, np.zeros(len(scores)))


def _scores(method: AnyExampleMethod, inputs: ScorerInputs) -> Floats | tuple[Floats, Floats]:
    labels = inputs.labels
    match method:
        case RandomExamples():
            return inputs.rng("score").random(len(labels))
        case EL2N():
            return el2n_scores(source(inputs).logits, labels)
        case GraNd(parameters="head"):
            embedding = source(inputs)
            return grand_last_layer_scores(embedding.logits, embedding.features, labels)
        case GraNd():
            assert inputs.gradient_norms is not None
            return inputs.gradient_norms()
        case Uncertainty(measure=measure):
            return uncertainty_scores(source(inputs).logits, measure)
        case Forgetting():
            return forgetting_scores(_dynamics(inputs).correct_EN)
        case AUM(keep=keep):
            return aum_scores(_dynamics(inputs).margin_EN, keep=keep)
        case DynUnc(window=window):
            return dyn_unc_scores(_dynamics(inputs).true_probability_EN, window)
        case TDDS(window=window, decay=decay):
            divergence_EN = _dynamics(inputs).divergence_EN
            assert divergence_EN is not None
            return tdds_scores(divergence_EN, window, decay)
        case Moderate(scope=scope):
            return coresets.moderate_scores(source(inputs).features, labels, scope=scope)
        case Herding():
            return coresets.herding_scores(
                source(inputs).features, labels, limit_bytes=inputs.limit_bytes
            )
        case KCenter():
            return coresets.k_center_scores(
                source(inputs).features, labels, limit_bytes=inputs.limit_bytes
            )
        case FacilityLocation():
            return coresets.facility_location_scores(
                source(inputs).features, labels, limit_bytes=inputs.limit_bytes
            )
        case Prototypes(keep=keep):
            found = clusters(inputs)
            return prototype_scores(
                source(inputs).features, found.centres, found.cluster, keep=keep
            )
        case SemDeDup():
            return semdedup_scores(
                source(inputs).features, clusters(inputs).cluster, limit_bytes=inputs.limit_bytes
            )
        case NormSim(norm=norm):
            compare = max_cosine if norm == "inf" else normsim_2
            return compare(source(inputs).features, target(inputs).features, device=inputs.device)
        case Retrieval(num_neighbors=num_neighbors):
            return retrieval_scores(
                source(inputs).features,
                target(inputs).features,
                num_neighbors=min(num_neighbors, len(labels)),
                device=inputs.device,
            )
        case DomainClassifier(l2=l2, num_negatives=num_negatives):
            return domain_classifier_scores(
                source(inputs).features,
                target(inputs).features,
                inputs.rng("negatives"),
                num_negatives=num_negatives,
                l2=l2,
                limit_bytes=inputs.limit_bytes,
            )
        case DSIR(smoothing=smoothing):
            found = clusters(inputs)
            codes, _ = assign(target(inputs).features, found.centres, device=inputs.device)
            return dsir_scores(found.cluster, codes, len(found.centres), smoothing=smoothing)
        case GradientMatching(block_size=block_size):
            return _gradient_matching(inputs, block_size)
        case ScoresFile(path=path):
            return scores_from_file(path, inputs.ids())
        case Given(path=path):
            listing = inputs.listing() if inputs.listing else Listing(np.arange(len(labels)))
            return list_scores(rows_of_list(path, inputs.ids, listing), len(labels))
        case ExamplePlugin(scorer=name, options=options):
            scorer = find_scorer(name).load()
            return checked_scores(scorer(inputs, **options), len(labels), f"plug-in {name!r}")
        case _:
            assert_never(method)


def _gradient_matching(inputs: ScorerInputs, block_size: int) -> Floats:
    """Follow the target's gradient, its classes named by what the surrogate sees in them."""
    embedding, goal = source(inputs), target(inputs)
    mapped = map_labels(goal.logits, goal.labels)
    gradient = target_gradient(goal.logits, goal.features, mapped)
    blocks = coresets.random_blocks(len(inputs.labels), block_size, inputs.rng("blocks"))
    return gradient_matching_scores(
        embedding.logits,
        embedding.features,
        inputs.labels,
        gradient,
        blocks,
        limit_bytes=inputs.limit_bytes,
    )


def source(inputs: ScorerInputs) -> Embedding:
    """Return the embedded source of a method that needs it."""
    assert inputs.source is not None
    return inputs.source


def target(inputs: ScorerInputs) -> Embedding:
    """Return the embedded target of a method that needs it."""
    assert inputs.target is not None
    return inputs.target


def clusters(inputs: ScorerInputs) -> Clusters:
    """Return the clusters of a method that needs them."""
    assert inputs.clusters is not None
    return inputs.clusters


def _dynamics(inputs: ScorerInputs) -> Dynamics:
    assert inputs.dynamics is not None
    return inputs.dynamics
