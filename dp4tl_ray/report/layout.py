"""How tables and numbers are laid out in Markdown."""

from collections.abc import Sequence

from dp4tl_ray.report.curves import Spread

MISSING = "-"


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a Markdown table, head first, in columns that also read as plain text."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|-" + "-|-".join("-" * w for w in widths) + "-|"
    return [lines[0], rule, *lines[1:]]


def mean_sd(summary: Spread | None) -> str:
    """Write mean and deviation."""
    if summary is None:
        return MISSING
    sd = "" if summary.sd is None else f" ± {summary.sd:.3f}"
    return f"{summary.mean:.3f}{sd}"


def number(value: float | None) -> str:
    """Write seconds with three digits or more, never in powers of ten."""
    if value is None:
        return MISSING
    decimals = max(0, 2 - len(str(int(value))) + 1) if value else 0
    return f"{value:,.{decimals}f}"
