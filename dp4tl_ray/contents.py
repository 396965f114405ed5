"""What studies name and do not contain: pictures, weights, scores, plug-ins.

A study's store keeps the fingerprints of its files, so that status and report need none of them.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dp4tl_ray.atomic import write_text
from dp4tl_ray.data.load import fingerprint, is_absent, place_of
from dp4tl_ray.plan import Plan, Role
from dp4tl_ray.scoring.elsewhere import (
    file_fingerprint,
    is_file,
    pretrained_fingerprint,
    scorer_version,
)
from dp4tl_ray.specs.base import canonical_json
from dp4tl_ray.specs.data import SCHEME, Dataset, OnDisk
from dp4tl_ray.specs.example_methods import ExamplePlugin, Given, ScoresFile
from dp4tl_ray.specs.method import AnyMethod
from dp4tl_ray.specs.pretraining import Pretrained
from dp4tl_ray.specs.steps import DataStep, PretrainStep, ScoreStep, SurrogateStep
from dp4tl_ray.store import Store

FILE = "fingerprints.json"
Files = OnDisk | ScoresFile | Given | Pretrained
"""What is read from files that a study names."""


@dataclass(frozen=True)
class Contents:
    """Fingerprints of what is here; of files that are not, what they were when a study ran."""

    known: Mapping[str, str] = field(default_factory=dict)
    """Role and path -> fingerprint that a run left."""
    absent: list[str] | None = None
    """Receives a line for whatever is neither here nor known. Without it that is an error."""

    def __call__(self, thing: Dataset | AnyMethod | Pretrained, role: Role = "source") -> str:
        """Return a text that changes with the content; empty where the spec says everything."""
        match thing:
            case ExamplePlugin(scorer=name):
                return scorer_version(name)
            case OnDisk():
                return self._look(thing, role, lambda: fingerprint(thing, role), is_absent(thing))
            case ScoresFile(path=path) | Given(path=path):
                gone = not os.path.exists(path)
                return self._look(thing, role, lambda: file_fingerprint(path, thing.method), gone)
            case Pretrained():
                gone = is_file(thing) and not os.path.exists(thing.weights)
                return self._look(thing, role, lambda: pretrained_fingerprint(thing), gone)
            case _:
                return ""

    def _look(self, thing: Files, role: Role, see: Callable[[], str], gone: bool) -> str:
        if self.absent is None or not gone:
            return see()
        if (known := self.known.get(_key(thing, role))) is not None:
            return known
        place = _place(thing)
        place = place if SCHEME.match(place) else os.path.abspath(place)
        line = f"{place} is not here: `dp4tl run` needs it"
        if line not in self.absent:
            self.absent.append(line)
        return f"absent: {_key(thing, role)}"  # two that are away are not the same


def _place(thing: Files) -> str:
    match thing:
        case Pretrained():
            return thing.weights
        case OnDisk():
            return place_of(thing)
        case _:
            return thing.path


def _key(thing: Files, role: Role) -> str:
    """Name what a fingerprint is of: many datasets of torchvision have the same path."""
    if isinstance(thing, OnDisk):
        no_other_pictures = {"image_size", "channels", "stored", "corrupt", "shots"}
        return f"{role} {canonical_json(thing.model_dump(mode='json', exclude=no_other_pictures))}"
    return f"{role} {_place(thing)}"


def remembered(store: Store, study: str) -> dict[str, str]:
    """Return the fingerprints that a run of a study left in a store."""
    try:
        known: dict[str, str] = json.loads(store.read_text(store.study_folder(study) / FILE))
    except (OSError, ValueError):
        return {}
    return known


def remember(plan: Plan, store: Store) -> None:
    """Leave the fingerprints of what a plan reads from files in a store.

    A plan that stops early reads less; what a run of the whole study left stays.
    """
    known = remembered(store, plan.study.name)
    for step in plan.steps.values():
        match step.spec:
            case DataStep(dataset=OnDisk() as folder, role=role, fingerprint=seen):
                known[_key(folder, role)] = seen
            case ScoreStep(method=ScoresFile() | Given() as scores, fingerprint=seen):
                known[_key(scores, "source")] = seen
            case SurrogateStep(surrogate=Pretrained() as weights, fingerprint=seen):
                known[_key(weights, "source")] = seen
            case PretrainStep(pretraining=Pretrained() as weights, fingerprint=seen):
                known[_key(weights, "source")] = seen
    if not known:
        return
    path = store.study_folder(plan.study.name) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(known, indent=1))
    store.publish(path)
