"""What there is: methods, datasets and networks, with the docstrings of their records."""

import inspect
from typing import Any, get_args

from dp4tl_ray.specs.base import TAGS, Spec
from dp4tl_ray.specs.data import Dataset, Source, Target
from dp4tl_ray.specs.method import AnyMethod
from dp4tl_ray.specs.network import AnyNetwork

KINDS: dict[str, Any] = {"methods": AnyMethod, "datasets": Dataset, "networks": AnyNetwork}


def catalogue(what: str) -> str:
    """Describe every record of a kind: its names, what it is, its fields with their defaults.

    Args:
        what: methods, datasets or networks.
    """
    return "".join(_entry(record) for record in get_args(KINDS[what]))


def _entry(record: type[Spec]) -> str:
    tag = next(name for name in TAGS if name in record.model_fields)
    names = ", ".join(get_args(record.model_fields[tag].annotation))
    role = f"  [{_roles(record)}]" if tag == "dataset" else ""
    lines = [f"{names}{role}", *_indented(inspect.cleandoc(record.__doc__ or ""), 2)]
    for name, field in record.model_fields.items():
        if name != tag:
            default = "required" if field.is_required() else f"default {field.default!r}"
            lines.append(f"    {name} ({default})")
            lines += _indented(field.description or "", 8)
    return "\n".join(lines) + "\n\n"


def _roles(record: type[Spec]) -> str:
    unions = {"source": Source, "target": Target}
    return ", ".join(
        role for role, union in unions.items() if record in get_args(get_args(union)[0])
    )


def _indented(text: str, width: int) -> list[str]:
    return [" " * width + line for line in text.splitlines()]
