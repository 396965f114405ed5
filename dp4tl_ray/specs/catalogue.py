"""What there is, with the docstrings of the records: methods, objectives, networks and more."""

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dp4tl_ray.specs.adversarial import AnyAdversarial, AnyRobustness
from dp4tl_ray.specs.base import TAGS, Spec, label, pixels_text
from dp4tl_ray.specs.data import JPEG, Dataset, Raw, Source, Target
from dp4tl_ray.specs.method import AnyMethod
from dp4tl_ray.specs.network import AnyNetwork
from dp4tl_ray.specs.pretraining import AnyPretraining
from dp4tl_ray.specs.selector import AnySelector
from dp4tl_ray.specs.transfer import AnyTransfer

KINDS: dict[str, Any] = {
    "methods": AnyMethod,
    "selectors": AnySelector,
    "datasets": Dataset,
    "encodings": Raw | JPEG,
    "networks": AnyNetwork,
    "objectives": AnyPretraining,
    "transfers": AnyTransfer,
    "adversarial": AnyAdversarial,
    "robustness": AnyRobustness,
}
MANY = 5
"""Records from which on a field that they inherit is explained once, at the end; fields of a
default beyond which only those are shown that are not as usual."""


def catalogue(what: str) -> str:
    """Describe every record of a kind: its names, what it is, its fields with their defaults.

    Args:
        what: One of KINDS.
    """
    records: Sequence[type[Spec]] = get_args(KINDS[what])
    inherited = Counter(
        (name, field.description) for r in records for name, field in _inherited(r).items()
    )
    shared = {name: text for (name, text), count in inherited.items() if count >= MANY}
    entries = "".join(_entry(record, shared) for record in records)
    if not shared:
        return entries
    lines = ["Fields that many share"]
    for name, text in shared.items():
        lines += [f"    {name}", *_indented(text or "", 8)]
    return entries + "\n".join(lines) + "\n"


def _inherited(record: type[Spec]) -> dict[str, FieldInfo]:
    """Return the fields that a record does not define itself, or a private base for it."""
    private = (base for base in record.__bases__ if base.__name__.startswith("_"))
    own = set(record.__annotations__).union(*(base.__annotations__ for base in private))
    return {n: f for n, f in record.model_fields.items() if n not in own}


def _entry(record: type[Spec], shared: dict[str, str | None]) -> str:
    tag = next(name for name in TAGS if name in record.model_fields)
    names = ", ".join(get_args(record.model_fields[tag].annotation))
    role = f"  [{_roles(record)}]" if tag == "dataset" else ""
    lines = [f"{names}{role}", *_indented(inspect.cleandoc(record.__doc__ or ""), 2)]
    also = [name for name in _inherited(record) if name in shared]
    for name, field in record.model_fields.items():
        if name != tag and name not in also:
            default = "required" if field.is_required() else f"default {_shown(field.default)}"
            lines.append(f"    {name} ({default})")
            lines += _indented(field.description or "", 8)
    if also:
        lines.append(f"    also: {', '.join(also)}")
    return "\n".join(lines) + "\n\n"


def _shown(value: Any) -> str:
    """Write a default as a study would."""
    match value:
        case BaseModel() if any(tag in type(value).model_fields for tag in TAGS):
            return label(value)
        case BaseModel():
            fields = type(value).model_fields
            given = [(n, v) for n, v in value if v is not None]
            if len(fields) > MANY:
                given = [(n, v) for n, v in given if v != fields[n].default]
            return "{" + ", ".join(f"{name}: {_shown(v)}" for name, v in given) + "}"
        case tuple():
            return "[" + ", ".join(map(_shown, value)) + "]"
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return pixels_text(value)
        case _:
            return str(value)


def _roles(record: type[Spec]) -> str:
    unions = {"source": Source, "target": Target}
    return ", ".join(
        role for role, union in unions.items() if record in get_args(get_args(union)[0])
    )


def _indented(text: str, width: int) -> list[str]:
    return [" " * width + line for line in text.splitlines()]
