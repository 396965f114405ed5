"""What holds for every method: shapes, direction, determinism, and what it must not read."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import TypeAdapter

from dp4tl_ray.algorithms.memory import MemoryLimitError
from dp4tl_ray.scoring.examples import score_examples
from dp4tl_ray.scoring.inputs import Embedding, ScorerInputs
from dp4tl_ray.scoring.units import UnitScores, score_units
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.method import AnyMethod, Method, is_target_aware, needs
from dp4tl_ray.specs.unit_methods import UnitMethod
from tests.scoring.world import PER_CLASS, C, N, inputs

ADAPTER: TypeAdapter[AnyMethod] = TypeAdapter(Method)
ELSEWHERE = {"plugin", "scores_file", "given"}
VARIANTS: list[Any] = [
    {"method": "label_mapping", "temperature": 1.0},
    {"method": "label_mapping", "temperature": 0.1, "capacity": 2.0},
    {"method": "label_mapping", "temperature": 1.0, "prior_correction": True},
    {"method": "feature_mapping", "temperature": 1.0},
    {"method": "label_aware_mapping", "statistic": "mutual_information"},
    {"method": "grand", "parameters": "all"},
    {"method": "aum", "keep": "easy"},
    {"method": "uncertainty", "measure": "margin"},
    {"method": "uncertainty", "measure": "least_confidence"},
    {"method": "moderate", "scope": "source"},
    {"method": "prototypes", "keep": "near"},
    {"method": "normsim", "norm": "2"},
]


def every_method() -> list[AnyMethod]:
    """Each record of the union with its defaults, and the variants above."""
    names = [
        get_args(record.model_fields["method"].annotation)[0] for record in get_args(AnyMethod)
    ]
    bare = [name for name in names if name not in {*ELSEWHERE, "counterfactual"}]
    dear = {"method": "counterfactual", "recipe": {"objective": "supervised"}}
    return [ADAPTER.validate_python(m) for m in (*bare, dear, *VARIANTS)]


METHODS = {label(m): m for m in every_method()}


def scores(method: AnyMethod, given: ScorerInputs) -> UnitScores:
    if isinstance(method, UnitMethod):
        return score_units(method, given)
    score, tie_break = score_examples(method, given)
    return UnitScores(score, tie_break, np.arange(len(score)))


def test_every_method_is_here() -> None:
    named = {m.method for m in METHODS.values()}
    assert named | ELSEWHERE == {
        get_args(record.model_fields["method"].annotation)[0] for record in get_args(AnyMethod)
    }


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_score_is_one_number_per_unit_and_the_same_at_every_call(method: AnyMethod) -> None:
    first, second = (scores(method, inputs()) for _ in range(2))
    assert first.score.shape == first.tie_break.shape and first.score.dtype == np.float64
    assert not np.isnan(first.score).any()
    assert first.unit_of.shape == (N,) and first.unit_of.max() < len(first.score)
    if method.model_dump().get("parameters") != "all":  # the test's own norms are drawn
        assert np.array_equal(first.score, second.score)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_reads_nothing_but_what_it_says_that_it_needs(method: AnyMethod) -> None:
    of: Mapping[str, str] = {
        "source": "source",
        "target": "target",
        "clusters": "clusters",
        "network": "gradient_norms",
        "dynamics": "dynamics",
        "subsets": "subsets",
    }
    taken = {field: None for need, field in of.items() if need not in needs(method)}
    scores(method, replace(inputs(), **taken))  # type: ignore[arg-type]


def scrambled(given: ScorerInputs) -> ScorerInputs:
    """Deal the source's labels out at random."""
    labels = np.random.default_rng(1).permutation(given.labels)
    assert given.source is not None
    source = Embedding(given.source.features, given.source.logits, labels)
    return replace(given, labels=labels, source=source)


@pytest.mark.parametrize(
    "name",
    ["feature_mapping", "prototypes", "semdedup", "uncertainty", "normsim", "retrieval",
     "domain_classifier", "dsir"],
)  # fmt: skip
def test_methods_without_labels_read_none(name: str) -> None:
    method = ADAPTER.validate_python(name)
    with_labels, without = scores(method, inputs()), scores(method, scrambled(inputs()))
    assert np.array_equal(with_labels.score, without.score)
    assert np.array_equal(with_labels.unit_of, without.unit_of)


