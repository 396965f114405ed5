"""The JSON Schemas of what is written and what comes out, generated from the records.

They declare draft 7, the dialect that every editor knows; in 2020-12 they mean the same.
"""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from dp4tl_ray.specs.base import Spec
from dp4tl_ray.specs.records import Export, Manifest, Result
from dp4tl_ray.specs.study import Study

SCHEMAS: dict[str, type[Spec]] = {
    "study": Study,
    "manifest": Manifest,
    "result": Result,
    "export": Export,
}
"""Name of the schema -> its record; `schemas/NAME.schema.json` is the committed copy."""


class _Generator(GenerateJsonSchema):
    """No titles that only repeat the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(name: str) -> dict[str, Any]:
    """Generate one of SCHEMAS."""
    dialect = {"$schema": "http://json-schema.org/draft-07/schema#"}
    return dialect | SCHEMAS[name].model_json_schema(schema_generator=_Generator)


def schema_text(name: str) -> str:
    """Write one of SCHEMAS as the text of its committed file."""
    return json.dumps(json_schema(name), indent=2, ensure_ascii=False) + "\n"
