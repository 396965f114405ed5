"""The report against a result set whose every number was worked out by hand."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dp4tl_ray.report import write_report
from dp4tl_ray.report.curves import Panel, build_panels
from dp4tl_ray.report.figure import draw
from dp4tl_ray.report.matrix import draw_matrix
from dp4tl_ray.report.tables import csv_table, markdown
from dp4tl_ray.specs.records import Hyperparameters, Metrics, Result

MARGIN = 0.01
SEEDS = (0, 1, 2)
Change = dict[str, Any]


def result(accuracy: float | None, **change: Any) -> Result:
    """One line of results: half of 400 examples and 10 classes kept, unless it says otherwise."""
    metrics = None if accuracy is None else Metrics(accuracy=accuracy, mean_class_accuracy=0.5)
    fields: Change = {
        "study": "by_hand",
        "source": "glyphs",
        "target": "letters",
        "method": "label_mapping",
        "own_method": change.get("method", "label_mapping"),
        "pruning_ratio": 0.5,
        "class_ratio": 0.4,
        "unvoted_share": None,
        "objective": "supervised",
        "pretraining": "supervised",
        "adversarial": "none",
        "network": "resnet9",
        "budget": "epochs=3",
        "optimizer_steps": 30,
        "examples_seen": 600,
        "transfer": "linear_probe",
        "transfer_hyperparameters": Hyperparameters(l2=0.1),
        "seed": 0,
        "surrogate_seed": None,
        "num_source": 400,
        "num_kept": 200,
        "num_classes_kept": 6,
        "metrics": metrics,
        "val_accuracy": accuracy,
        "surrogate_seconds": 2.0,
        "score_seconds": 1.0,
        "pretrain_seconds": 5.0,
        "transfer_seconds": 0.5,
        "device_seconds": 5.0,
        "device": "cpu",
        "precision": "fp32",
        "num_workers": 1,
        "status": "done" if metrics else "failed",
        "error": "" if metrics else "pretrain abc: the loss\nis not finite",
        "surrogate_digest": "s",
        "subset_digest": "k",
        "pretrain_digest": "p",
        "predictions_digest": "d",
    }
    return Result(**{**fields, **change})


FULL: Change = {"method": "none", "pruning_ratio": 0.0, "class_ratio": 0.0, "num_kept": 400}
UNTRAINED: Change = {**FULL, "objective": "none", "pretraining": "none", "budget": ""}
PIXELS: Change = {**UNTRAINED, "objective": "raw_pixels", "network": ""}
AT_80: Change = {"pruning_ratio": 0.8}


def by_hand(seeds: Sequence[int] = SEEDS, **change: Any) -> list[Result]:
    """Full source .80 .82 .84; label mapping one point better at .5 and ten worse at .8."""
    lines = []
    for s in seeds:
        common = {"seed": s, **change}
        full = 0.8 + 0.02 * s
        lines += [
            result(round(full, 2), **{**FULL, "pretrain_seconds": 10.0 + s, **common}),
            result(round(full + 0.01, 2), pretrain_seconds=5.0 + 0.25 * s, **common),
            result(round(full - 0.1, 2), **{**AT_80, "pretrain_seconds": 2.0, **common}),
            result(0.3, **{**UNTRAINED, **common, "budget": ""}),
            result(0.35, **{**PIXELS, **common, "budget": ""}),
        ]
    return lines


def first_correct(line: Result) -> NDArray[np.bool_]:
    """Of 1000 test examples, the first ones are right."""
    assert line.metrics is not None
    return np.arange(1000) < round(1000 * line.metrics.accuracy)


def the_panel(results: Sequence[Result], margin: float = MARGIN) -> Panel:
    (panel,) = build_panels(results, margin, first_correct)
    return panel


def report(results: Sequence[Result], predictions: Any = first_correct) -> str:
    return markdown(results, build_panels(results, MARGIN, predictions), MARGIN, {})


def cells(text: str, start: str) -> list[list[str]]:
    """Cells of the table rows that begin with a method."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {start} ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_csv_has_every_field_and_exact_numbers() -> None:
    results = [*by_hand(), result(None, transfer_hyperparameters=Hyperparameters(), seed=7)]
    rows = list(csv.DictReader(csv_table(results).splitlines()))
    flat = {"metrics", "transfer_hyperparameters"}
    nested = {f"metrics.{name}" for name in Metrics.model_fields}
    nested |= {f"transfer_hyperparameters.{name}" for name in Hyperparameters.model_fields}
    assert set(rows[0]) == set(Result.model_fields) - flat | nested
    assert [float(r["metrics.accuracy"]) for r in rows[:5]] == [0.8, 0.81, 0.7, 0.3, 0.35]
    assert rows[0]["transfer_hyperparameters.l2"] == "0.1"
    assert rows[-1]["metrics.accuracy"] == rows[-1]["transfer_hyperparameters.l2"] == ""


