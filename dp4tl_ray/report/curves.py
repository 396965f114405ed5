"""Results -> panels of curves: what tables and figure both show, computed once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dp4tl_ray.algorithms.lossless import (
    MIN_SEEDS,
    gain_kept,
    is_sensitive,
    loss_upper_bound,
    lossless_ratio,
)
from dp4tl_ray.specs.records import Result

Predictions = Callable[[Result], NDArray[np.bool_]]
"""A result -> which of its test examples (N,) are classified correctly, in a fixed order."""

FLOORS = ("none", "raw_pixels")
"""Objectives without pretraining."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation with one seed."""

    mean: float
    sd: float | None
    num_seeds: int


def spread(values: Sequence[float]) -> Spread | None:
    """Summarise one value per seed; null without any."""
    if not values:
        return None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), sd, len(values))


@dataclass(frozen=True, order=True)
class Setting:
    """What all results of one panel have in common."""

    study: str
    source: str
    target: str
    objective: str
    network: str
    budget: str
    adversarial: str
    transfer: str
    pretraining: str

    @classmethod
    def of(cls, result: Result) -> "Setting":
        """Take the setting of a result."""
        return cls(**{name: getattr(result, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Point:
    """One method at one pruning ratio."""

    pruning_ratio: float
    done: tuple[Result, ...]
    num_failed: int
    num_paired: int
    """Seeds under which this and the full source are done."""
    loss_bound: float | None
    """Upper bound of the loss of accuracy; null with few pairs or without predictions."""
    gain_kept: float | None
    """Share of the pretraining gain kept; null where the target is not known to be sensitive."""
    speed_up: float | None
    """Pretraining seconds of the full source over those of the pruned one."""
    net_speed_up: float | None
    """The same with surrogate and scoring added to the pruned one."""


@dataclass(frozen=True)
class Curve:
    """One method over pruning ratios."""

    method: str
    points: tuple[Point, ...]
    lossless_ratio: float | None
    reason: str
    """Why there is no verdict, or none beyond the lossless ratio; empty where the test decided."""


@dataclass(frozen=True)
class Panel:
    """All methods of one setting, and the lines that they are held against."""

    setting: Setting
    full: tuple[Result, ...]
    untrained: tuple[Result, ...]
    raw_pixels: tuple[Result, ...]
    sensitive: bool | None
    """Whether the full source beats the untrained floor by three margins; null if unmeasured."""
    curves: tuple[Curve, ...]


def accuracies(results: Iterable[Result]) -> list[float]:
    """Take the test accuracies of results that are done."""
    return [r.metrics.accuracy for r in results if r.metrics is not None]


def latest(results: Iterable[Result]) -> list[Result]:
    """Keep one result per cell and seed: the last line, as after a rerun of a failed one."""
    by_cell = {(Setting.of(r), r.method, r.pruning_ratio, r.seed): r for r in results}
    return list(by_cell.values())


def build_panels(
    results: Sequence[Result], margin: float, predictions: Predictions | None
) -> list[Panel]:
    """Group results into one panel per setting that pretrains, in order of appearance."""
    results = latest(results)
    trained = [Setting.of(r) for r in results if r.objective not in FLOORS]
    return [_panel(s, results, margin, predictions) for s in dict.fromkeys(trained)]


def _panel(
    setting: Setting, results: Sequence[Result], margin: float, predictions: Predictions | None
) -> Panel:
    own = [r for r in results if Setting.of(r) == setting]
    full = _done(r for r in own if r.pruning_ratio == 0)
    floors = [r for r in results if _is_floor_of(r, setting)]
    untrained = _done(r for r in floors if r.objective == "none" and r.network == setting.network)
    sensitive = None
    if full and untrained:
        sensitive = is_sensitive(accuracies(full), accuracies(untrained), margin)
    panel = Panel(
        setting=setting,
        full=full,
        untrained=untrained,
        raw_pixels=_done(r for r in floors if r.objective == "raw_pixels"),
        sensitive=sensitive,
        curves=(),
    )
    pruned = [r for r in own if r.pruning_ratio > 0]
    curves = [
        _curve(method, [r for r in pruned if r.method == method], panel, margin, predictions)
        for method in dict.fromkeys(r.method for r in pruned)
    ]
    return replace(panel, curves=tuple(curves))


def _is_floor_of(result: Result, setting: Setting) -> bool:
    names = ("study", "source", "target", "transfer")
    return all(getattr(result, name) == getattr(setting, name) for name in names)


def _done(results: Iterable[Result]) -> tuple[Result, ...]:
    """Keep what has accuracies, by seed."""
    return tuple(sorted((r for r in results if r.metrics), key=lambda r: r.seed))


def _curve(
    method: str,
    results: Sequence[Result],
    panel: Panel,
    margin: float,
    predictions: Predictions | None,
) -> Curve:
    ratios = sorted({r.pruning_ratio for r in results})
    points = tuple(
        _point([r for r in results if r.pruning_ratio == ratio], panel, predictions)
        for ratio in ratios
    )
    if reason := _no_verdict(panel, predictions):
        return Curve(method, points, None, reason)
    best = lossless_ratio({p.pruning_ratio: p.loss_bound for p in points}, margin)
    beyond = [p for p in points if best is None or p.pruning_ratio > best][:1]
    few = [
        f"{p.pruning_ratio:g} has {p.num_paired} of the {MIN_SEEDS} seeds needed"
        for p in beyond
        if p.num_paired < MIN_SEEDS
    ]
    return Curve(method, points, best, "".join(few))


def _no_verdict(panel: Panel, predictions: Predictions | None) -> str:
    """Say what forbids a verdict on every method of a panel; empty if nothing does."""
    if not panel.full:
        return "full source is missing"
    if panel.sensitive is None:
        return "untrained floor is missing"
    if not panel.sensitive:
        return "target is insensitive"
    if len(panel.full) < MIN_SEEDS:
        return f"{len(panel.full)} of the {MIN_SEEDS} seeds needed"
    return "" if predictions else "predictions are missing"


def _point(results: Sequence[Result], panel: Panel, predictions: Predictions | None) -> Point:
    done = _done(results)
    full_of_seed = {r.seed: r for r in panel.full}
    pairs = [(full_of_seed[r.seed], r) for r in done if r.seed in full_of_seed]
    bound = _loss_bound(pairs, predictions) if predictions and len(pairs) >= MIN_SEEDS else None
    kept = None
    if done and panel.sensitive:
        levels = (accuracies(done), accuracies(panel.full), accuracies(panel.untrained))
        kept = gain_kept(*(float(np.mean(level)) for level in levels))
    # seconds on another device, or on more workers, say nothing about pruning
    timed = [(f, p) for f, p in pairs if (f.device, f.num_workers) == (p.device, p.num_workers)]
    seconds = sum(f.pretrain_seconds for f, _ in timed)
    pruned = sum(p.pretrain_seconds for _, p in timed)
    overhead = sum(p.surrogate_seconds + p.score_seconds for _, p in timed)
    return Point(
        pruning_ratio=results[0].pruning_ratio,
        done=done,
        num_failed=len(results) - len(done),
        num_paired=len(pairs),
        loss_bound=bound,
        gain_kept=kept,
        speed_up=seconds / pruned if pruned else None,
        net_speed_up=seconds / (pruned + overhead) if pruned else None,
    )


def _loss_bound(pairs: Sequence[tuple[Result, Result]], predictions: Predictions) -> float:
    """Bound the loss of pairs (full, pruned); the same numbers at every call."""
    full = [_correct(f, predictions) for f, _ in pairs]
    pruned = [_correct(p, predictions) for _, p in pairs]
    return loss_upper_bound(full, pruned, np.random.default_rng(0))


def _correct(result: Result, predictions: Predictions) -> NDArray[np.bool_]:
    """Read which examples are correct, and refuse predictions that belong to another result."""
    correct = predictions(result)
    assert result.metrics is not None
    if abs(correct.mean() - result.metrics.accuracy) > 1e-3:
        raise ValueError(
            f"predictions of {cell_name(result)} have accuracy {correct.mean():.4f}, "
            f"its result says {result.metrics.accuracy:.4f}"
        )
    return correct


def cell_name(result: Result) -> str:
    """Name a result for people."""
    what = result.method if result.method != "none" else result.objective
    parts = (result.target, f"{what} at {result.pruning_ratio:g}", result.budget, result.transfer)
    return ", ".join([*filter(None, parts), f"seed {result.seed}"])


def setting_labels(settings: Sequence[Setting], always: Sequence[str] = ()) -> dict[Setting, str]:
    """Tell settings apart by as few fields as it takes, and the fields asked for always.

    The full label of the pretraining repeats network and budget, so it comes in last.
    """
    names = [n for n in Setting.__dataclass_fields__ if n != "target"]
    told = list(always)
    for name in names:
        keys = {tuple(getattr(s, n) for n in told) for s in settings}
        more = {tuple(getattr(s, n) for n in [*told, name]) for s in settings}
        if name not in told and len(more) > len(keys):
            told.append(name)
    told.sort(key=names.index)
    return {s: ", ".join(v for n in told if (v := getattr(s, n))) for s in settings}
