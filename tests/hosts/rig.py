"""Two hosts on one machine: network namespaces, each with its own processes, home and sshd.

They share the file system but for the home folder, /tmp/ray and /dev/shm, so that this machine's
Python and any folder outside of these are there on both. Everything is under one folder and ends
with the `with` block; what a killed run has left is cleared away by the next one.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ruamel.yaml import YAML

SUBNET = os.environ.get("DP4TL_HOSTS_SUBNET", "10.78.0")
"""First three numbers of the addresses; to be changed where they are taken."""
TOOLS = ("ip", "unshare", "ssh", "ssh-keygen", "rsync", "tmux", "/usr/sbin/sshd")


def reason_to_skip() -> str:
    """Say what is missing for a rig; empty when nothing is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"not installed: {', '.join(missing)}" if missing else ""


def sh(*command: str | Path) -> str:
    """Run a command that must work; returns its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    return done.stdout


def _try(*command: str | Path) -> str:
    with contextlib.suppress(RuntimeError):
        return sh(*command)
    return ""


class Host:
    """One host of the rig."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"dp4tl-h{number}"
        self.address = f"{SUBNET}.{number}"
        self.link = f"dp4tl-v{number}"
        self.folder = folder / self.name

    def build(self, key: Path, bashrc: str) -> None:
        """Create the host, and wait until it answers."""
        (self.folder / "ray").mkdir(parents=True)
        ssh = self.folder / "home" / ".ssh"
        ssh.mkdir(parents=True)
        shutil.copy(f"{key}.pub", ssh / "authorized_keys")
        for path in (ssh.parent, ssh):
            path.chmod(0o700)
        for name in (".bashrc", ".bash_profile"):
            (self.folder / "home" / name).write_text(bashrc)
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key")
        sh("ip", "netns", "add", self.name)
        sh("ip", "link", "add", self.link, "type", "veth", "peer", "name", "e0", "netns", self.name)
        sh("ip", "link", "set", self.link, "master", BRIDGE, "up")
        inside = ("ip", "-n", self.name)
        sh(*inside, "addr", "add", f"{self.address}/24", "dev", "e0")
        for link in ("e0", "lo"):
            sh(*inside, "link", "set", link, "up")
        sh(*inside, "route", "add", "default", "via", f"{SUBNET}.1")
        first = str(Path(__file__).with_name("host.sh"))
        with (self.folder / "host.log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.name),
                    *("unshare", "-m", "-u", "-p", "-f", "--kill-child", "--mount-proc"),
                    *("sh", first, str(self.folder), self.name, *interpreters_at_home()),
                ],
                stdout=log,
                stderr=log,
            )
        self.wait(key)

    def wait(self, key: Path) -> None:
        """Wait until the host answers ssh."""
        deadline = time.monotonic() + 20
        while not _try(*ssh_command(key), f"root@{self.address}", "hostname"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no ssh: {(self.folder / 'host.log').read_text()}")
            time.sleep(0.2)

    def cut(self) -> None:
        """Take the host off the network, as a pulled cable does."""
        sh("ip", "link", "set", self.link, "down")

    def join(self) -> None:
        """Put the host on the network again."""
        sh("ip", "link", "set", self.link, "up")

    def processes(self) -> list[int]:
        """Return this machine's pids of all that runs on the host."""
        return [int(pid) for pid in _try("ip", "netns", "pids", self.name).split()]

    def remove(self) -> None:
        """End the host's processes and the host."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if hasattr(self, "process"):
            self.process.wait()
        _try("ip", "netns", "del", self.name)
        _try("ip", "link", "del", self.link)


BRIDGE = "dp4tl-br"


class Rig:
    """A head and a worker of one core each, and this machine as the client's laptop."""

    def __init__(self, folder: Path, auth_mode: str) -> None:
        self.folder, self.auth_mode = folder, auth_mode
        self.head, self.worker = Host(folder, 2), Host(folder, 3)
        self.key = folder / "key"
        self.home = folder / "laptop"

    def __enter__(self) -> "Rig":
        self.down()
        try:
            self._build()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def _build(self) -> None:
        self.home.mkdir(parents=True)
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        sh("ip", "link", "add", BRIDGE, "type", "bridge")
        sh("ip", "addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        sh("ip", "link", "set", BRIDGE, "up")
        exports = {
            "PATH": f"{Path(sys.executable).parent}:$PATH",
            "PYTHONPATH": "$HOME/dp4tl_ray",  # instead of an installation
            "RAY_AUTH_MODE": self.auth_mode,
            "RAY_OVERRIDE_RESOURCES": "'" + json.dumps({"CPU": 1}) + "'",
            "RAY_health_check_period_ms": "1000",
        }
        bashrc = "".join(f"export {name}={value}\n" for name, value in exports.items())
        for host in (self.head, self.worker):
            host.build(self.key, bashrc)

    def down(self) -> None:
        """Remove all that a rig consists of, but for its folder."""
        for host in (self.head, self.worker):
            host.remove()
        _try("ip", "link", "del", BRIDGE)

    def ray(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Start a command of Ray's launcher, as on a laptop; its output is the process's stdout."""
        environment = {
            **os.environ,
            "HOME": str(self.home),
            "RAY_TMPDIR": str(self.home),
            "TMPDIR": str(self.home),
            "RAY_AUTH_MODE": self.auth_mode,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return subprocess.Popen(
            [Path(sys.executable).with_name("ray"), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def run(self, *arguments: str | Path, seconds: float = 300) -> tuple[int, str]:
        """Run a command of Ray's launcher; returns exit code and output."""
        process = self.ray(*arguments)
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            return -1, out
        return process.returncode, out

    def on(self, host: Host, command: str) -> str:
        """Run a command in a login shell of a host; returns its output."""
        return sh(*ssh_command(self.key), f"root@{host.address}", f"bash -l -c {quote(command)}")


def quote(text: str) -> str:
    """Quote a command for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def ssh_command(key: Path) -> list[str]:
    """Return ssh with the options that a throw-away host needs."""
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    return ["ssh", "-i", str(key), "-o", "ConnectTimeout=3"] + [
        part for option in options for part in ("-o", option)
    ]


def interpreters_at_home() -> list[str]:
    """Return the folders of this Python that a host of its own home would not see."""
    home = Path.home()
    return sorted({p for p in (sys.prefix, sys.base_prefix) if Path(p).is_relative_to(home)})


def on_prem_variant(path: Path = Path("cluster.yaml")) -> dict[str, Any]:
    """Return the variant for one's own machines, which cluster.yaml holds as comments."""
    block = path.read_text().split("# ---- your own machines")[1].split("\n", 1)[1]
    lines = [re.sub("^# ?", "", line) for line in block.splitlines() if line.startswith("#")]
    variant: dict[str, Any] = YAML(typ="safe", pure=True).load("\n".join(lines))
    return variant
