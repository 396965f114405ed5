"""Results as tables: every field as CSV, and what they say as Markdown."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from dp4tl_ray.algorithms.lossless import CONFIDENCE, MIN_SEEDS, SENSITIVE_MARGINS
from dp4tl_ray.report.curves import (
    Curve,
    Panel,
    Point,
    accuracies,
    cell_name,
    latest,
    setting_labels,
    spread,
)
from dp4tl_ray.report.layout import MISSING, markdown_table, mean_sd, number
from dp4tl_ray.report.variant_tables import variant_sections
from dp4tl_ray.report.variants import Family
from dp4tl_ray.specs.base import Spec
from dp4tl_ray.specs.records import Result


def csv_table(results: Iterable[Result]) -> str:
    """Write every field of every result; a field of a nested record is `record.field`."""
    paths = _leaves(Result)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(paths)
    writer.writerows([_leaf(result, path) for path in paths] for result in results)
    return text.getvalue()


def _leaves(record: type[Spec], prefix: str = "") -> list[str]:
    """Name the fields of a record, those of nested ones too, whether or not a result has them."""
    paths = []
    for name, field in record.model_fields.items():
        types = (field.annotation, *get_args(field.annotation))
        nested = [t for t in types if isinstance(t, type) and issubclass(t, Spec)]
        listed = get_origin(field.annotation) is tuple  # which is one cell
        inner = nested[:1] if not listed else []
        paths += _leaves(inner[0], f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return paths


def _leaf(result: Result, path: str) -> Any:
    """Read one field; null is an empty cell, and a list is its JSON."""
    value: Any = result
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    if isinstance(value, tuple | list | dict):
        return json.dumps(value, default=lambda record: record.model_dump(mode="json"))
    return value


def markdown(
    results: Sequence[Result],
    panels: Sequence[Panel],
    margin: float,
    figures: Mapping[str, str],
    confidence: float = CONFIDENCE,
    attacked: Sequence[tuple[str, Panel]] = (),
    families: Sequence[Family] = (),
) -> str:
    """Write what the results say: a section per target and setting, and what failed.

    Figures are shown under their captions, at the top.
    """
    results = latest(results)
    labels = setting_labels([p.setting for p in panels], always=("objective", "network", "budget"))
    studies = ", ".join(f"`{s}`" for s in dict.fromkeys(r.study for r in results))
    lines = [f"# Results of {studies or 'nothing'}", "", *_notes(results, margin, confidence)]
    for caption, name in figures.items():
        lines += ["", f"![{caption}]({name})"]
    told = setting_labels([f.setting for f in families], always=("objective", "network", "budget"))
    lines += variant_sections(families, [told[family.setting] for family in families])
    for panel in panels:
        label = labels[panel.setting]
        lines += ["", f"## {panel.setting.target}: {label}", "", *_levels(panel, margin)]
        if panel.curves:
            lines += ["", *_accuracy_table(panel, margin), *_regret_table(panel)]
            lines += ["", *_cost_table(panel)]
        lines += _worst_group_table(panel)
        for attack, under in attacked:
            if under.setting == panel.setting:
                lines += ["", f"### Under {attack}", "", _level(under)]
                lines += ["", *_accuracy_table(under, margin)] if under.curves else []
    alarms: dict[str, list[Result]] = {}
    for r in results:
        for alarm in r.alarms:
            alarms.setdefault(alarm, []).append(r)
    if alarms:
        lines += ["", f"## Alarms: {len(alarms)}", ""]
        lines += [f"- {_whose(of)}: {alarm}" for alarm, of in alarms.items()]
    failed = [r for r in results if r.status == "failed"]
    if failed:
        lines += ["", f"## Failed: {len(failed)} of {len(results)}", ""]
        lines += [f"- {cell_name(r)}: {' '.join(r.error.split()) or 'no reason'}" for r in failed]
    return "\n".join(lines) + "\n"


def _notes(results: Sequence[Result], margin: float, confidence: float) -> list[str]:
    """Say what the numbers below mean, and what their spread leaves out."""
    lines = [
        "Accuracies are fractions on the test split, mean ± sample standard deviation over seeds. "
        "Pruning ratio is the share of source examples removed, class ratio the share of source "
        "classes gone.",
        "",
        f"Lossless: the one-sided {confidence:.0%} upper bound of the loss against the full source "
        f"(bootstrap over seeds and test examples, paired by seed) is below {margin:g}. Ratios are "
        f"tested upwards and stopped at the first failure. A verdict needs {MIN_SEEDS} seeds and "
        f"a sensitive target, whose full source beats the untrained network by "
        f"{SENSITIVE_MARGINS} margins.",
        "",
        "Speed-up is pretraining seconds of the full source over those of the pruned one, on the "
        "same device with as many workers; net adds surrogate and scoring to the pruned one, as if "
        "they served this one pretraining alone.",
    ]
    pinned = sorted({r.surrogate_seed for r in results if r.surrogate_seed is not None})
    if pinned:
        seeds = ", ".join(map(str, pinned))
        lines += ["", f"The surrogate is pinned (seed {seeds}): the spread over seeds excludes it."]
    return lines


def _levels(panel: Panel, margin: float) -> list[str]:
    """Write the full source and the floors, and whether the target can tell them apart."""
    seconds = _mean_of([r.pretrain_seconds for r in panel.full])
    lines = [
        f"- full source: {_mean_sd(accuracies(panel.full))}, {_seeds(len(panel.full))}, "
        f"pretraining {number(seconds)} s",
        f"- floor, untrained network: {_mean_sd(accuracies(panel.untrained))}, "
        f"{_seeds(len(panel.untrained))}",
        f"- floor, raw pixels: {_mean_sd(accuracies(panel.raw_pixels))}, "
        f"{_seeds(len(panel.raw_pixels))}",
    ]
    for name, reached in panel.pretrained.items():
        lines.append(f"- {name}: {_mean_sd(accuracies(reached))}, {_seeds(len(reached))}")
    full, floor = spread(accuracies(panel.full)), spread(accuracies(panel.untrained))
    if panel.sensitive is False and full and floor:
        lines.append(
            f"- **insensitive**: the full source beats the untrained network by "
            f"{full.mean - floor.mean:.3f}, less than {SENSITIVE_MARGINS} margins of {margin:g}: "
            f"no star"
        )
    if 0 < len(panel.full) < MIN_SEEDS:
        lines.append(f"- **curve only**: fewer than {MIN_SEEDS} seeds, no star")
    return lines


def _level(panel: Panel) -> str:
    """Write the full source and the floor in a line."""
    full, floor = _mean_sd(accuracies(panel.full)), _mean_sd(accuracies(panel.untrained))
    insensitive = ", **insensitive: no star**" if panel.sensitive is False else ""
    return f"full source {full}, untrained {floor}{insensitive}"


def _accuracy_table(panel: Panel, margin: float) -> list[str]:
    """Cross methods with ratios."""
    ratios = sorted({p.pruning_ratio for c in panel.curves for p in c.points})
    rows = [["method", *(f"{r:g}" for r in ratios), f"lossless up to (tolerance {margin:g})"]]
    for curve in panel.curves:
        at = {p.pruning_ratio: _mean_sd(accuracies(p.done)) for p in curve.points}
        rows.append([curve.method, *(at.get(r, MISSING) for r in ratios), _verdict(curve)])
    return markdown_table(rows)


def _worst_group_table(panel: Panel) -> list[str]:
    """Cross methods with ratios, of a target that has groups."""
    reached = {(c.method, p.pruning_ratio): _worst(p.done) for c in panel.curves for p in c.points}
    full, floor = _worst(panel.full), _worst(panel.untrained)
    if not any((full, floor, *reached.values())):
        return []
    ratios = sorted({ratio for _, ratio in reached})
    lines = ["", "### In the worst group", ""]
    lines += [f"full source {_mean_sd(full)}, untrained {_mean_sd(floor)}", ""]
    rows = [["method", *(f"{r:g}" for r in ratios)]]
    for method in dict.fromkeys(method for method, _ in reached):
        rows.append([method, *(_mean_sd(reached.get((method, r), [])) for r in ratios)])
    return lines + (markdown_table(rows) if reached else [])


def _worst(results: Iterable[Result]) -> list[float]:
    found = (r.metrics.worst_group_accuracy for r in results if r.metrics)
    return [accuracy for accuracy in found if accuracy is not None]


def _regret_table(panel: Panel) -> list[str]:
    """Tell what sharing one subset among targets costs this one, paired by seed."""
    own = {(c.method, p.pruning_ratio): p for c in panel.curves for p in c.points}
    ratios = sorted({ratio for _, ratio in own})
    rows = []
    for curve in panel.curves:
        regret: dict[float, list[float]] = {}
        for point in curve.points:
            for result in point.done:
                alone = own.get((result.own_method, point.pruning_ratio))
                if result.own_method == result.method or alone is None:
                    continue
                of_seed = {r.seed: r.metrics.accuracy for r in alone.done if r.metrics}
                if result.metrics and result.seed in of_seed:
                    loss = of_seed[result.seed] - result.metrics.accuracy
                    regret.setdefault(point.pruning_ratio, []).append(loss)
        if regret:
            rows.append([curve.method, *(_mean_sd(regret.get(r, [])) for r in ratios)])
    if not rows:
        return []
    note = "Regret: accuracy of this target's own subset less that of the subset for all targets."
    return ["", note, "", *markdown_table([["method", *(f"{r:g}" for r in ratios)], *rows])]


def _verdict(curve: Curve) -> str:
    if curve.lossless_ratio is None:
        return f"no verdict: {curve.reason}" if curve.reason else "none"
    ratio = f"**{curve.lossless_ratio:g}**"
    return f"{ratio} ({curve.reason})" if curve.reason else ratio


def _cost_table(panel: Panel) -> list[str]:
    """One row per method and ratio: what was kept, what it lost and what it saved."""
    head = "method, ratio, seeds, class ratio, kept examples, kept classes, without a vote, "
    head += "loss at most, gain kept, pretrain s, speed-up, net"
    rows = [head.split(", ")]
    for curve in panel.curves:
        rows += [[curve.method, *_cost_row(point)] for point in curve.points]
    return markdown_table(rows)


def _cost_row(point: Point) -> list[str]:
    failed = f" ({point.num_failed} failed)" if point.num_failed else ""
    return [
        f"{point.pruning_ratio:g}",
        f"{len(point.done)}{failed}",
        _mean([r.class_ratio for r in point.done], "{:.3f}"),
        _mean([r.num_kept for r in point.done], "{:,.0f}"),
        _mean([r.num_classes_kept for r in point.done], "{:,.1f}").removesuffix(".0"),
        _mean([r.unvoted_share for r in point.done], "{:.3f}"),
        MISSING if point.loss_bound is None else f"{point.loss_bound:.3f}",
        MISSING if point.gain_kept is None else f"{point.gain_kept:.3f}",
        number(_mean_of([r.pretrain_seconds for r in point.done])),
        MISSING if point.speed_up is None else f"{point.speed_up:.2f}x",
        MISSING if point.net_speed_up is None else f"{point.net_speed_up:.2f}x",
    ]


def _whose(results: Sequence[Result]) -> str:
    """Name the results that share an alarm."""
    more = f" and {len(results) - 1} more results" if len(results) > 1 else ""
    return f"{cell_name(results[0])}{more}"


def _seeds(number: int) -> str:
    return f"{number} seed" if number == 1 else f"{number} seeds"


def _mean_sd(values: Sequence[float]) -> str:
    return mean_sd(spread(values))


def _mean_of(values: Iterable[float | None]) -> float | None:
    """Average what was recorded."""
    summary = spread([v for v in values if v is not None])
    return summary.mean if summary else None


def _mean(values: Iterable[float | None], layout: str) -> str:
    mean = _mean_of(values)
    return MISSING if mean is None else layout.format(mean)