@pytest.mark.parametrize(
    "name",
    [m for m in METHODS if is_target_aware(METHODS[m]) and "prior" not in m],
)
def test_methods_that_see_the_target_prefer_what_it_looks_like(name: str) -> None:
    found = scores(METHODS[name], inputs())
    relevant = np.isin(inputs().labels, [2, 5])
    # the mean place of the examples of the two classes, among all
    order = np.lexsort((-found.tie_break, -found.score))
    place_of_unit = np.empty(len(order))
    place_of_unit[order] = np.arange(len(order)) / len(order)
    place = place_of_unit[found.unit_of]
    if name == "gradient_matching":
        return  # follows the target's gradient, which points away from what is known already
    assert place[relevant].mean() < 0.8 * place[~relevant].mean()


def test_label_mapping_counts_votes_and_keeps_the_opposite_when_asked() -> None:
    highest = score_units(ADAPTER.validate_python("label_mapping"), inputs())  # type: ignore[arg-type]
    lowest = score_units(
        ADAPTER.validate_python({"method": "label_mapping", "keep": "lowest"}),  # type: ignore[arg-type]
        inputs(),
    )
    assert highest.votes is not None and highest.votes.sum() == 20
    assert highest.score.argmax() in (2, 5)
    assert np.array_equal(lowest.score, -highest.score)


def test_a_prior_correction_divides_by_the_share_of_the_source() -> None:
    given = inputs()
    labels = np.where(given.labels == 3, 2, given.labels)  # class 2 is twice as large, 3 is empty
    soft = {"method": "label_mapping", "temperature": 1.0}
    plain = score_units(ADAPTER.validate_python(soft), replace(given, labels=labels))  # type: ignore[arg-type]
    corrected = score_units(
        ADAPTER.validate_python({**soft, "prior_correction": True}),  # type: ignore[arg-type]
        replace(given, labels=labels),
    )
    share = np.bincount(labels, minlength=C) / N
    expected = plain.score / 20 / np.where(share, share, np.inf)
    np.testing.assert_allclose(corrected.score, expected)
    assert share[2] == 2 * PER_CLASS / N and corrected.score[3] == 0


def one_example(given: ScorerInputs) -> ScorerInputs:
    target = given.target
    assert target is not None
    return replace(
        given, target=Embedding(target.features[:1], target.logits[:1], target.labels[:1])
    )


@pytest.mark.parametrize("name", [m for m in METHODS if "target" in needs(METHODS[m])])
def test_a_target_of_one_example_is_enough(name: str) -> None:
    assert np.isfinite(scores(METHODS[name], one_example(inputs())).score).all()


@pytest.mark.parametrize("name", [m for m in METHODS if "target" in needs(METHODS[m])])
def test_target_classes_may_be_missing(name: str) -> None:
    given = inputs()
    assert given.target is not None
    sparse = replace(given.target, labels=given.target.labels * 7 + 2)  # 2 and 9
    found = scores(METHODS[name], replace(given, target=sparse))
    assert np.array_equal(found.score, scores(METHODS[name], given).score)


@pytest.mark.parametrize("name", METHODS)
def test_a_source_class_may_have_no_example(name: str) -> None:
    given = inputs()
    labels = np.where(given.labels == 3, 4, given.labels)
    assert given.source is not None
    source = replace(given.source, labels=labels)
    found = scores(METHODS[name], replace(given, labels=labels, source=source))
    assert not np.isnan(found.score).any()


@pytest.mark.parametrize(
    "method",
    [
        "feature_mapping",
        {"method": "label_mapping", "temperature": 1, "capacity": 2},
        *("herding", "k_center", "facility_location", "semdedup", "domain_classifier"),
        *("gradient_matching", "class_facility_location", "counterfactual"),
    ],
)
def test_what_would_not_fit_is_refused_with_the_arithmetic_and_a_way_out(method: Any) -> None:
    if method == "counterfactual":
        method = {"method": method, "recipe": {"objective": "supervised"}}
    with pytest.raises(MemoryLimitError, match=r"GiB are needed and 0\.00 GiB allowed; \w+"):
        scores(ADAPTER.validate_python(method), replace(inputs(), limit_bytes=100))


def test_a_yardstick_of_equal_outcomes_explains_nothing() -> None:
    given = inputs()
    assert given.subsets is not None
    equal = {n: (rows, 0.5) for n, (rows, _) in given.subsets.items()}
    method = ADAPTER.validate_python(
        {"method": "counterfactual", "recipe": {"objective": "supervised"}}
    )
    found = scores(method, replace(given, subsets=equal))
    # a manifest holds no NaN
    assert found.facts["r2_loo"] == 0 and not found.score.any()
