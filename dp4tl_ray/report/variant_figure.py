"""Adversarial variants: a row per attack, a column per target, a colour per variant."""

import math
from collections.abc import Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dp4tl_ray.report.curves import Setting, setting_labels
from dp4tl_ray.report.figure import COLORS, FLOOR, FULL, LEGEND, MARKERS, STYLE, WRAP
from dp4tl_ray.report.variants import Family, Measure

Over = Literal["ratio", "cost"]
PALETTE = (FULL, *COLORS, "#8C510A", "#B8A100")
"""Standard training, which comes first, is black."""
DASHES = ("-", "--", ":", "-.")
"""One per pruning method."""
LABELS = {
    "ratio": "pruning ratio",
    "cost": "cost, in standard pretrainings on the whole source",
}


def draw_variants(families: Sequence[Family], over: Over) -> Figure:
    """Draw accuracies over the pruning ratio, or over what the pretraining cost.

    Over cost, the line at 1 is what a standard pretraining on the whole source costs: what is
    higher there is the better way to spend as much. Bars are one standard deviation over seeds.
    """
    targets = list(dict.fromkeys(f.setting.target for f in families))
    settings = list(dict.fromkeys(_row(f) for f in families))
    names = list(dict.fromkeys(m.name for f in families for m in f.measures))
    curves = [c for f in families for m in f.measures for c in m.curves]
    variants = {v: n for n, v in enumerate(dict.fromkeys(c.variant for c in curves))}
    methods = {m: n for n, m in enumerate(dict.fromkeys(c.method for c in curves))}
    told = setting_labels(settings)
    rows = [(setting, name) for setting in settings for name in names]
    places = {(_row(f), m.name, f.setting.target): m for f in families for m in f.measures}
    with rc_context(STYLE):
        handles = _handles(variants, methods)
        columns = max(1, len(targets))
        height = 2.1 * len(rows) + 0.6 + 0.2 * math.ceil(len(handles) / columns)
        figure = Figure(figsize=(max(5.4, 3.1 * len(targets) + 0.4), height), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), len(targets), sharex=True, sharey="col", squeeze=False)
        for (setting, name), line in zip(rows, grid, strict=True):
            for target, axes in zip(targets, line, strict=True):
                if measure := places.get((setting, name, target)):
                    _draw(axes, measure, over, variants, methods)
                else:
                    axes.set_axis_off()
            label = ", ".join(filter(None, [told[setting], name]))
            line[0].set_ylabel("\n".join([*wrap(label, WRAP), "test accuracy"]))
        for target, top, bottom in zip(targets, grid[0], grid[-1], strict=True):
            top.set_title("\n".join(wrap(target, WRAP)), fontweight="bold", loc="left")
            bottom.set_xlabel("\n".join(wrap(LABELS[over], WRAP)))
        figure.legend(handles=handles, ncols=columns, **LEGEND)
    return figure


def _row(family: Family) -> Setting:
    return replace(family.setting, target="")


def _draw(
    axes: Any, measure: Measure, over: Over, variants: dict[str, int], methods: dict[str, int]
) -> None:
    if measure.untrained:
        axes.axhline(measure.untrained.mean, color=FLOOR, linestyle=":", linewidth=1)
    if over == "cost":
        axes.axvline(1.0, color=FULL, linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for curve in measure.curves:
        levels = curve.levels
        look = _look(variants[curve.variant]) | {"linestyle": _dash(methods[curve.method])}
        x = [level.pruning_ratio if over == "ratio" else level.cost for level in levels]
        axes.plot(x, [level.accuracy.mean for level in levels], **look)
        for at, level in zip(x, levels, strict=True):
            mean, sd = level.accuracy.mean, level.accuracy.sd or 0.0
            # bands of so many lines would hide each other
            axes.vlines(at, mean - sd, mean + sd, color=look["color"], alpha=0.35, linewidth=0.8)


def _look(index: int) -> dict[str, Any]:
    """Return how a variant looks."""
    color = PALETTE[index % len(PALETTE)]
    marker = MARKERS[index % len(MARKERS)]
    return {"color": color, "marker": marker, "markersize": 3.5, "linewidth": 1.2}


def _dash(index: int) -> str:
    return DASHES[index % len(DASHES)]


def _handles(variants: dict[str, int], methods: dict[str, int]) -> list[Any]:
    """Name each colour, each kind of line, and the floor."""
    found = [Line2D([], [], label=variant, **_look(n)) for variant, n in variants.items()]
    for method, n in methods.items():
        found.append(Line2D([], [], color="#444444", linestyle=_dash(n), label=method))
    found.append(Line2D([], [], color=FLOOR, linestyle=":", label="untrained"))
    return found
