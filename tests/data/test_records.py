"""What all datasets on disk have in common, whatever they are."""

from typing import Any, get_args

import pytest

from dp4tl_ray.specs.catalogue import catalogue
from dp4tl_ray.specs.data import AnyOnDisk, OnDisk, located
from dp4tl_ray.specs.study import Study

NAMES = [
    name for one in get_args(AnyOnDisk) for name in get_args(one.model_fields["dataset"].annotation)
]
NEEDED = {"custom": {"loader": "mine"}}


def study(name: str, path: str) -> Study:
    here: dict[str, Any] = {"dataset": name, "path": path, **NEEDED.get(name, {})}
    return Study.model_validate(
        {
            "name": "s",
            "source": here,
            "targets": [here | {"shots": 2, "exclude": "odd.txt"}],
            "methods": ["label_mapping"],
            "pruning_ratios": [0.5],
            "pretraining": ["supervised"],
        }
    )


def test_there_are_seventeen() -> None:
    assert len(set(NAMES)) == len(NAMES) == 17


@pytest.mark.parametrize("name", NAMES)
def test_each_is_source_and_target_below_the_data_root(name: str) -> None:
    for dataset in (study(name, "here").source, *study(name, "here").targets):
        below = located(dataset, "/data")
        assert isinstance(below, OnDisk) and below.path == "/data/here"
        assert below.exclude in (None, "/data/odd.txt")
    for path in ("/elsewhere/here", "hub:user/name", "s3://bucket/name"):
        elsewhere = located(study(name, path).source, "/data")
        assert isinstance(elsewhere, OnDisk) and elsewhere.path == path


def test_all_are_listed_with_their_roles() -> None:
    heads = [line for line in catalogue("datasets").splitlines() if line.endswith("]")]
    both = [line.removesuffix("  [source, target]") for line in heads if "[source, target]" in line]
    assert ", ".join(both).split(", ") == NAMES
