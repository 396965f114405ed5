"""The figures of a campaign: experiments/results/faults.md."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from dp4tl_ray.specs.steps import STAGES
from tests.faults.faults import KINDS, MEANINGS, Fault

FOUND = "## Found and mended"
"""From this heading on the file is written by hand."""


def table(faults: Sequence[Fault]) -> str:
    """Return one row per kind, one column per stage: seconds until the step was done."""
    lines = [
        f"| kind | {' | '.join(STAGES)} | survived in place | rerun needed |",
        f"|---|{'--:|' * (len(STAGES) + 2)}",
    ]
    for kind in KINDS:
        mine = [fault for fault in faults if fault.kind == kind]
        if mine:
            cells = [_cell([f for f in mine if f.stage == stage]) for stage in STAGES]
            reran = sum(fault.reran for fault in mine)
            lines.append(f"| {kind} | {' | '.join(cells)} | {len(mine) - reran} | {reran} |")
    return "\n".join(lines)


def _cell(faults: Sequence[Fault]) -> str:
    parts = []
    for fault in faults:
        seconds = "lost" if fault.seconds is None else f"{fault.seconds:.0f}"
        parts.append(seconds + ("*" if fault.reran else ""))
    return " ".join(parts) or "-"


def summary(faults: Sequence[Fault], problems: Sequence[str], seed: int, seconds: float) -> str:
    """Return the figures in words."""
    reran = sum(fault.reran for fault in faults)
    times = [fault.seconds for fault in faults if fault.seconds is not None]
    middle = f"{median(times):.0f} s, at most {max(times):.0f} s" if times else "-"
    return (
        f"{len(faults)} faults tried (seed {seed}), {len(faults) - reran} survived in place, "
        f"{reran} needed a rerun, {len(problems)} problem(s); "
        f"step done after {middle} (median, most); campaign {seconds:.0f} s"
    )


def write(path: Path, faults: Sequence[Fault], problems: Sequence[str], said: str) -> None:
    """Write the record of a whole campaign, and keep what was written by hand."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    by_hand = old[old.index(FOUND) :] if FOUND in old else f"{FOUND}\n\nNothing yet.\n"
    meanings = "\n".join(f"- {kind}: {meaning}" for kind, meaning in MEANINGS.items())
    wrong = "\n".join(f"- {problem}" for problem in problems) or "None."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""# Failure campaign

`make faults`: {said}.

Two one-worker lanes on a Ray cluster of two nodes and a head, all on one machine; a study of two
cells, slowed so that each step takes two seconds or more, with leases of six. One fault per kind
and stage, each at a moment drawn from the first two seconds of the step. After every round the
results and all artifacts are compared byte by byte with those of an undisturbed run without Ray;
no manifest may have changed since it was first there; no process, placement group, CPU or lease
may be left.

{meanings}

Seconds from the fault until the step that ran then was done; * the study had to be run again:

{table(faults)}

## Lost, wrong or left behind

{wrong}

{by_hand}""",
        encoding="utf-8",
    )
