"""Entry for `ray submit cluster.yaml dp4tl_ray/submit.py STUDY [options of dp4tl run]`.

`ray submit` copies this one file to the head and runs it there, without quoting its arguments: pass
paths and plain words only. Package and experiments are on the head already, by `file_mounts`.
"""

import os
import sys


def main() -> int:
    """Run a study on the cluster that this machine is the head of."""
    from dp4tl_ray.cli import main as dp4tl

    os.environ.setdefault("RAY_ADDRESS", "auto")
    os.chdir(os.path.expanduser("~/dp4tl_ray"))  # where cluster.yaml mounts the repository
    return dp4tl(["run", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
