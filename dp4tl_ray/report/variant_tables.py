"""Tables of adversarial variants: a section per family."""

from collections.abc import Sequence

from dp4tl_ray.report.curves import Spread
from dp4tl_ray.report.layout import MISSING, markdown_table, mean_sd
from dp4tl_ray.report.variants import Family, Level, Measure

NOTE = (
    "The best variant of each method and ratio is bold. A cost is that of one standard pretraining "
    "on the whole source, counted: a gradient of images takes two thirds of a standard step, a "
    "forward pass a third. At equal cost accuracies are interpolated between the two nearest "
    "ratios, linearly in the cost."
)


def variant_sections(families: Sequence[Family], labels: Sequence[str]) -> list[str]:
    """Write for each family which variant is best where, and what equal cost buys."""
    lines: list[str] = []
    for family, label in zip(families, labels, strict=True):
        lines += ["", f"## Adversarial variants, {family.setting.target}: {label}", "", NOTE]
        for measure in family.measures:
            floor = f", untrained {measure.untrained.mean:.3f}" if measure.untrained else ""
            lines += ["", f"Accuracy, {measure.name}{floor}:", "", *_by_ratio(measure)]
        lines += ["", "At the cost of one standard pretraining on the whole source:", ""]
        lines += _at_equal_cost(family)
    return lines


def _by_ratio(measure: Measure) -> list[str]:
    """Cross variants with ratios, method by method."""
    ratios = sorted({level.pruning_ratio for c in measure.curves for level in c.levels})
    rows = [["method", "variant", *(f"{ratio:g}" for ratio in ratios)]]
    for method in dict.fromkeys(c.method for c in measure.curves):
        curves = [c for c in measure.curves if c.method == method]
        best = {ratio: _best([c.at(ratio) for c in curves]) for ratio in ratios}
        for curve in curves:
            levels = [curve.at(ratio) for ratio in ratios]
            cells = [_cell(x, best[r]) for x, r in zip(levels, ratios, strict=True)]
            rows.append([method, curve.variant, *cells])
    return markdown_table(rows)


def _best(levels: Sequence[Level | None]) -> Spread | None:
    there = [level.accuracy for level in levels if level is not None]
    return max(there, key=lambda accuracy: accuracy.mean) if there else None


def _cell(level: Level | None, best: Spread | None) -> str:
    if level is None:
        return MISSING
    text = mean_sd(level.accuracy)
    return f"**{text}**" if best is not None and level.accuracy.mean >= best.mean else text


def _at_equal_cost(family: Family) -> list[str]:
    """One row per method and variant: how much it may keep, and what it then reaches."""
    head = ["method", "variant", "step cost", "measured", "keeps"]
    rows = [[*head, *(measure.name for measure in family.measures)]]
    for place, curve in enumerate(family.measures[0].curves):
        cost, slowdown = family.step_costs[curve.variant], family.slowdowns[curve.variant]
        reached = [measure.curves[place].at_cost(1.0) for measure in family.measures]
        rows.append(
            [
                curve.method,
                curve.variant,
                f"{cost:.2f}",
                MISSING if slowdown is None else f"{slowdown:.2f}",
                f"{min(1.0, 1 / cost):.2f}",
                *(MISSING if value is None else f"{value:.3f}" for value in reached),
            ]
        )
    return markdown_table(rows)
