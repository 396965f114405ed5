"""What studies name and do not contain: pictures, weights, scores, plug-ins.

A study's store keeps the fingerprints of its pictures, so that status and report need no pictures.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.data.image_folder import fingerprint, is_absent
from dp4tl_ray.plan import Plan, Role
from dp4tl_ray.scoring.elsewhere import (
    file_fingerprint,
    pretrained_fingerprint,
    scorer_version,
)
from dp4tl_ray.specs.data import Dataset, ImageFolder
from dp4tl_ray.specs.example_methods import ExamplePlugin, ScoresFile
from dp4tl_ray.specs.method import AnyMethod
from dp4tl_ray.specs.pretraining import Pretrained
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.store import Store

FILE = "fingerprints.json"


@dataclass(frozen=True)
class Contents:
    """Fingerprints of what is here; of pictures that are not, what they were when a study ran."""

    known: Mapping[str, str] = field(default_factory=dict)
    """Role and path of a folder -> fingerprint that a run left."""
    absent: list[str] | None = None
    """Receives a line for each folder of pictures that is neither here nor known. Without it an
    absent folder is an error."""

    def __call__(self, thing: Dataset | AnyMethod | Pretrained, role: Role = "source") -> str:
        """Return a text that changes with the content; empty where the spec says everything."""
        match thing:
            case ExamplePlugin(scorer=name):
                return scorer_version(name)
            case ScoresFile(path=path):
                return file_fingerprint(path)
            case Pretrained():
                return pretrained_fingerprint(thing)
            case ImageFolder() if self.absent is not None and is_absent(thing):
                return self.known.get(_key(thing, role)) or self._miss(thing, self.absent)
            case ImageFolder():
                return fingerprint(thing, role)
            case _:
                return ""

    def _miss(self, folder: ImageFolder, absent: list[str]) -> str:
        line = f"{os.path.abspath(folder.path)} is not here: `dp4tl run` needs it"
        if line not in absent:
            absent.append(line)
        return "absent"


def _key(folder: ImageFolder, role: Role) -> str:
    return f"{role} {folder.path}"


def remembered(store: Store, study: str) -> dict[str, str]:
    """Return the fingerprints that a run of a study left in a store."""
    try:
        known: dict[str, str] = json.loads(store.read_text(store.study_folder(study) / FILE))
    except (OSError, ValueError):
        return {}
    return known


def remember(plan: Plan, store: Store) -> None:
    """Leave the fingerprints of a plan's pictures in a store."""
    specs = [step.spec for step in plan.steps.values() if isinstance(step.spec, DataStep)]
    known = {
        _key(spec.dataset, spec.role): spec.fingerprint
        for spec in specs
        if isinstance(spec.dataset, ImageFolder)
    }
    if not known:
        return
    path = store.study_folder(plan.study.name) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(known, indent=1)
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    store.publish(path)
