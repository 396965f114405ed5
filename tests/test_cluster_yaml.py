"""cluster.yaml without a cloud: Ray's validation, lints, and `ray up` against a mock of AWS."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from tests.hosts.rig import on_prem_variant

RAY_PIN = "ray[default,train,tune]==2.60.0"


def config() -> Any:
    return YAML(typ="safe", pure=True).load(Path("cluster.yaml"))


VARIANTS = pytest.mark.parametrize("variant", [config(), on_prem_variant()], ids=["aws", "on-prem"])


def validate(data: Any) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(data))


@VARIANTS
def test_ray_accepts_it(variant: Any) -> None:
    validate(variant)


def test_the_check_can_fail() -> None:
    with pytest.raises(Exception, match="max_wrkers"):
        validate({**config(), "max_wrkers": 3})


def test_one_version_of_ray_is_named_everywhere_and_it_is_the_tested_one() -> None:
    text = Path("cluster.yaml").read_text()
    assert text.count(f'"{RAY_PIN}"') == 3  # laptop, AWS, on-prem
    named = re.findall(r"ray\[[^\"]*\]==([\d.]+)", text) + re.findall(r"/ray-([\d.]+)/", text)
    assert set(named) == {importlib.metadata.version("ray")}
    ours = next(
        Requirement(line)
        for line in importlib.metadata.requires("dp4tl_ray") or []
        if Requirement(line).name == "ray" and "extra" not in line
    )
    pin = Requirement(RAY_PIN)
    assert ours.extras == pin.extras
    assert all(ours.specifier.contains(one.version) for one in pin.specifier)


@VARIANTS
def test_what_it_mounts_is_there_and_is_enough_to_install_and_run(variant: Any) -> None:
    mounts = variant["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all(there == f"~/dp4tl_ray/{here}" for there, here in mounts.items())
    assert all(Path(here).exists() for here in mounts.values())
    assert {"dp4tl_ray", "experiments", "pyproject.toml"} <= set(mounts.values())
    assert not any(Path(here, name).exists() for here in mounts.values() for name in (".git",))


@VARIANTS
def test_tokens_are_asked_for_and_the_dashboard_is_on(variant: Any) -> None:
    assert any("export RAY_AUTH_MODE=token" in c for c in variant["setup_commands"])
    assert "--include-dashboard=true" in variant["head_start_ray_commands"][-1]


def test_the_documented_store_lines_are_shell(tmp_path: Path) -> None:
    commented = re.findall(r"^  # - (mountpoint .*)$", Path("cluster.yaml").read_text(), re.M)
    assert commented
    for line in commented + config()["setup_commands"]:
        subprocess.run(["bash", "-n", "-c", line], check=True)


# -- a mock of AWS ---------------------------------------------------------------------------------

REMOTE = """#!{python} -SE
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    print(json.dumps(sys.argv), file=file)
"""


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A mock of AWS, and a laptop whose ssh and rsync write down what they are asked to do."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    for name in ("ssh", "rsync"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(REMOTE.format(python=sys.executable))
        script.chmod(0o755)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        **dict.fromkeys(("HOME", "TMPDIR", "RAY_TMPDIR"), str(tmp_path)),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    boto3 = pytest.importorskip("boto3")
    yield lambda service: boto3.client(service, region_name="us-west-2")
    server.stop()


def launch(*command: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("ray"), *command, "--yes", "cluster.yaml"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def instances(ec2: Any) -> list[dict[str, Any]]:
    found = ec2.describe_instances()["Reservations"]
    return [instance for group in found for instance in group["Instances"]]


def test_ray_up_makes_a_head_on_aws_and_sets_it_up(aws: Any, tmp_path: Path) -> None:
    """The head is made in a mock of EC2; ssh and rsync to it are only written down.

    So all that the laptop does is run, and nothing that the head does: not the commands of the
    setup, not the start of Ray, and no workers, which the head's autoscaler would ask EC2 for. The
    role of the head is there already, because Ray sleeps for half a minute after making one.
    """
    iam, ec2 = aws("iam"), aws("ec2")
    iam.create_role(RoleName="ray-autoscaler-v1", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="ray-autoscaler-v1")
    iam.add_role_to_instance_profile(
        InstanceProfileName="ray-autoscaler-v1", RoleName="ray-autoscaler-v1"
    )
    launch("up", "--no-config-cache")
    (head,) = instances(ec2)
    assert head["InstanceType"] == "m5.2xlarge" and head["State"]["Name"] == "running"
    assert head["IamInstanceProfile"]["Arn"].endswith("ray-autoscaler-v1")
    tags = {tag["Key"]: tag["Value"] for tag in head["Tags"]}
    assert tags["ray-node-type"] == "head" and tags["ray-node-status"] == "up-to-date"
    (key,) = ec2.describe_key_pairs()["KeyPairs"]
    assert (tmp_path / ".ssh" / f"{key['KeyName']}.pem").stat().st_mode & 0o77 == 0
    (group,) = head["SecurityGroups"]
    assert group["GroupName"] == "ray-autoscaler-dp4tl"
    ports = {
        rule["FromPort"]
        for rule in ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"][0][
            "IpPermissions"
        ]
        if rule.get("IpRanges")
    }
    assert ports == {22}  # the world may try ssh, and nothing else

    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    asked = [call[-1] for call in calls if call[0].endswith("ssh")]
    steps = [*config()["setup_commands"], *config()["head_start_ray_commands"]]
    places = [next(i for i, text in enumerate(asked) if quoted(step) in text) for step in steps]
    assert places == sorted(places)
    assert '\\"CPU\\":0' in asked[-1].replace(" ", "") or '"CPU":0' in asked[-1].replace(" ", "")
    copied = [call[-1].rpartition(":")[2] for call in calls if call[0].endswith("rsync")]
    assert {there.rstrip("/") for there in config()["file_mounts"]} <= {
        there.rstrip("/") for there in copied
    }
    launch("down")
    assert [instance["State"]["Name"] for instance in instances(ec2)] == ["terminated"]


def quoted(command: str) -> str:
    return command.replace("'", "'\"'\"'")
