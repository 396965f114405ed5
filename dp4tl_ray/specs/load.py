"""Read a study from YAML; answer each mistake with file, line, caret, field and what is allowed."""

import codecs
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from dp4tl_ray.specs.mistakes import Keys, Mistake, find_mistakes, found, shown
from dp4tl_ray.specs.study import Study

NAMES = {
    "source": "dataset",
    "targets": "dataset",
    "network": "arch",
    "surrogate": "objective",
    "methods": "method",
    "within": "method",
    "select": "rule",
    "pretraining": "objective",
    "adversarial": "attack",
    "robustness": "attack",
    "transfers": "transfer",
    "stored": "encoding",
}
"""Field that may hold a bare name -> tag of the record that the name stands for."""


class StudyError(ValueError):
    """Everything that is wrong with a study, as a message for the person who wrote it."""


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study; `overrides` are `key.path=value`, applied before the check."""
    source = _Source(path, _text(path))
    data, root = source.parse()
    settings = []
    for override in overrides:
        try:
            settings.append(_Setting.parse(override))
            data = settings[-1].apply(data)
        except ValueError as error:
            raise StudyError(f"--set {override}: {error}") from None
    try:
        return Study.model_validate(data)
    except ValidationError:
        mistakes = [_worded(m, source, root, settings) for m in find_mistakes(data)]
    raise StudyError("\n".join(text for _, text in sorted(mistakes)))


# -- YAML ------------------------------------------------------------------------------------------

CORE = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    "merge": re.compile(r"<<"),
}
"""YAML 1.2's core schema, as editors read it: ruamel's own also makes dates, and 1_000 a number."""


class _CoreResolver(VersionedResolver):
    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            tags = (tag for tag, pattern in CORE.items() if pattern.fullmatch(value))
            return Tag(suffix=f"tag:yaml.org,2002:{next(tags, 'str')}")
        return super().resolve(kind, value, implicit)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _CoreResolver
    return yaml


def _text(path: Path) -> str:
    """Read a file as UTF-8, or say why not."""
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file{_neighbours(path)}") from None
    except IsADirectoryError:
        raise StudyError(f"{path}: is a folder, not a study{_neighbours(path / '*')}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StudyError(f"{path}: cannot be read: {reason}") from None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        source = _Source(path, raw.decode(errors="replace"))
        at = source.position(len(raw[: error.start].decode()))
        raise StudyError(source.point(*at, f"not UTF-8 text: byte {raw[error.start]:#x}")) from None


def _neighbours(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.yaml"))
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"; {hint}{path.parent} holds {', '.join(names)}" if names else ""


@dataclass(frozen=True)
class _Source:
    """The text of a study, and how to point into it."""

    path: Path
    text: str

    def parse(self) -> tuple[dict[Any, Any], Node]:
        """Return the data, and the nodes that know where in the text everything is."""
        try:
            root, data = _yaml().compose(self.text), _yaml().load(self.text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            context = f" ({error.context})" if error.context else ""
            hint = "; a text that holds { needs quotes" if "got '{'" in str(error.problem) else ""
            message = f"not YAML: {error.problem}{context}{hint}"
            raise StudyError(self.point(mark.line, mark.column, message)) from None
        except ReaderError as error:
            message = f"not YAML: character {chr(error.character)!r} is not allowed"
            raise StudyError(self.point(*self.position(error.position), message)) from None
        except (YAMLError, ValueError, RecursionError) as error:
            raise StudyError(f"{self.path}: not YAML: {error}") from None
        if root is None:
            raise StudyError(f"{self.path}: is empty; a study has at least {_required()}")
        if not isinstance(data, dict):
            message = f"must be a record with at least {_required()}, got {found(data)}"
            raise StudyError(self.point_at(root, message))
        return data, root

    def position(self, index: int) -> tuple[int, int]:
        """Return line and column of a character, from 0."""
        lines = re.split("\r\n|\r|\n", self.text[:index])
        return len(lines) - 1, len(lines[-1])

    def point_at(self, node: Node, message: str) -> str:
        """Word a mistake, and underline a node."""
        start, end = node.start_mark, node.end_mark
        width = end.column - start.column if end.line == start.line else 1
        return self.point(start.line, start.column, message, width)

    def point(self, line: int, column: int, message: str, width: int = 1) -> str:
        """Word a mistake, and underline its place."""
        lines = re.split("\r\n|\r|\n", self.text)
        written = lines[line] if line < len(lines) else ""
        indent = re.sub(r"[^\t]", " ", written[:column].ljust(column))
        head = f"{self.path}:{line + 1}:{column + 1}: {message}"
        return f"{head}\n{written}\n{indent}{'^' * max(width, 1)}"


def _required() -> str:
    return ", ".join(n for n, field in Study.model_fields.items() if field.is_required())


# -- overrides -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Setting:
    """One `--set key.path=value`."""

    text: str
    keys: Keys
    value: Any

    @classmethod
    def parse(cls, text: str) -> "_Setting":
        """Read `key.path=value`; the value is YAML."""
        key, equals, value = text.partition("=")
        parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
        if not equals or not all(re.fullmatch(r"\w+", part) for part in parts):
            raise ValueError("must be KEY=VALUE, such as pretraining[0].budget.epochs=3")
        keys = tuple(int(part) if part.isdecimal() else part for part in parts)
        try:
            return cls(text, keys, _yaml().load(value))
        except MarkedYAMLError as error:
            raise ValueError(f"{shown(keys)}: not YAML: {error.problem}") from None
        except (YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{shown(keys)}: not YAML: {error}") from None

    def apply(self, data: Any, depth: int = 0) -> Any:
        """Return the data with the value in its place, below copies of what is on the way."""
        if depth == len(self.keys):
            return self.value
        key, here = self.keys[depth], shown(self.keys[:depth])
        if isinstance(data, str) and (tag := self._tag(depth)):
            data = {tag: data}
        match data:
            case dict() | None:
                data = data or {}
                return {**data, key: self.apply(data.get(key), depth + 1)}
            case list() if isinstance(key, int) and key < len(data):
                return [*data[:key], self.apply(data[key], depth + 1), *data[key + 1 :]]
            case list():
                last = f"allowed: 0 to {len(data) - 1}" if data else "the list is empty"
                raise ValueError(f"{here}: has no entry {key}; {last}")
        raise ValueError(f"{here}: is {found(data)}, which has no field {key!r}")

    def _tag(self, depth: int) -> str | None:
        field = next((k for k in reversed(self.keys[:depth]) if isinstance(k, str)), "")
        return NAMES.get(field)


# -- places ----------------------------------------------------------------------------------------


def _worded(
    mistake: Mistake, source: _Source, root: Node, settings: list[_Setting]
) -> tuple[tuple[int, int], str]:
    """Word a mistake where it was made, in the file or in a setting; with its place in the file."""
    keys = mistake.keys
    message = f"{shown(keys)}: {mistake.message}"
    key, value, depth = _find(root, keys)
    for index, setting in enumerate(settings):
        same = [a == b for a, b in zip(keys, setting.keys, strict=False)]
        shared = [*same, False].index(False)
        if shared > depth or shared == min(len(keys), len(setting.keys)):
            return (-1, index), f"--set {setting.text}: {message}"
    unwritten = value.start_mark.index == value.end_mark.index
    node = key if mistake.kind == "unknown_field" or unwritten else value
    return (node.start_mark.line, node.start_mark.column), source.point_at(node, message)


def _find(root: Node, keys: Keys) -> tuple[Node, Node, int]:
    """Return key, value and depth of a field, or of the innermost record around it in the file."""
    key = value = root
    for depth, part in enumerate(keys):
        children: list[tuple[Node, Node]] = []
        if isinstance(value, MappingNode):
            children = [(k, v) for k, v in value.value if k.value == str(part)]
        elif isinstance(value, SequenceNode) and isinstance(part, int):
            children = [(v, v) for v in value.value[part : part + 1]]
        if not children:
            return key, value, depth
        key, value = children[0]
    return key, value, len(keys)
