"""python -m tests.faults [--seed N] [--only KIND,KIND] [--stages STAGE,STAGE]"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from dp4tl_ray.specs.steps import STAGES
from tests.faults.faults import KINDS, MOUNTS, Fault, draw_rounds
from tests.faults.record import summary, table, write
from tests.faults.round import Round
from tests.faults.world import REPOSITORY, World

RECORD = REPOSITORY / "experiments" / "results" / "faults.md"
EXTRA_ROUNDS = 2
"""Rounds for faults that have not come, because their step was over."""


def _names(allowed: tuple[str, ...]) -> "argparse._ActionType":
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"{unknown}; allowed: {', '.join(allowed)}")
        return names

    return parse


def main() -> int:
    """Run the campaign; returns 1 if anything was lost, wrong or left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", type=_names(KINDS), default=list(KINDS), metavar="KIND,KIND")
    parser.add_argument("--stages", type=_names(STAGES), default=list(STAGES), metavar="STAGE,..")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(130))
    print(f"seed {args.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="dp4tl-faults-"))
    rng, problems, faults, kinds = random.Random(args.seed), list[str](), list[Fault](), args.only
    with World(folder) as world:
        if not world.mounts:
            print(f"may not mount file systems here: skipped are {', '.join(MOUNTS)}", flush=True)
            kinds = [kind for kind in kinds if kind not in MOUNTS]
        rounds = draw_rounds(rng, kinds, args.stages)
        most = len(rounds) + EXTRA_ROUNDS
        for number in range(1, most + 1):
            if len(rounds) < number:
                break
            mine = rounds[number - 1]
            problems += Round(world, number, mine, rng).play()
            came = [fault for fault in mine.values() if fault.came is not None]
            for fault in sorted(came, key=lambda fault: fault.came or 0.0):
                print(fault.line(), flush=True)
            faults += came
            rounds += [{stage: fault} for stage, fault in mine.items() if fault.came is None]
        seconds = world.seconds
    problems += [f"{f.kind} x {f.stage} has not come" for r in rounds for f in r.values()
                 if f.came is None]  # fmt: skip
    said = summary(faults, problems, args.seed, seconds)
    print("\n".join(["", table(faults), "", said, *problems]))
    if len(args.only) == len(KINDS) and len(args.stages) == len(STAGES):
        write(RECORD, faults, problems, said)
    if problems:
        print(f"logs, and the stores of rounds with problems: {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
