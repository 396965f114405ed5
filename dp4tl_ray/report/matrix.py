"""Many methods at a glance: loss of accuracy, a row per method, a column per target and ratio."""

from collections.abc import Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dp4tl_ray.report.curves import Panel, accuracies, setting_labels, spread
from dp4tl_ray.report.figure import STYLE

WORST = 0.3
"""Loss at which the colour is darkest."""
Losses = npt.NDArray[np.float64]


def draw_matrix(panels: Sequence[Panel]) -> Figure:
    """Draw one matrix per setting; methods are sorted by their mean loss over everything."""
    settings = list(dict.fromkeys(replace(p.setting, target="") for p in panels))
    labels = setting_labels(settings)
    methods = _sorted_methods(panels)
    groups = [[p for p in panels if replace(p.setting, target="") == s] for s in settings]
    num_columns = max(sum(len(_ratios(p)) for p in group) for group in groups)
    with rc_context(STYLE):
        longest = max(map(len, methods))
        size = (0.6 + 0.065 * longest + 0.45 * num_columns * len(groups), 1.8 + 0.2 * len(methods))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, setting, group in zip(
            figure.subplots(1, len(groups), squeeze=False, sharey=True)[0],
            settings,
            groups,
            strict=True,
        ):
            _draw(axes, group, methods)
            axes.set_title(labels[setting], fontweight="bold", loc="left", pad=40)
        figure.supxlabel("pruning ratio; numbers: points lost against the full source", fontsize=9)
    return figure


def _draw(axes: Any, panels: Sequence[Panel], methods: Sequence[str]) -> None:
    """Draw one matrix, and write the loss in points into each cell."""
    columns = [(p, ratio) for p in panels for ratio in _ratios(p)]
    losses = np.array([[_loss(p, m, ratio) for p, ratio in columns] for m in methods])
    axes.imshow(losses, cmap="YlOrRd", vmin=0, vmax=WORST, aspect="auto")
    for (row, column), loss in np.ndenumerate(losses):
        if np.isfinite(loss):
            color = "white" if loss > 0.7 * WORST else "black"
            axes.text(
                column, row, round(100 * loss), ha="center", va="center", color=color, fontsize=7
            )
    axes.set_yticks(range(len(methods)), methods, fontsize=7.5)
    axes.set_xticks(range(len(columns)), [f"{r:g}".lstrip("0") for _, r in columns], fontsize=7.5)
    axes.grid(visible=False)
    start = 0
    for panel in panels:
        width = len(_ratios(panel))
        # a column is about six letters wide
        name = "\n".join(wrap(panel.setting.target.replace("_", "_ "), 6 * width))
        name = name.replace("_ ", "_")
        axes.text(start - 0.4, -0.7, name, fontsize=7, va="bottom", linespacing=0.95)
        if start:
            axes.axvline(start - 0.5, color="white", linewidth=3)
        start += width


def _sorted_methods(panels: Sequence[Panel]) -> list[str]:
    """Sort by the mean over cells of the loss, among methods that have all cells; then the rest."""
    methods = list(dict.fromkeys(c.method for p in panels for c in p.curves))
    mean = {
        m: float(np.mean([_loss(p, m, ratio) for p in panels for ratio in _ratios(p)]))
        for m in methods
    }
    return sorted(methods, key=lambda m: (np.isnan(mean[m]), mean[m], m))


def _ratios(panel: Panel) -> list[float]:
    return sorted({point.pruning_ratio for curve in panel.curves for point in curve.points})


def _loss(panel: Panel, method: str, ratio: float) -> float:
    """Return full minus pruned mean accuracy; not a number where one is missing."""
    full = spread(accuracies(panel.full))
    for curve in panel.curves:
        for point in curve.points:
            if (curve.method, point.pruning_ratio) == (method, ratio):
                pruned = spread(accuracies(point.done))
                return full.mean - pruned.mean if full and pruned else float("nan")
    return float("nan")