def test_a_line_break_in_an_error_survives_csv(tmp_path: Path) -> None:
    write_report([result(None)], tmp_path, MARGIN, None)
    with open(tmp_path / "results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["error"] == "pretrain abc: the loss\nis not finite"


def test_levels_are_mean_and_sample_deviation_over_seeds() -> None:
    text = report(by_hand())
    assert "full source: 0.820 ± 0.020, 3 seeds, pretraining 11.0 s" in text
    assert "untrained network: 0.300 ± 0.000, 3 seeds" in text
    assert "raw pixels: 0.350 ± 0.000, 3 seeds" in text
    assert "## letters: supervised, resnet9, epochs=3" in text


def test_accuracy_table_crosses_methods_with_ratios_and_gives_the_verdict() -> None:
    text = report([*by_hand(), *(result(0.6, method="el2n", seed=s) for s in SEEDS)])
    assert cells(text, "method")[0] == ["method", "0.5", "0.8", "lossless up to (tolerance 0.01)"]
    assert cells(text, "label_mapping")[0] == [
        "label_mapping",
        "0.830 ± 0.020",
        "0.720 ± 0.020",
        "**0.5**",
    ]
    assert cells(text, "el2n")[0] == ["el2n", "0.600 ± 0.000", "-", "none"]


def test_cost_table_has_gain_kept_and_both_speed_ups() -> None:
    # at .5: 33 s / 15.75 s, and with 3 x 3 s of surrogate and scoring 33 / 24.75;
    # gain kept (.83 - .30) / (.82 - .30) and (.72 - .30) / (.82 - .30)
    half, fifth = cells(report(by_hand()), "label_mapping")[1:]
    assert half[:7] == ["label_mapping", "0.5", "3", "0.400", "200", "6", "-"]
    assert half[8:] == ["1.019", "5.25", "2.10x", "1.33x"]
    assert fifth[8:] == ["0.808", "2.00", "5.50x", "2.20x"]


def test_loss_bounds_lie_above_the_losses() -> None:
    half, fifth = the_panel(by_hand()).curves[0].points
    assert half.loss_bound is not None and fifth.loss_bound is not None
    assert -0.01 <= half.loss_bound < MARGIN
    assert 0.1 < fifth.loss_bound < 0.14


def test_seconds_on_another_device_give_no_speed_up() -> None:
    moved = [r.model_copy(update={"device": "cuda"}) if r.pruning_ratio else r for r in by_hand()]
    assert {p.speed_up for p in the_panel(moved).curves[0].points} == {None}
    assert cells(report(moved), "label_mapping")[1][-2:] == ["-", "-"]


def test_failed_cells_are_listed_by_name_with_the_reason() -> None:
    text = report([*by_hand(), result(None, seed=3)])
    assert "## Failed: 1 of 16" in text
    assert "- letters, label_mapping at 0.5, epochs=3, linear_probe, seed 3: " in text
    assert "pretrain abc: the loss is not finite" in text
    assert cells(text, "label_mapping")[1][2] == "3 (1 failed)"


def test_a_later_line_replaces_an_earlier_one_of_the_same_cell() -> None:
    again = [result(None), *by_hand()]
    assert "Failed" not in report(again)
    assert len(the_panel([*by_hand(), *by_hand()]).full) == 3


def test_a_single_seed_is_a_curve_without_spread_and_star(tmp_path: Path) -> None:
    text = report(by_hand(seeds=[0]))
    assert "full source: 0.800, 1 seed," in text
    assert "**curve only**: fewer than 3 seeds" in text
    assert cells(text, "label_mapping")[0][1:] == [
        "0.810",
        "0.700",
        "no verdict: 1 of the 3 seeds needed",
    ]
    assert len(write_report(by_hand(seeds=[0]), tmp_path, MARGIN, first_correct)) == 4


def test_a_ratio_with_too_few_pairs_stops_the_test_and_says_so() -> None:
    (curve,) = the_panel([r for r in by_hand() if r.pruning_ratio != 0.8 or r.seed]).curves
    assert (curve.lossless_ratio, curve.reason) == (0.5, "0.8 has 2 of the 3 seeds needed")


def test_an_insensitive_target_gets_no_star_and_no_gain() -> None:
    flat = [r for r in by_hand() if r.objective != "none"]
    flat += [result(0.795, **{**UNTRAINED, "seed": s}) for s in SEEDS]
    text = report(flat)
    assert "**insensitive**: the full source beats the untrained network by 0.025" in text
    assert cells(text, "label_mapping")[0][-1] == "no verdict: target is insensitive"
    assert cells(text, "label_mapping")[1][8] == "-"


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("none", "untrained floor is missing"), ("supervised", "full source is missing")],
)
def test_no_star_without_what_it_is_held_against(missing: str, reason: str) -> None:
    left = [r for r in by_hand() if r.objective != missing or r.pruning_ratio > 0]
    assert the_panel(left).curves[0].reason == reason


