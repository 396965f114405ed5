"""Entry for `ray submit cluster.yaml dp4tl_ray/submit.py STUDY [options of dp4tl run]`.

`ray submit` copies this one file to the head and runs it there, without quoting its arguments: pass
paths and plain words only. Package and experiments are on the head already, by `file_mounts`. The
same file is the entry point of `ray job submit`.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Run a study on the cluster that this machine is the head of."""
    mounted = Path("~/dp4tl_ray").expanduser()  # where cluster.yaml puts package and experiments
    if mounted.is_dir():
        os.chdir(mounted)
    sys.path[0] = os.getcwd()  # rather than this file's folder, whose other files are no packages
    os.environ.setdefault("RAY_ADDRESS", "auto")
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _hang_up)

    from dp4tl_ray.cli import main as dp4tl

    return dp4tl(["run", *sys.argv[1:]])


def _hang_up(number: int, frame: Any) -> None:
    """End as after Ctrl-C when the connection drops; nobody reads the terminal any more."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
