"""The search over a plan, with results made up: which cells it asks for, and what it answers."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dp4tl_ray.algorithms.bisection import SEARCH_CONFIDENCE
from dp4tl_ray.plan import Cell, make_plan
from dp4tl_ray.report.curves import build_panels
from dp4tl_ray.results import collect
from dp4tl_ray.search import LosslessSearch, Verdict
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.records import Metrics, Result
from dp4tl_ray.specs.study import Study
from dp4tl_ray.store import open_store

MARGIN = 0.01
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SEEDS = (0, 1, 2)
LAST = {
    ("held_out_letters", "label_mapping"): 0.6,
    ("held_out_letters", "random_classes"): None,
    ("held_out_textures", "label_mapping"): 0.9,
    ("held_out_textures", "random_classes"): 0.1,
}
"""Target and method -> the largest ratio that loses nothing; ten points are lost beyond."""
PLAN = make_plan(
    Study.model_validate(
        {
            "name": "made_up",
            "source": "glyphs_and_textures",
            "targets": ["held_out_letters", "held_out_textures"],
            "methods": ["label_mapping", "random_classes"],
            "pruning_ratios": [0.0, *RATIOS],
            "pretraining": ["supervised", "none", "raw_pixels"],
            "seeds": SEEDS,
            "search": "lossless",
        }
    )
)
Outcome = Callable[[Cell], float | None]
"""A cell -> its accuracy; null where it fails."""


def truth(cell: Cell) -> float:
    if cell.pretraining.objective != "supervised":
        return 0.3
    if cell.method is None:
        return 0.8
    last = LAST[label(cell.target), label(cell.method)]
    return 0.81 if last is not None and cell.pruning_ratio <= last else 0.7


def first_correct(line: Result) -> NDArray[np.bool_]:
    """Of 1000 test examples, the first ones are right."""
    assert line.metrics is not None
    return np.arange(1000) < round(1000 * line.metrics.accuracy)


class World:
    """Runs cells: knows the failed line of every cell, and makes of it what the truth says."""

    def __init__(self, root: Path) -> None:
        broken = {cell.steps["finetune"]: "pretrain x:\nbroken" for cell in PLAN.cells}
        lines = collect(PLAN, open_store(str(root)), broken)
        self.failed = dict(zip(broken, lines, strict=True))

    def run(self, cells: Sequence[Cell], outcome: Outcome = truth) -> list[Result]:
        return [self._line(cell.steps["finetune"], outcome(cell)) for cell in cells]

    def _line(self, key: str, accuracy: float | None) -> Result:
        if accuracy is None:
            return self.failed[key]
        done = {
            "metrics": Metrics(accuracy=accuracy, mean_class_accuracy=accuracy),
            "status": "done",
            "error": "",
            "predictions_digest": f"{key}: {accuracy}",
        }
        return self.failed[key].model_copy(update=done)

    def search(self, outcome: Outcome = truth) -> tuple[list[Verdict], list[Result]]:
        """Run what is asked for until nothing is."""
        search, results = LosslessSearch(PLAN, MARGIN), list[Result]()
        while cells := search.ask(results, first_correct):
            results += self.run(cells, outcome)
        return search.verdicts(results, first_correct), results


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("store"))


def of(verdicts: Sequence[Verdict], method: str, target: str = "held_out_letters") -> Verdict:
    (verdict,) = [v for v in verdicts if (v.target, v.method) == (target, method)]
    return verdict


def pruned(cells: Sequence[Cell]) -> list[tuple[str, str, float, int]]:
    return [(label(c.target), label(c.method), c.pruning_ratio, c.seed) for c in cells if c.method]


def test_full_source_and_floors_come_first_then_one_ratio_of_every_search(world: World) -> None:
    search = LosslessSearch(PLAN, MARGIN)
    first = search.ask([], first_correct)
    assert first == [cell for cell in PLAN.cells if cell.pruning_ratio == 0]
    second = search.ask(world.run(first), first_correct)
    assert sorted(pruned(second)) == sorted((*key, 0.5, seed) for key in LAST for seed in SEEDS)


def test_every_method_and_target_gets_its_own_ratio_from_few_cells(world: World) -> None:
    verdicts, results = world.search()
    assert {(v.target, v.method): v.ratio for v in verdicts} == LAST
    assert not any(v.reason for v in verdicts)
    assert len(results) < 0.6 * len(PLAN.cells)
    letters = of(verdicts, "label_mapping")
    assert letters.tested == (0.5, 0.6, 0.7)
    assert letters.setting.pretraining == letters.setting.objective == "supervised"


def test_a_report_on_what_ran_gives_the_same_verdicts(world: World) -> None:
    verdicts, results = world.search()
    panels = build_panels(results, MARGIN, first_correct, SEARCH_CONFIDENCE)
    assert {(p.setting, c.method, c.lossless_ratio) for p in panels for c in p.curves} == {
        (v.setting, v.method, v.ratio) for v in verdicts
    }


def test_a_ratio_is_judged_when_all_of_its_seeds_are_known(world: World) -> None:
    search = LosslessSearch(PLAN, MARGIN)
    results = world.run(search.ask([], first_correct))
    middle = search.ask(results, first_correct)
    early = [cell for cell in middle if cell.seed < 2]
    results += world.run(early)
    assert search.ask(results, first_correct) == [cell for cell in middle if cell.seed == 2]
    assert all(v.tested == () for v in search.verdicts(results, first_correct))


def test_a_rerun_with_what_is_known_asks_for_nothing(world: World) -> None:
    verdicts, results = world.search()
    random.Random(0).shuffle(results)
    again = LosslessSearch(PLAN, MARGIN)
    assert again.ask(results, first_correct) == []
    assert again.verdicts(results, first_correct) == verdicts


def test_a_bound_is_computed_once(world: World) -> None:
    search, calls = LosslessSearch(PLAN, MARGIN), list[Result]()

    def counted(line: Result) -> NDArray[np.bool_]:
        calls.append(line)
        return first_correct(line)

    results = world.search()[1]
    search.ask(results, counted)
    num_calls = len(calls)
    assert num_calls > 0
    search.ask(results, counted)
    assert len(calls) == num_calls


def test_an_insensitive_target_is_not_searched(world: World) -> None:
    def outcome(cell: Cell) -> float:
        flat = label(cell.target) == "held_out_letters" and cell.pretraining.objective == "none"
        return 0.78 if flat else truth(cell)

    verdicts, results = world.search(outcome)
    assert of(verdicts, "label_mapping").reason == "target is insensitive"
    assert of(verdicts, "label_mapping").ratio is None
    assert not [r for r in results if r.target == "held_out_letters" and r.pruning_ratio > 0]
    assert of(verdicts, "label_mapping", "held_out_textures").ratio == 0.9


def test_a_ratio_with_failed_seeds_has_not_passed_and_the_verdict_says_why(world: World) -> None:
    def outcome(cell: Cell) -> float | None:
        return None if (cell.pruning_ratio, cell.seed) == (0.5, 1) else truth(cell)

    verdict = of(world.search(outcome)[0], "label_mapping")
    assert verdict.ratio == 0.4
    assert verdict.reason == "0.5 has 2 of the 3 seeds needed: pretrain x: broken"


def test_without_the_full_source_the_search_ends_and_says_so(world: World) -> None:
    def outcome(cell: Cell) -> float | None:
        full = cell.pruning_ratio == 0 and cell.pretraining.objective == "supervised"
        return None if full and cell.seed == 0 else truth(cell)

    verdicts, results = world.search(outcome)
    assert {v.reason for v in verdicts} == {"2 of the 3 seeds needed"}
    assert all(r.pruning_ratio == 0 for r in results)


def test_a_failed_cell_that_is_done_after_a_rerun_counts_as_done(world: World) -> None:
    verdicts, _ = world.search()
    failed = world.run(PLAN.cells, lambda cell: None)
    search = LosslessSearch(PLAN, MARGIN)
    assert search.ask(failed, first_correct) == []
    full = world.run(PLAN.cells)
    assert {v.ratio for v in search.verdicts(failed, first_correct)} == {None}
    assert [v.ratio for v in search.verdicts(failed + full, first_correct)] == [
        v.ratio for v in verdicts
    ]
