"""Adversarial variants in the report, from results made by hand."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from dp4tl_ray.report import write_report
from dp4tl_ray.report.attacked import panels_under_attack
from dp4tl_ray.report.curves import build_panels
from dp4tl_ray.report.variant_figure import draw_variants
from dp4tl_ray.report.variants import Family, build_families
from dp4tl_ray.specs.records import Metrics, Result, RobustAccuracy
from tests.test_report import FULL, MARGIN, UNTRAINED, cells, result

SEEDS = (0, 1, 2)
ATTACKS = (4 / 255, 8 / 255)


def attacked(clean: float, *robust: float, **change: Any) -> Result:
    """A result with accuracies under PGD of two radii."""
    line = result(clean, **change)
    assert line.metrics is not None
    accuracies = tuple(
        RobustAccuracy(attack="pgd", norm="linf", eps=eps, steps=20, accuracy=accuracy)
        for eps, accuracy in zip(ATTACKS, robust, strict=True)
    )
    metrics = Metrics(
        accuracy=clean, mean_class_accuracy=line.metrics.mean_class_accuracy, robust=accuracies
    )
    return line.model_copy(update={"metrics": metrics})


def by_hand() -> list[Result]:
    """Standard training and PGD, whose step costs three; at half of the source PGD is better."""
    lines = []
    for seed in SEEDS:
        common: dict[str, Any] = {"seed": seed}
        lines.append(attacked(0.3, 0.1, 0.0, **{**UNTRAINED, **common}))
        for variant, cost, clean, robust in (("none", 1.0, 0.8, 0.2), ("pgd", 3.0, 0.76, 0.6)):
            own = {**common, "adversarial": variant, "step_cost": cost}
            images = 1200
            full = {**FULL, **own, "examples_seen": images, "pretrain_seconds": 10 * cost * 1.1}
            lines.append(attacked(clean, robust, robust / 2, **full))
            for ratio, loss in ((0.5, 0.0 if variant == "pgd" else 0.1), (0.8, 0.2)):
                pruned = {
                    **own,
                    "pruning_ratio": ratio,
                    "examples_seen": round(images * (1 - ratio)),
                    "pretrain_seconds": 10 * cost * (1 - ratio),
                }
                lines.append(attacked(clean - loss, robust - loss / 2, robust / 4, **pruned))
    return lines


def families(results: list[Result]) -> list[Family]:
    panels = build_panels(results, MARGIN, None)
    return build_families(panels, panels_under_attack(results, MARGIN, None, 0.95))


def test_variants_of_one_pretraining_are_a_family_and_a_lone_one_is_none() -> None:
    (family,) = families(by_hand())
    assert family.step_costs == {"none": 1.0, "pgd": 3.0}
    assert family.slowdowns == {"none": 1.0, "pgd": pytest.approx(3.0)}
    names = [measure.name for measure in family.measures]
    assert names == ["images as they are", "PGD-20 linf 4/255", "PGD-20 linf 8/255"]
    alone = [line for line in by_hand() if line.adversarial == "none"]
    assert families(alone) == []
    no_whole = [line for line in by_hand() if line.pruning_ratio > 0]
    assert families(no_whole) == []


def test_costs_are_counted_and_accuracies_at_equal_cost_interpolated() -> None:
    (family,) = families(by_hand())
    curves = {c.variant: c for c in family.measures[0].curves}
    assert [level.cost for level in curves["pgd"].levels] == pytest.approx([3.0, 1.5, 0.6])
    # 1.0 lies between 1.5 (.76) and 0.6 (.56)
    assert curves["pgd"].at_cost(1.0) == pytest.approx(0.56 + 0.2 * (1.0 - 0.6) / 0.9)
    assert curves["none"].at_cost(1.0) == pytest.approx(0.8)
    assert curves["none"].at_cost(1.1) is None and curves["pgd"].at_cost(0.5) is None


def test_the_best_variant_of_a_ratio_is_bold_and_equal_cost_has_its_table(tmp_path: Path) -> None:
    write_report(by_hand(), tmp_path, MARGIN, None)
    text = (tmp_path / "results.md").read_text()
    section = text.split("## Adversarial variants, letters")[1].split("\n## ")[0]
    clean, at_4, at_8, equal = section.split("Accuracy, ")[1:] + section.split("At the cost")[1:]
    method = cells(clean, "label_mapping")[0][0]
    assert cells(clean, method) == [
        [method, "none", "**0.800 ± 0.000**", "0.700 ± 0.000", "**0.600 ± 0.000**"],
        [method, "pgd", "0.760 ± 0.000", "**0.760 ± 0.000**", "0.560 ± 0.000"],
    ]
    assert "untrained 0.300" in clean and "untrained 0.100" in at_4 and "untrained 0.000" in at_8
    assert cells(at_4, method)[1][2:] == ["**0.600 ± 0.000**"] * 2 + ["**0.500 ± 0.000**"]
    assert cells(equal, method) == [
        [method, "none", "1.00", "1.00", "1.00", "0.800", "0.200", "0.100"],
        [method, "pgd", "3.00", "3.00", "0.33", "0.649", "0.544", "0.150"],
    ]
    for over in ("ratio", "cost"):
        assert f"(variants_over_{over}.png)" in text
        assert (tmp_path / f"variants_over_{over}.svg").stat().st_size > 1000


@pytest.mark.parametrize("over", ["ratio", "cost"])
def test_a_figure_has_a_row_per_attack_and_a_line_per_variant(over: Any) -> None:
    figure = draw_variants(families(by_hand()), over)
    assert isinstance(figure, Figure) and not plt.get_fignums()
    assert len(figure.axes) == 3
    for axes, floor in zip(figure.axes, (0.3, 0.1, 0.0), strict=True):
        lines = [line for line in axes.get_lines() if np.size(line.get_xdata()) == 3]
        assert len(lines) == 2 and lines[0].get_color() != lines[1].get_color()
        x = [0, 0.5, 0.8] if over == "ratio" else [3.0, 1.5, 0.6]
        assert np.asarray(lines[1].get_xdata()) == pytest.approx(x)
        levels = [np.ravel(line.get_ydata())[0] for line in axes.get_lines()]
        assert any(level == pytest.approx(floor, abs=1e-9) for level in levels)


def test_a_failed_variant_leaves_a_gap_not_an_error(tmp_path: Path) -> None:
    lines = by_hand()
    failed = [
        line.model_copy(update={"metrics": None, "status": "failed"})
        if (line.adversarial, line.pruning_ratio) == ("pgd", 0.8)
        else line
        for line in lines
    ]
    write_report(failed, tmp_path, MARGIN, None)
    section = (tmp_path / "results.md").read_text().split("## Adversarial variants")[1]
    pgd = [row for row in cells(section, "label_mapping") if row[1] == "pgd"]
    assert pgd[0][-1] == "-" and pgd[-1][-1] == "-"  # no accuracy there, and none at equal cost
