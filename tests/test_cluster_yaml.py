"""cluster.yaml passes Ray's own validation; nothing of it is run on a cloud here."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML


def config() -> Any:
    return YAML(typ="safe", pure=True).load(Path("cluster.yaml"))


def validate(data: Any) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(data))


def test_ray_accepts_it() -> None:
    validate(config())


def test_the_check_can_fail() -> None:
    with pytest.raises(Exception, match="max_wrkers"):
        validate({**config(), "max_wrkers": 3})


def test_it_pins_the_ray_that_is_tested_and_mounts_what_it_installs() -> None:
    data = config()
    assert any('"ray[default,train,tune]==2.60.0"' in c for c in data["setup_commands"])
    assert data["file_mounts"] == {"~/dp4tl_ray": "."}