def test_the_untrained_floor_is_that_of_the_same_network() -> None:
    other = [result(0.1, **{**UNTRAINED, "seed": s, "network": "vit"}) for s in SEEDS]
    assert {r.network for r in the_panel([*by_hand(), *other]).untrained} == {"resnet9"}


def test_without_predictions_there_is_no_verdict() -> None:
    text = report(by_hand(), predictions=None)
    assert cells(text, "label_mapping")[0][-1] == "no verdict: predictions are missing"


def test_predictions_of_another_result_are_refused() -> None:
    with pytest.raises(ValueError, match="letters, supervised at 0, epochs=3"):
        build_panels(by_hand(), MARGIN, lambda _: np.ones(1000, bool))


def test_a_pinned_surrogate_is_said_to_be_outside_the_spread() -> None:
    said = "The surrogate is pinned (seed 4): the spread over seeds excludes it."
    assert said in report(by_hand(surrogate_seed=4))
    assert "pinned" not in report(by_hand())


def test_figure_draws_means_levels_and_the_star() -> None:
    (axes,) = draw([the_panel(by_hand())], MARGIN).axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert set(lines) == {"label_mapping", "full source", "untrained", "raw pixels", "_star"}
    assert lines["label_mapping"].get_xdata() == pytest.approx([0, 0.5, 0.8])
    assert lines["label_mapping"].get_ydata() == pytest.approx([0.82, 0.83, 0.72])
    assert [lines["_star"].get_xdata(), lines["_star"].get_ydata()] == [
        [0.5],
        [pytest.approx(0.83)],
    ]
    levels = [
        np.asarray(lines[name].get_ydata())[0]
        for name in ("full source", "untrained", "raw pixels")
    ]
    assert levels == pytest.approx([0.82, 0.3, 0.35])
    assert [lines[n].get_linestyle() for n in ("full source", "untrained")] == ["--", ":"]
    assert {text.get_text() for text in axes.texts} == {"untrained", "raw pixels"}


def test_figure_has_a_column_per_target_and_a_row_per_budget_in_equal_colours() -> None:
    results = [
        line
        for target in ("letters", "digits")
        for budget in ("epochs=3", "epochs=6")
        for line in by_hand(target=target, budget=budget)
    ]
    results += [result(0.7, method="el2n", target="digits", seed=s) for s in SEEDS]
    figure = draw(build_panels(results, MARGIN, first_correct), MARGIN)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["letters", "digits", "", ""]
    assert [a.get_ylabel() for a in figure.axes[::2]] == [
        "epochs=3\ntest accuracy",
        "epochs=6\ntest accuracy",
    ]
    colors = [
        {str(line.get_label()): line.get_color() for line in axes.get_lines()}
        for axes in figure.axes
    ]
    assert len({c["label_mapping"] for c in colors}) == 1
    assert colors[1]["el2n"] != colors[1]["label_mapping"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "label_mapping",
        "el2n",
        "full source",
        "± sd over seeds",
        "lossless within 0.01",
    ]


def test_every_point_lies_inside_its_panel_when_rows_share_an_axis() -> None:
    high = [
        r.model_copy(
            update={
                "budget": "epochs=9",
                "metrics": Metrics(accuracy=0.97, mean_class_accuracy=0.9),
            }
        )
        for r in by_hand()
        if r.objective == "supervised"
    ]
    figure = draw(build_panels([*by_hand(), *high], MARGIN, None), MARGIN)
    assert all(axes.get_ylim()[0] < 0.3 and axes.get_ylim()[1] > 0.97 for axes in figure.axes)


def test_a_flat_target_is_drawn_flat() -> None:
    flat = [result(0.5 + 0.001 * s, **{**FULL, "seed": s}) for s in SEEDS]
    (axes,) = draw([the_panel(flat)], MARGIN).axes
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(0.12)
    assert (low + high) / 2 == pytest.approx(0.501)


def test_a_ratio_with_one_seed_leaves_a_gap_in_the_band() -> None:
    holed = [r for r in by_hand() if r.pruning_ratio != 0.5 or not r.seed]
    (axes,) = draw([the_panel(holed)], MARGIN).axes
    (band,) = axes.collections
    at = {float(x) for path in band.get_paths() for x in np.asarray(path.vertices)[:, 0]}
    assert at == {0.0, 0.8}


def test_a_figure_without_a_star_says_why_and_promises_none() -> None:
    figure = draw([the_panel(by_hand(seeds=[0]))], MARGIN)
    assert "no star: 1 of the 3 seeds needed" in {t.get_text() for t in figure.axes[0].texts}
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["label_mapping", "full source"]


