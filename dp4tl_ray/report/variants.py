"""Adversarial variants side by side: which is best at which ratio, and what equal cost buys."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dp4tl_ray.report.curves import Panel, Setting, Spread, accuracies, spread
from dp4tl_ray.specs.records import Result

CLEAN = "images as they are"


@dataclass(frozen=True)
class Level:
    """Where one variant and method are at one pruning ratio."""

    pruning_ratio: float
    cost: float
    """Of the pretraining, in standard ones on the whole source, as counted."""
    accuracy: Spread


@dataclass(frozen=True)
class VariantCurve:
    """One adversarial variant and pruning method, from the whole source on."""

    variant: str
    method: str
    levels: tuple[Level, ...]

    def at(self, pruning_ratio: float) -> Level | None:
        """Return the level at a ratio, if it was measured."""
        return next((x for x in self.levels if x.pruning_ratio == pruning_ratio), None)

    def at_cost(self, cost: float) -> float | None:
        """Return the mean accuracy where a pretraining costs so much, between two measured ones.

        Linear in the cost; null where all measured ones cost more, or all less.
        """
        costs = [level.cost for level in self.levels]
        if not costs or not min(costs) <= cost * (1 + 1e-9) or not cost <= max(costs) * (1 + 1e-9):
            return None
        levels = sorted(self.levels, key=lambda level: level.cost)
        means = [level.accuracy.mean for level in levels]
        return float(np.interp(cost, [level.cost for level in levels], means))


@dataclass(frozen=True)
class Measure:
    """All curves of a family under one attack, or none."""

    name: str
    curves: tuple[VariantCurve, ...]
    untrained: Spread | None
    """The floor."""


@dataclass(frozen=True)
class Family:
    """What all variants of a pretraining come to on one target."""

    setting: Setting
    """Without a variant."""
    step_costs: dict[str, float]
    """Variant -> cost of an optimizer step, as counted."""
    slowdowns: dict[str, float | None]
    """Variant -> seconds on the whole source over those of standard training; null if unknown."""
    measures: tuple[Measure, ...]
    """Clean first."""


def build_families(panels: Sequence[Panel], attacked: Sequence[tuple[str, Panel]]) -> list[Family]:
    """Gather the panels that differ in nothing but the adversarial variant.

    There is no family of one, and none without a whole source to count costs in.
    """
    found = []
    for setting in dict.fromkeys(_family(panel) for panel in panels):
        named = {CLEAN: [panel for panel in panels if _family(panel) == setting]}
        for name, panel in attacked:
            if _family(panel) == setting:
                named.setdefault(name, []).append(panel)
        if len(named[CLEAN]) > 1 and any(panel.full for panel in named[CLEAN]):
            found.append(_build(setting, named))
    return found


def _family(panel: Panel) -> Setting:
    return replace(panel.setting, adversarial="")


def _build(setting: Setting, named: dict[str, list[Panel]]) -> Family:
    clean = named[CLEAN]
    standard = next((p.full for p in clean if p.setting.adversarial == "none"), ())
    seconds = {p.setting.adversarial: _mean(r.pretrain_seconds for r in p.full) for p in clean}
    unit = _mean(r.pretrain_seconds for r in standard)
    full = [result for panel in clean for result in panel.full]
    # the recipe is one, so that all variants see as many images
    images = float(np.mean([result.examples_seen for result in full]))
    return Family(
        setting=setting,
        step_costs={r.adversarial: r.step_cost for panel in clean for r in _results(panel)},
        slowdowns={
            variant: value / unit if value and unit else None for variant, value in seconds.items()
        },
        measures=tuple(_measure(name, panels, images) for name, panels in named.items()),
    )


def _results(panel: Panel) -> Iterator[Result]:
    yield from panel.full
    for curve in panel.curves:
        for point in curve.points:
            yield from point.done


def _measure(name: str, panels: Sequence[Panel], images: float) -> Measure:
    """Build the curves of one attack; the cost of a pretraining is counted in so many images."""
    curves = []
    for panel in panels:
        for curve in panel.curves:
            by_ratio = {0.0: panel.full} | {p.pruning_ratio: p.done for p in curve.points}
            levels = tuple(
                Level(ratio, float(np.mean([_cost(r) for r in done])) / images, found)
                for ratio, done in by_ratio.items()
                if (found := spread(accuracies(done)))
            )
            curves.append(VariantCurve(panel.setting.adversarial, curve.method, levels))
    floors = [floor for p in panels if (floor := spread(accuracies(p.untrained)))]
    return Measure(name, tuple(curves), floors[0] if floors else None)


def _cost(result: Result) -> float:
    """Return what a pretraining cost, in images of standard training."""
    return result.examples_seen * result.step_cost


def _mean(values: Iterator[float] | Sequence[float]) -> float | None:
    listed = list(values)
    return float(np.mean(listed)) if listed else None
