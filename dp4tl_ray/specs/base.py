"""The record that all others are made of: closed, frozen, strict, with a canonical JSON form.

Records say what may be asked for. They know no torch and no ray, so that reading a study costs
nothing, and their docstrings are the only documentation of a field: the JSON Schemas, the editor
and the error messages all repeat them.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.annotated_handlers import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema


def did_you_mean(wrong: object, allowed: Iterable[str]) -> str:
    """Name the allowed values, the nearest one first when there is a near one; no number is."""
    names, is_name = sorted(allowed), not re.fullmatch(r"[-+.\d]+", str(wrong))
    near = difflib.get_close_matches(str(wrong), names, n=1, cutoff=0.5) if is_name else []
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(names)}"


TAGS = ("dataset", "arch", "method", "rule", "objective", "transfer", "attack", "encoding")
"""Fields that say which record of a union is meant."""


def _require_tags(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """List the tags of a union as required: pydantic demands them, its own schema does not."""
    tags = {n for n, f in model.model_fields.items() if n in TAGS and _is_literal(f.annotation)}
    if required := sorted({*schema.get("required", []), *tags}):
        schema["required"] = required


def _is_literal(annotation: Any) -> bool:
    return get_origin(annotation) is Literal


class Spec(BaseModel):
    """A closed, frozen record. An unknown key is an error; so is a value of the wrong type."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra=_require_tags,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, data: Any) -> Any:
        """Refuse an unknown key by name, with the nearest allowed one."""
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise _unknown_field(key, cls.model_fields)
        return data


def _unknown_field(key: Any, allowed: Iterable[str]) -> PydanticCustomError:
    context = {"key": repr(key), "field": key, "hint": did_you_mean(key, allowed)}
    return PydanticCustomError("unknown_field", "unknown field {key}; {hint}", context)


def canonical_json(value: Any) -> str:
    """Write a record, or plain data, so that equal values give equal text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class BareName:
    """Annotation of a record or a union: a bare name stands for the record of that name.

    Only a record whose other fields all have defaults may be written as a name; the JSON Schema
    says the same.
    """

    tag: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Put the expansion of names in front of the union."""
        records = get_args(source) or (source,)
        names = [n for r in records for n in get_args(r.model_fields[self.tag].annotation)]

        def expand(value: Any) -> Any:
            if isinstance(value, str):
                value = {self.tag: value}
            if not isinstance(value, BaseModel):
                self._check(value, names)
            return value

        alone = [n for record in records for n in self._names_alone(record)]
        return core_schema.no_info_before_validator_function(
            expand, handler(source), metadata={"names_alone": alone}
        )

    def _names_alone(self, record: type[BaseModel]) -> tuple[str, ...]:
        """Return the names of a record that needs nothing else."""
        needed = {name for name, field in record.model_fields.items() if field.is_required()}
        return () if needed - {self.tag} else get_args(record.model_fields[self.tag].annotation)

    def _check(self, value: Any, names: list[str]) -> None:
        """Refuse what names no record of the union, each kind of it in its own words."""
        context = {"field": self.tag, "hint": f"allowed: {', '.join(sorted(names))}"}
        if not isinstance(value, dict):
            raise PydanticCustomError("not_a_record", "must be a name or a record; {hint}", context)
        if self.tag not in value:
            if near := difflib.get_close_matches(self.tag, [*map(str, value)], n=1, cutoff=0.75):
                raise _unknown_field(near[0], [self.tag])
            if named := [name for name in names if name in value]:
                context["hint"] = f"write {{{self.tag}: {named[0]}, ...}}"
            raise PydanticCustomError("missing_tag", "is required; {hint}", context)
        if (tag := value[self.tag]) not in names:
            context |= {"name": repr(tag), "hint": did_you_mean(tag, names)}
            raise PydanticCustomError("unknown_name", "{name} is not known; {hint}", context)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Allow, beside the records, the names of those that need nothing else."""
        records, names = handler(schema), schema["metadata"]["names_alone"]
        return {"anyOf": [{"enum": names}, records]} if names else records


def _whole(value: Any) -> Any:
    """Take 3.0 for 3, and true not for 1, as JSON Schema does."""
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
"""Last annotation of a whole number: bounds written after it would not reach the JSON Schema."""
MAX_INT, MAX_FLOAT = 2**53, 1e9
"""Bounds where nothing closer is known: JSON Schema has no other word for a finite number."""
Count = Annotated[int, Field(gt=0, le=MAX_INT), Whole]
Natural = Annotated[int, Field(ge=0, le=MAX_INT), Whole]
Positive = Annotated[float, Field(gt=0, le=MAX_FLOAT)]
NotNegative = Annotated[float, Field(ge=0, le=MAX_FLOAT)]
Fraction = Annotated[float, Field(ge=0, le=1)]

# the bounds of both are exact as floats, or a whole number just above could pass as one
OptionInt = Annotated[int, Field(ge=-MAX_FLOAT, le=MAX_FLOAT)]
OptionFloat = Annotated[float, Field(ge=-MAX_FLOAT, le=MAX_FLOAT)]
Options = dict[str, bool | OptionInt | OptionFloat | str]
"""Keyword arguments of a plug-in."""

T = TypeVar("T", bound=Hashable)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _no_duplicates(values: tuple[T, ...]) -> tuple[T, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise PydanticCustomError(
                "duplicate", "entry {n} repeats an earlier one", {"n": index + 1}
            )
    return values


Listed = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
"""Any number of values, in order."""
Axis = Annotated[
    tuple[T, ...],
    Field(min_length=1, json_schema_extra={"uniqueItems": True}),
    BeforeValidator(_as_tuple),
    AfterValidator(_no_duplicates),
]
"""One axis of a sweep: at least one value, none of them twice."""


Pair = Annotated[
    tuple[Positive, ...],
    Field(min_length=2, max_length=2),
    BeforeValidator(_as_tuple),
]
"""Two numbers above 0."""


FEW = 3
"""Fields that a name spells out; more are told apart by their digest."""


def label(spec: BaseModel) -> str:
    """Name a record for people: its tag, and every field that differs from its default."""
    tag = _tag(spec)
    assert tag is not None
    changed = [f"{name}={_short(value)}" for name, value in _changed(spec) if name != tag]
    name = str(getattr(spec, tag))
    return f"{name}({', '.join(changed)})" if changed else name


def _tag(spec: BaseModel) -> str | None:
    return next((name for name in TAGS if name in type(spec).model_fields), None)


def _changed(spec: BaseModel) -> list[tuple[str, Any]]:
    """Return the fields that differ from their defaults."""
    fields = type(spec).model_fields
    return [
        (name, value)
        for name, value in spec
        if value != fields[name].get_default(call_default_factory=True)
    ]


def _short(value: Any) -> str:
    if isinstance(value, BaseModel):
        if _tag(value) is not None:
            return label(value)
        changed = _changed(value)
        if len(changed) > FEW:
            return digest(value)[:6]
        return "+".join(f"{name}:{_short(v)}" for name, v in changed)
    return pixels_text(value) if isinstance(value, float) else str(value)


def pixels_text(value: float) -> str:
    """Write a number that is a distance between pixels in [0, 1] as people do, such as 4/255."""
    levels = round(value * 255, 6)
    if 0 < value < 1 and len(str(value)) > 6 and (4 * levels).is_integer():
        return f"{levels:g}/255"
    return str(value)