def test_report_writes_four_files_and_the_same_bytes_again(tmp_path: Path) -> None:
    paths = write_report(by_hand(), tmp_path / "report", MARGIN, first_correct)
    assert [p.name for p in paths] == [
        "results.csv",
        "results.md",
        "accuracy_over_ratio.png",
        "accuracy_over_ratio.svg",
    ]
    first = [p.read_bytes() for p in paths]
    assert first[2].startswith(b"\x89PNG") and b"<svg" in first[3]
    assert b"](accuracy_over_ratio.png)" in first[1]
    again = write_report(by_hand(), tmp_path / "report", MARGIN, first_correct)
    assert [p.read_bytes() for p in again] == first
    assert sorted((tmp_path / "report").iterdir()) == sorted(paths)


def many_methods() -> list[Result]:
    """Ten methods that lose 0 to 9 points at .5; the last has no result at .9."""
    lines = [result(0.9, **FULL)]
    for n in range(10):
        name = {"method": f"method_{n}", "own_method": f"method_{n}"}
        lines.append(result(0.9 - 0.01 * n, pruning_ratio=0.5, **name))
        lines.append(result(None if n == 9 else 0.7 - 0.01 * n, pruning_ratio=0.9, **name))
    return lines


def test_many_methods_are_a_matrix_of_points_lost_best_first(tmp_path: Path) -> None:
    figure = draw_matrix(build_panels(many_methods()[::-1], MARGIN, None))
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"method_{n}" for n in range(10)]
    assert [t.get_text() for t in axes.get_xticklabels()] == [".5", ".9"]
    written = {t.get_position(): t.get_text() for t in axes.texts}
    for n in range(10):
        assert written[0, n] == str(n)
        assert written.get((1, n)) == (None if n == 9 else str(20 + n))


def test_from_ten_methods_on_the_figure_is_the_matrix(tmp_path: Path) -> None:
    files = {path.name for path in write_report(many_methods(), tmp_path, MARGIN, None)}
    assert "loss_matrix.png" in files and "accuracy_over_ratio.png" not in files
    assert "loss_matrix.png" in (tmp_path / "results.md").read_text()


def test_regret_is_paired_by_seed() -> None:
    shared = {"method": "m(combine=mean)", "own_method": "m"}
    own = {"method": "m", "own_method": "m"}
    lines = [result(0.9, **FULL)]
    lines += [result(a, seed=seed, **own) for seed, a in enumerate((0.8, 0.7, 0.9))]
    lines += [result(a, seed=seed, **shared) for seed, a in enumerate((0.7, 0.7))]
    text = report(lines)
    (row,) = [line for line in text[text.index("Regret") :].splitlines() if "combine" in line][:1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["m(combine=mean)", "0.050 ± 0.071"]


def test_when_all_failed_there_are_tables_and_no_figure(tmp_path: Path) -> None:
    paths = write_report([result(None, **FULL), result(None)], tmp_path, MARGIN, first_correct)
    assert [p.name for p in paths] == ["results.csv", "results.md"]
    assert "## Failed: 2 of 2" in paths[1].read_text()


def test_no_results_give_empty_tables(tmp_path: Path) -> None:
    table, text = write_report([], tmp_path, MARGIN, None)
    assert len(table.read_text().splitlines()) == 1
    assert text.read_text().startswith("# Results of nothing")


def test_a_write_that_fails_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.csv").write_text("old")

    def refuse(*_: Any) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk is full"):
        write_report([], tmp_path, MARGIN, None)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_tables_do_not_import_matplotlib() -> None:
    code = "import sys, dp4tl_ray.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_weights_from_elsewhere_are_a_level_and_no_panel() -> None:
    name = "pretrained(network=resnet18, weights=w)"
    elsewhere = {**UNTRAINED, "objective": "pretrained", "pretraining": name}
    lines = by_hand() + [result(0.9, **{**elsewhere, "seed": s}) for s in SEEDS]
    assert list(the_panel(lines).pretrained) == [name]
    assert f"- {name}: 0.900 ± 0.000, 3 seeds" in report(lines)


def test_alarms_are_listed_once_with_a_cell_that_they_are_about() -> None:
    said = "pretraining collapsed: the embeddings fill 2.1 of 32 dimensions"
    alarmed = by_hand(seeds=[2], alarms=(said,))
    text = report(by_hand(seeds=[0, 1]) + alarmed)
    assert "## Alarms: 1" in text
    assert f"linear_probe, seed 2 and {len(alarmed) - 1} more results: {said}" in text
    alarmed[-1] = alarmed[-1].model_copy(update={"alarms": ("another",)})
    assert "seed 2: another" in report(alarmed)
    assert "## Alarms" not in report(by_hand())
