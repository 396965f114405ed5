"""Search for the largest lossless ratio of every method: results so far -> cells to run next.

Nothing is remembered between calls but bounds, so a rerun goes on from what the store holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dp4tl_ray.algorithms.bisection import SEARCH_CONFIDENCE, answer, next_ratio
from dp4tl_ray.plan import Cell, Plan
from dp4tl_ray.report.curves import (
    CellKey,
    Judge,
    Predictions,
    Setting,
    by_cell,
    done,
    loss_bound,
    no_verdict,
    paired,
    setting_labels,
    too_few,
)
from dp4tl_ray.report.layout import markdown_table
from dp4tl_ray.results import axes_of
from dp4tl_ray.specs.records import Result

Known = Mapping[CellKey, Result]


@dataclass(frozen=True)
class Verdict:
    """What a search has found so far."""

    method: str
    target: str
    setting: Setting
    ratio: float | None
    """Largest ratio found lossless; null without one."""
    tested: tuple[float, ...]
    reason: str
    """Why there is no verdict, or none beyond the ratio; empty where the test decided."""


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Write verdicts as a Markdown table."""
    names = setting_labels([verdict.setting for verdict in verdicts], always=("budget",))
    head = ["target", "setting", "method", "largest lossless ratio", "ratios tested", "remark"]
    rows = [
        [
            v.target,
            names[v.setting],
            v.method,
            "none" if v.ratio is None else f"{v.ratio:g}",
            " ".join(f"{ratio:g}" for ratio in v.tested),
            v.reason,
        ]
        for v in verdicts
    ]
    return "\n".join(markdown_table([head, *rows])) + "\n"


@dataclass
class _Search:
    """One method in one setting."""

    setting: Setting
    method: str
    full: list[Cell]
    untrained: list[Cell]
    cells_of: dict[float, list[Cell]] = field(default_factory=dict)
    """Pruning ratio -> its cells, one per seed."""


class LosslessSearch:
    """Bisects the ratios of every method and setting of a plan, all of them side by side."""

    def __init__(self, plan: Plan, margin: float) -> None:
        """Group the cells of a plan.

        Args:
            plan: The whole grid; few of its cells will run.
            margin: Loss of accuracy that counts as none, a fraction.
        """
        self.margin = margin
        self._keys = {cell.steps["finetune"]: _cell_key(plan, cell) for cell in plan.cells}
        self.references = [cell for cell in plan.cells if cell.pruning_ratio == 0]
        self.searches = list(self._group(plan))
        self._bounds: dict[tuple[tuple[str, str], ...], float | None] = {}

    def _group(self, plan: Plan) -> Iterable[_Search]:
        searches: dict[tuple[Setting, str], _Search] = {}
        for cell in plan.cells:
            setting, method, ratio, _ = self._key(cell)
            if ratio == 0:
                continue
            if (setting, method) not in searches:
                full = [c for c in self.references if self._setting(c) == setting]
                untrained = [c for c in self.references if self._is_floor(c, setting)]
                searches[setting, method] = _Search(setting, method, full, untrained)
            searches[setting, method].cells_of.setdefault(ratio, []).append(cell)
        return searches.values()

    def _key(self, cell: Cell) -> CellKey:
        return self._keys[cell.steps["finetune"]]

    def _setting(self, cell: Cell) -> Setting:
        return self._key(cell)[0]

    def _is_floor(self, cell: Cell, setting: Setting) -> bool:
        own = self._setting(cell)
        same = ("target", "transfer", "network")
        return own.objective == "none" and all(
            getattr(own, name) == getattr(setting, name) for name in same
        )

    def ask(self, results: Sequence[Result], predictions: Predictions) -> list[Cell]:
        """Return the cells that the searches wait for; none when every search has its answer.

        First the full source and the floors, then the next ratio of every search, all seeds. Cells
        that are running already are among them.

        Args:
            results: All that are known, done or failed.
            predictions: Says which test examples of a result are right.
        """
        known = by_cell(results)
        wanted = self._unknown(self.references, known)
        for search in self.searches:
            wanted += self._next(search, known, predictions)
        return wanted

    def verdicts(self, results: Sequence[Result], predictions: Predictions) -> list[Verdict]:
        """Return what every search has found so far."""
        known = by_cell(results)
        return [self._verdict(search, known, predictions) for search in self.searches]

    def _next(self, search: _Search, known: Known, predictions: Predictions) -> list[Cell]:
        """Return the cells that a search waits for, beside its references."""
        if self._unknown(search.full + search.untrained, known) or self._hopeless(search, known):
            return []
        ratio = next_ratio(list(search.cells_of), self._passed(search, known, predictions))
        return [] if ratio is None else self._unknown(search.cells_of[ratio], known)

    def _verdict(self, search: _Search, known: Known, predictions: Predictions) -> Verdict:
        passed, ratio = {}, None
        if not (reason := self._hopeless(search, known)):
            passed = self._passed(search, known, predictions)
            ratio = answer(passed)
            beyond = min((r for r in passed if not passed[r]), default=None)
            if beyond is not None:
                reason = self._failures(search, beyond, known)
        return Verdict(
            method=search.method,
            target=search.setting.target,
            setting=search.setting,
            ratio=ratio,
            tested=tuple(sorted(passed)),
            reason=reason,
        )

    def _hopeless(self, search: _Search, known: Known) -> str:
        """Say what forbids a verdict whatever the ratio; empty if nothing does."""
        full, untrained = self._done(search.full, known), self._done(search.untrained, known)
        return no_verdict(full, untrained, self.margin)

    def _failures(self, search: _Search, ratio: float, known: Known) -> str:
        """Say why a ratio has too few seeds for a verdict; empty where it has enough."""
        cells = search.cells_of[ratio]
        pairs = paired(self._done(search.full, known), self._done(cells, known))
        few = too_few(ratio, len(pairs))
        keys = [self._key(cell) for cell in search.full + cells]
        errors = (known[key].error for key in keys if key in known)
        error = " ".join(next(filter(None, errors), "the seeds differ").split())  # in one line
        return few and f"{few}: {error}"

    def _passed(self, search: _Search, known: Known, predictions: Predictions) -> dict[float, bool]:
        """Return the verdict on each ratio of which all seeds are known.

        Too few seeds that are done are no proof, so the ratio has not passed.
        """
        full = self._done(search.full, known)
        passed = {}
        for ratio, cells in search.cells_of.items():
            if not self._unknown(cells, known):
                pairs = paired(full, self._done(cells, known))
                bound = self._bound(pairs, predictions)
                passed[ratio] = bound is not None and bound < self.margin
        return passed

    def _bound(
        self, pairs: Sequence[tuple[Result, Result]], predictions: Predictions
    ) -> float | None:
        key = tuple((full.predictions_digest, pruned.predictions_digest) for full, pruned in pairs)
        if key not in self._bounds:
            judge = Judge(self.margin, predictions, SEARCH_CONFIDENCE)
            self._bounds[key] = loss_bound(pairs, judge)
        return self._bounds[key]

    def _unknown(self, cells: Iterable[Cell], known: Known) -> list[Cell]:
        return [cell for cell in cells if self._key(cell) not in known]

    def _done(self, cells: Iterable[Cell], known: Known) -> tuple[Result, ...]:
        return done(known[key] for cell in cells if (key := self._key(cell)) in known)


def _cell_key(plan: Plan, cell: Cell) -> CellKey:
    """Name a cell as its result will be named."""
    axes = axes_of(plan.study, cell)
    setting = Setting(**{name: axes[name] for name in Setting.__dataclass_fields__})
    return setting, axes["method"], axes["pruning_ratio"], axes["seed"]
