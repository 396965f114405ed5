import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML

from dp4tl_ray.arguments import SCHEMA_NAMES
from dp4tl_ray.specs.load import load_study
from dp4tl_ray.specs.mistakes import find_mistakes
from dp4tl_ray.specs.records import File, Manifest
from dp4tl_ray.specs.schema import SCHEMAS, json_schema, schema_text
from dp4tl_ray.specs.steps import PretrainStep
from dp4tl_ray.specs.study import Study
from tests.specs.mutations import BASES, MINIMAL, MUTATIONS, mutated

ROOT = Path(__file__).parents[2]
DRAFTS = (jsonschema.Draft7Validator, jsonschema.Draft202012Validator)
STUDY = [draft(json_schema("study")) for draft in DRAFTS]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))

PROGRAM_ONLY = {
    "cross_field": "compares two fields, such as the image sizes of source and target",
    "duplicate": "entries that mean the same but are written differently, such as a bare name and "
    "its record; uniqueItems compares what is written",
}
"""Types of the only errors that the schema need not find, with the reason."""


# -- the files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMAS)
def test_committed_schema_is_the_generated_one(name: str) -> None:
    path = ROOT / "schemas" / f"{name}.schema.json"
    fresh = path.is_file() and path.read_text(encoding="utf-8") == schema_text(name)
    assert fresh, f"{path.relative_to(ROOT)} is stale: run `dp4tl schema --write`"


def test_the_command_prints_every_schema() -> None:
    assert tuple(SCHEMAS) == SCHEMA_NAMES


def test_no_other_schema_is_committed() -> None:
    committed = {path.name for path in (ROOT / "schemas").iterdir()}
    assert committed == {f"{name}.schema.json" for name in SCHEMAS}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_schema_is_valid_and_named_after_its_record(name: str, draft: Any) -> None:
    draft.check_schema(json_schema(name))
    assert json_schema(name)["title"] == SCHEMAS[name].__name__


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_uses_only_keywords_that_mean_something(name: str) -> None:
    # pydantic writes a bound that it cannot place as "ge" or "minLength", which nobody checks.
    keywords = {"$schema", "$defs", "$ref", "discriminator", "description", "title", "default"}
    keywords |= {"type", "enum", "const", "pattern", "minLength", "not", "anyOf", "oneOf"}
    keywords |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    keywords |= {"items", "minItems", "maxItems", "uniqueItems"}
    keywords |= {"properties", "required", "additionalProperties"}
    schemas = list(subschemas(json_schema(name)))
    assert len(schemas) > 20
    assert {keyword for schema in schemas for keyword in schema} <= keywords
    for schema in schemas:
        assert "minLength" not in schema or schema["type"] == "string"
        assert "minItems" not in schema or schema["type"] == "array"


