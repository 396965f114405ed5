"""Accuracy over pruning ratio: a column per target, a row per setting, a line per method."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from textwrap import wrap
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dp4tl_ray.report.curves import (
    Curve,
    Panel,
    Spread,
    accuracies,
    setting_labels,
    spread,
)
from dp4tl_ray.specs.records import Result

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito (2008), told apart by colour-blind readers; their black is the full source."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One more than colours, so that the two repeat together only after 42 methods."""
FULL, FLOOR = "#000000", "#777777"
WRAP = 32
"""Letters that fit along one side of a panel."""
MIN_HEIGHT = 12
"""Margins from the bottom to the top of a panel, at least."""
LEGEND: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8.5}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "svg.hashsalt": "dp4tl_ray",  # equal results give equal bytes
}


def draw(panels: Sequence[Panel], margin: float) -> Figure:
    """Draw every panel; lines are means over seeds, bands one standard deviation."""
    rows = list(dict.fromkeys(_row(p) for p in panels))
    targets = list(dict.fromkeys(p.setting.target for p in panels))
    methods = list(dict.fromkeys(c.method for p in panels for c in p.curves))
    looks = {m: _look(i) for i, m in enumerate(methods)}
    places = {(_row(p), p.setting.target): p for p in panels}
    labels = setting_labels(rows)
    width = max(5.4, 3.1 * len(targets) + 0.4)
    with rc_context(STYLE):
        handles = _handles(panels, looks, margin)
        columns = _num_columns([h.get_label() for h in handles], width)
        height = 2.5 * len(rows) + 0.6 + 0.2 * math.ceil(len(handles) / columns)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), len(targets), sharex=True, sharey="col", squeeze=False)
        for row, line in zip(rows, grid, strict=True):
            for target, axes in zip(targets, line, strict=True):
                if panel := places.get((row, target)):
                    _draw_panel(axes, panel, looks)
                else:
                    axes.set_axis_off()
            line[0].set_ylabel("\n".join([*wrap(labels[row], WRAP), "test accuracy"]))
        for target, top, bottom in zip(targets, grid[0], grid[-1], strict=True):
            # the note of a panel lies between its axes and its title
            pad = 14 if any(map(_note, panels)) else 6
            title = "\n".join(wrap(target, WRAP))
            top.set_title(title, fontweight="bold", loc="left", pad=pad)
            bottom.set_xlabel("pruning ratio")
            _raise_to(bottom, MIN_HEIGHT * margin)
        figure.legend(handles=handles, ncols=columns, **LEGEND)
    return figure


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as png or svg."""
    content = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with rc_context(STYLE):
        figure.savefig(content, format=kind, dpi=200, metadata=metadata)
    return content.getvalue()


def _row(panel: Panel) -> Any:
    """Return what the panels of one row share: all but the target."""
    return replace(panel.setting, target="")


def _look(index: int) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.5,
    }


def _raise_to(axes: Any, height: float) -> None:
    """Widen the y-axis, shared along a column, so that noise looks like noise on a flat target."""
    low, high = axes.get_ylim()
    lacking = max(0.0, height - (high - low)) / 2
    axes.set_ylim(low - lacking, high + lacking)


def _draw_panel(axes: Any, panel: Panel, looks: dict[str, dict[str, Any]]) -> None:
    axes.set_xlim(-0.03, 1.0)
    axes.margins(y=0.08)
    full = spread(accuracies(panel.full))
    if full:
        axes.axhline(full.mean, color=FULL, linestyle="--", linewidth=1, label="full source")
        if full.sd is not None:
            axes.axhspan(full.mean - full.sd, full.mean + full.sd, color=FULL, alpha=0.1, lw=0)
    levels = {"untrained": panel.untrained, "raw pixels": panel.raw_pixels}
    for n, reached in enumerate(panel.pretrained.values(), start=1):
        levels["pretrained" if len(panel.pretrained) == 1 else f"pretrained {n}"] = reached
    _draw_levels(axes, levels)
    for curve in panel.curves:
        _draw_curve(axes, curve, full, looks[curve.method])
    if note := _note(panel):
        axes.text(0, 1.02, note, transform=axes.transAxes, fontsize=7.5, color=FLOOR)


def _draw_curve(axes: Any, curve: Curve, full: Spread | None, look: dict[str, Any]) -> None:
    """Draw a method from the full source, which is every method at ratio 0."""
    at = {0.0: full} if full else {}
    at |= {p.pruning_ratio: s for p in curve.points if (s := spread(accuracies(p.done)))}
    ratios, levels = list(at), [s for s in at.values() if s]
    axes.plot(ratios, [s.mean for s in levels], label=curve.method, **look)
    if any(s.sd is not None for s in levels):
        # not a number leaves a gap: one seed has no spread, which is not a spread of zero
        sds = [math.nan if s.sd is None else s.sd for s in levels]
        low = [s.mean - sd for s, sd in zip(levels, sds, strict=True)]
        high = [s.mean + sd for s, sd in zip(levels, sds, strict=True)]
        axes.fill_between(ratios, low, high, color=look["color"], alpha=0.15, linewidth=0)
    if curve.lossless_ratio is not None:
        star = at[curve.lossless_ratio]
        assert star is not None
        axes.plot(curve.lossless_ratio, star.mean, label="_star", **_star(look["color"]))


def _star(color: str) -> dict[str, Any]:
    return {
        "marker": "*",
        "markersize": 13,
        "color": color,
        "markeredgecolor": "black",
        "markeredgewidth": 0.7,
        "linestyle": "none",
        "zorder": 5,
    }


def _draw_levels(axes: Any, reached: Mapping[str, Sequence[Result]]) -> None:
    """Draw and name floors, and weights from elsewhere, on their left, where curves are still high.

    The upper one is named above its line and the lower one below, so that near floors stay
    readable.
    """
    levels = {name: s.mean for name, r in reached.items() if (s := spread(accuracies(r)))}
    for name, level in levels.items():
        axes.axhline(level, color=FLOOR, linestyle=":", linewidth=1.2, label=name)
        lower = len(levels) > 1 and name == min(levels, key=lambda n: levels[n])
        axes.annotate(
            name,
            (0.01, level),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, -2 if lower else 2),
            textcoords="offset points",
            va="top" if lower else "bottom",
            fontsize=7.5,
            color=FLOOR,
        )


def _note(panel: Panel) -> str:
    """Say why a panel can have no star."""
    reasons = {c.reason for c in panel.curves if c.lossless_ratio is None and c.reason}
    whole = len(reasons) == 1 and all(c.reason for c in panel.curves)
    return f"no star: {reasons.pop()}" if whole else ""


def _handles(panels: Sequence[Panel], looks: dict[str, dict[str, Any]], margin: float) -> list[Any]:
    """Name each look once."""
    handles: list[Any] = [Line2D([], [], label=method, **look) for method, look in looks.items()]
    curves = [c for p in panels for c in p.curves]
    if any(p.full for p in panels):
        dashed = Line2D([], [], color=FULL, linestyle="--", linewidth=1, label="full source")
        handles.append(dashed)
    repeated = [p.full for p in panels] + [q.done for c in curves for q in c.points]
    if any(len(results) > 1 for results in repeated):
        handles.append(Patch(color=FULL, alpha=0.15, linewidth=0, label="± sd over seeds"))
    if any(c.lossless_ratio is not None for c in curves):
        handles.append(Line2D([], [], label=f"lossless within {margin:g}", **_star("white")))
    return handles


def _num_columns(labels: Sequence[str], width: float) -> int:
    """Return how many columns of a legend fit into so many inches; it fills them downwards.

    At this size a letter takes about 0.07 inches, and the sample beside it 0.55. Columns that
    save no line are not used.
    """
    for columns in range(len(labels), 1, -1):
        rows, longer = divmod(len(labels), columns)
        starts = [i * rows + min(i, longer) for i in range(columns + 1)]
        widest = [max(map(len, labels[a:b])) for a, b in pairwise(starts)]
        if sum(0.07 * letters + 0.55 for letters in widest) <= width:
            return math.ceil(len(labels) / math.ceil(len(labels) / columns))
    return 1
