"""What is wrong with a study, in the words of someone who writes YAML: what is allowed, and what
was found; pydantic's own words are about Python."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dp4tl_ray.specs.base import TAGS, did_you_mean
from dp4tl_ray.specs.study import Study

Keys = tuple[Any, ...]
"""Path of a field: keys of mappings and indices of lists."""

BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "none_required": "null",
    "string_type": "a string",
    "string_too_short": "a string that is not empty",
    "tuple_type": "a list with at least one entry",
    "too_short": "a list with at least one entry",
    "model_type": "a record of fields",
    "dict_type": "a record of fields",
}


@dataclass(frozen=True)
class Mistake:
    """One mistake: where, what, and pydantic's name for it."""

    keys: Keys
    message: str
    kind: str


def find_mistakes(data: Any) -> Iterator[Mistake]:
    """Find every mistake.

    An unknown field hides all others of its record, so it is dropped, and the rest checked again.
    """
    seen: set[tuple[Keys, str]] = set()
    hints: dict[Keys, str] = {}
    while True:
        dropped = []
        for error in _errors(data):
            keys, kind = _keys(error, data), error["type"]
            mistake = Mistake(keys, explain(error), kind)
            if kind == "unknown_field":
                dropped.append(keys)
                hints[keys[:-1]] = hints.get(keys[:-1], "") + mistake.message
            elif _is_echo(keys, kind, hints):
                continue
            if (keys, kind) not in seen:
                yield mistake
            seen.add((keys, kind))
        if not dropped:
            return
        shorter = data
        for keys in dropped:
            shorter = _without(shorter, keys)
        if shorter == data:  # nobody wrote what is wrong
            return
        data = shorter


def _errors(data: Any) -> list[ErrorDetails]:
    try:
        Study.model_validate(data)
    except ValidationError as error:
        # A list is also reported as too short where its entries are wrong.
        errors = error.errors(include_url=False)
        return [e for e in errors if not (e["type"] == "too_short" and e["input"])]
    return []


def _is_echo(keys: Keys, kind: str, hints: dict[Keys, str]) -> bool:
    """Say whether a mistake only follows from unknown fields that were dropped."""
    match kind:
        case "missing" | "missing_tag":
            return f"did you mean {keys[-1]!r}" in hints.get(keys[:-1], "")
        case "budget":
            return keys in hints
        case "duplicate":
            return any(record[: len(keys)] == keys for record in hints)
    return kind == "cross_field" and bool(hints)


def _without(data: Any, keys: Keys) -> Any:
    """Return the data without a field."""
    key, *rest = keys
    if isinstance(data, list):
        return [_without(v, tuple(rest)) if i == key else v for i, v in enumerate(data)]
    if not rest:
        return {k: v for k, v in data.items() if str(k) != str(key)}
    return {k: _without(v, tuple(rest)) if k == key else v for k, v in data.items()}


def _keys(error: ErrorDetails, data: Any) -> Keys:
    """Return the path of a mistake in the data: pydantic's, less the tags of unions."""
    keys: list[Any] = []
    for part in error["loc"]:
        if data == part or (isinstance(data, dict) and any(data.get(t) == part for t in TAGS)):
            continue
        keys.append(part)
        known = isinstance(data, dict) and part in data
        known = known or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        data = data[part] if known else None
    context = error.get("ctx", {})
    if "field" in context and isinstance(data, dict):
        keys.append(context["field"])
    if "n" in context:
        keys.append(context["n"] - 1)
    return tuple(keys)


def shown(keys: Keys) -> str:
    """Write the path of a field, such as `pretraining[0].budget.epochs`."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return "".join(parts).removeprefix(".")


def explain(error: ErrorDetails) -> str:
    """Say what is wrong with a value."""
    kind, context, got = error["type"], error.get("ctx", {}), found(error["input"])
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return f"must be {words} {context[key]:.15g}, got {got}"
    if kind in EXPECTED:
        return f"must be {EXPECTED[kind]}, got {got}"
    match kind:
        case "missing":
            return "is required"
        case "duplicate":
            return "repeats an earlier entry"
        case "not_a_record":
            return f"must be a name or a record, got {got}; {context['hint']}"
        case "unknown_name":
            tag = error["input"]
            tag = tag[context["field"]] if isinstance(tag, dict) else tag
            name = repr(tag) if isinstance(tag, str) else found(tag)
            return f"{name} is not known; {context['hint']}"
        case "literal_error":
            return _not_among(context["expected"], error["input"])
        case "string_pattern_mismatch":
            return f"must match {context['pattern']}, got {got}"
    # Types of our own are worded where they are raised; the rest is rare, and at least in English.
    own = kind in ("unknown_field", "missing_tag", "cross_field", "budget")
    return error["msg"] if own else f"{error['msg']}, got {got}"


def found(value: Any) -> str:
    """Show a value as YAML would write it, with its kind where that may be the mistake."""
    match value:
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return f"{value!r} (a string)"
        case dict():
            return "a record" if value else "an empty record"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case int() if value.bit_length() > 128:
            return "a huge number"  # Python refuses to write the longest ones
        case _:
            return repr(value)


def _not_among(expected: str, value: Any) -> str:
    """Word a wrong choice; pydantic lists the right ones as `'a', 'b' or 'c'`."""
    names = re.findall(r"'([^']*)'", expected)
    if isinstance(value, str) and names:
        return f"{value!r} is not known; {did_you_mean(value, names)}"
    return f"must be {expected}, got {found(value)}"