@pytest.mark.parametrize("name", SCHEMAS)
def test_defaults_may_be_written(name: str) -> None:
    # Editors insert them.
    schema = json_schema(name)
    defaults = [s for s in subschemas(schema) if "default" in s]
    assert defaults
    for sub in defaults:
        STUDY[0].evolve(schema={**sub, "$defs": schema.get("$defs", {})}).validate(sub["default"])


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema; `properties` and `$defs` only hold some, by names of ours."""
    if not isinstance(schema, dict):
        return
    yield schema
    for keyword, value in schema.items():
        if keyword in ("properties", "$defs"):
            for sub in value.values():
                yield from subschemas(sub)
        elif keyword in ("anyOf", "oneOf"):
            for sub in value:
                yield from subschemas(sub)
        elif keyword in ("items", "not", "additionalProperties"):
            yield from subschemas(value)


# -- studies ---------------------------------------------------------------------------------------


def test_there_are_experiments() -> None:
    assert EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_accepted_by_editor_and_program(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == "# yaml-language-server: $schema=../schemas/study.schema.json"
    data = YAML(typ="safe", pure=True).load(text)
    for validator in STUDY:
        validator.validate(data)
    assert load_study(path).name == path.stem


@pytest.mark.parametrize("base", BASES, ids=lambda base: base["name"])
def test_a_dumped_study_can_be_read_again(base: dict[str, Any]) -> None:
    study = Study.model_validate(base)
    dumped = study.model_dump(mode="json")
    for validator in STUDY:
        validator.validate(dumped)
    assert Study.model_validate(dumped) == study


def test_a_dumped_manifest_can_be_read_again() -> None:
    recipe = Study.model_validate(BASES[0]).networks[0]
    step = PretrainStep(pretraining=recipe, network=recipe.network, seed=1)
    manifest = Manifest(
        stage="pretrain",
        stage_version=1,
        digest="0" * 64,
        name="x",
        spec=step,
        inputs={"subset": "1" * 64},
        files={"weights.safetensors": File(sha256="2" * 64, size=3)},
        seconds=1.5,
        device="cpu",
        num_workers=1,
        metrics={"loss": 0.5, "steps": 3, "converged": True, "note": None},
        versions={"python": "3.11"},
    )
    text = manifest.model_dump_json()
    jsonschema.validate(manifest.model_dump(mode="json"), json_schema("manifest"))
    assert Manifest.model_validate_json(text) == manifest


# -- agreement -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    kinds: tuple[str, ...]
    study: dict[str, Any]
    schema: tuple[bool, ...]
    errors: list[ErrorDetails]

    @property
    def agrees(self) -> bool:
        if all(self.schema) == (not self.errors) and len(set(self.schema)) == 1:
            return True
        beyond_schema = all(self.only_program_can_know(error) for error in self.errors)
        return bool(self.errors) and all(self.schema) and beyond_schema

    def only_program_can_know(self, error: ErrorDetails) -> bool:
        if error["type"] == "duplicate":
            entries: Any = self.study
            for part in error["loc"]:
                # The tags of unions are in the path of an error, but not in the study.
                inside = isinstance(entries, list) or part in entries
                entries = entries[part] if inside else entries
            *earlier, last = entries[: error["ctx"]["n"]]
            return last not in earlier
        return error["type"] in PROGRAM_ONLY


@pytest.fixture(scope="module")
def campaign() -> list[Verdict]:
    return [
        Verdict(kinds, study, tuple(v.is_valid(study) for v in STUDY), program_errors(study))
        for kinds, study in mutated(seed=0, count=3_000)
    ]


def program_errors(study: dict[str, Any]) -> list[ErrorDetails]:
    before = copy.deepcopy(study)
    try:
        Study.model_validate(study)
    except ValidationError as error:
        return error.errors(include_url=False)
    finally:
        assert study == before
    return []


def test_editor_and_program_refuse_the_same_mistakes(campaign: list[Verdict]) -> None:
    disagreements = [verdict for verdict in campaign if not verdict.agrees]
    assert not disagreements, f"{len(disagreements)}, first {disagreements[:3]}"


def test_schema_accepts_whatever_the_program_accepts(campaign: list[Verdict]) -> None:
    assert not [verdict for verdict in campaign if not verdict.errors and not all(verdict.schema)]


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("name", "a" * 64, True),
        ("name", "a" * 65, False),
        ("name", "a\n", False),
        ("name", "é", False),
        ("seeds", [2**31 - 1, 3.0], True),
        ("seeds", [2**31], False),
        ("seeds", [True], False),
        ("pruning_ratios", [0, 0.999], True),
        ("pruning_ratios", [1], False),
        ("pruning_ratios", [0, -0.0], False),
        ("source", {"dataset": "glyphs_and_textures", "image_size": 16.0}, True),
        ("pretraining", [{"objective": "supervised", "network": "resnet18"}], True),
        ("pretraining", [{"objective": "supervised", "network": {"arch": "resnet9"}}], True),
        ("pretraining", [{"objective": "supervised", "ema": None}], True),
        ("pretraining", [{"objective": "supervised", "precision": None}], False),
        ("pretraining", [{"objective": "supervised", "budget": {"epochs": None}}], False),
        (
            "surrogate",
            {"objective": "supervised", "network": {"arch": "resnet9", "stem_stride": True}},
            False,
        ),
        ("surrogate", {"objective": "supervised", "network": {"width": 8}}, False),
        (
            "surrogate",
            {"objective": "supervised", "budget": {"epochs": 1, "examples_seen": None}},
            False,
        ),
        ("surrogate", {"objective": "supervised", "optimizer": {"lr": float("inf")}}, False),
        ("surrogate", {"objective": "supervised", "optimizer": {"lr": 10**400}}, False),
        ("surrogate", {"objective": "supervised", "batch_size": 2**53 + 64}, False),
    ],
)
def test_editor_and_program_agree_at_the_edges(field: str, value: Any, accepted: bool) -> None:
    study = {**MINIMAL, field: value}
    assert [validator.is_valid(study) for validator in STUDY] == [accepted, accepted]
    assert (not program_errors(study)) == accepted


def test_campaign_holds_many_good_and_bad_studies_of_every_kind(campaign: list[Verdict]) -> None:
    accepted = [verdict for verdict in campaign if not verdict.errors]
    assert len(accepted) > 200
    assert len(campaign) - len(accepted) > 1_000
    kinds = Counter(kind for verdict in campaign for kind in verdict.kinds)
    assert set(kinds) == set(MUTATIONS)
    assert min(kinds.values()) > 40
    types = {error["type"] for verdict in campaign for error in verdict.errors}
    assert types >= {*PROGRAM_ONLY, "unknown_field", "unknown_name", "missing_tag", "budget"}


def test_every_refused_study_has_a_mistake_with_words(campaign: list[Verdict]) -> None:
    refused = [verdict for verdict in campaign if verdict.errors][::5]
    for verdict in refused:
        mistakes = list(find_mistakes(verdict.study))
        assert mistakes
        assert all(mistake.keys and mistake.message for mistake in mistakes)
        assert not any(word in m.message for m in mistakes for word in ("tuple", "Input", "dict"))
