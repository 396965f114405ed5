"""Results -> panels of curves: what tables and figure both show, computed once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dp4tl_ray.algorithms.lossless import (
    CONFIDENCE,
    MIN_SEEDS,
    gain_kept,
    is_sensitive,
    loss_upper_bound,
    lossless_ratio,
)
from dp4tl_ray.specs.records import Result

Predictions = Callable[[Result], NDArray[np.bool_]]
"""A result -> which of its test examples (N,) are classified correctly, in a fixed order."""

LEVELS = ("none", "raw_pixels", "pretrained")
"""Objectives without a training here: levels that the others are held against."""


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
    pretrained: dict[str, tuple[Result, ...]]
    """Name of weights from elsewhere -> what they reach."""
    sensitive: bool | None
    """Whether the full source beats the untrained floor by three margins; null if unmeasured."""
    curves: tuple[Curve, ...]


def accuracies(results: Iterable[Result]) -> list[float]:
    """Take the test accuracies of results that are done."""
    return [r.metrics.accuracy for r in results if r.metrics is not None]


CellKey = tuple[Setting, str, float, int]
"""Setting, method, pruning ratio and seed: what a cell and its result have in common."""


def by_cell(results: Iterable[Result]) -> dict[CellKey, Result]:
    """Index results by cell: the last line of each, as after a rerun of a failed one."""
    return {(Setting.of(r), r.method, r.pruning_ratio, r.seed): r for r in results}


def latest(results: Iterable[Result]) -> list[Result]:
    """Keep the last line of each cell."""
    return list(by_cell(results).values())


@dataclass(frozen=True)
class Judge:
    """How losses are judged: by predictions, against a margin, with a confidence."""

    margin: float
    predictions: Predictions | None
    confidence: float = CONFIDENCE


def build_panels(
    results: Sequence[Result],
    margin: float,
    predictions: Predictions | None,
    confidence: float = CONFIDENCE,
) -> list[Panel]:
    """Group results into one panel per setting that pretrains, in order of appearance."""
    results, judge = latest(results), Judge(margin, predictions, confidence)
    trained = [Setting.of(r) for r in results if r.objective not in LEVELS]
    return [_panel(s, results, judge) for s in dict.fromkeys(trained)]


def _panel(setting: Setting, results: Sequence[Result], judge: Judge) -> Panel:
    own = [r for r in results if Setting.of(r) == setting]
    full = done(r for r in own if r.pruning_ratio == 0)
    levels = [r for r in results if _is_level_of(r, setting)]
    untrained = done(r for r in levels if r.objective == "none" and r.network == setting.network)
    panel = Panel(
        setting=setting,
        full=full,
        untrained=untrained,
        raw_pixels=done(r for r in levels if r.objective == "raw_pixels"),
        pretrained={
            name: done(r for r in levels if r.pretraining == name)
            for name in dict.fromkeys(r.pretraining for r in levels if r.objective == "pretrained")
        },
        sensitive=_sensitive(full, untrained, judge.margin),
        curves=(),
    )
    pruned = [r for r in own if r.pruning_ratio > 0]
    curves = [
        _curve(method, [r for r in pruned if r.method == method], panel, judge)
        for method in dict.fromkeys(r.method for r in pruned)
    ]
    return replace(panel, curves=tuple(curves))


def _is_level_of(result: Result, setting: Setting) -> bool:
    names = ("study", "source", "target", "transfer")
    return all(getattr(result, name) == getattr(setting, name) for name in names)


def done(results: Iterable[Result]) -> tuple[Result, ...]:
    """Keep what has accuracies, by seed."""
    return tuple(sorted((r for r in results if r.metrics), key=lambda r: r.seed))


def _curve(method: str, results: Sequence[Result], panel: Panel, judge: Judge) -> Curve:
    ratios = sorted({r.pruning_ratio for r in results})
    points = tuple(
        _point([r for r in results if r.pruning_ratio == ratio], panel, judge) for ratio in ratios
    )
    reason = no_verdict(panel.full, panel.untrained, judge.margin)
    if not reason and judge.predictions is None:
        reason = "predictions are missing"
    if reason:
        return Curve(method, points, None, reason)
    best = lossless_ratio({p.pruning_ratio: p.loss_bound for p in points}, judge.margin)
    beyond = [p for p in points if best is None or p.pruning_ratio > best][:1]
    return Curve(
        method, points, best, "".join(too_few(p.pruning_ratio, p.num_paired) for p in beyond)
    )


def too_few(pruning_ratio: float, num_paired: int) -> str:
    """Say that a ratio has too few seeds for a verdict; empty where it has enough."""
    if num_paired >= MIN_SEEDS:
        return ""
    return f"{pruning_ratio:g} has {num_paired} of the {MIN_SEEDS} seeds needed"


def no_verdict(full: Sequence[Result], untrained: Sequence[Result], margin: float) -> str:
    """Say what forbids a verdict on every method of a setting; empty if nothing does.

    Both are done: the full source, and the untrained floor.
    """
    match _sensitive(full, untrained, margin):
        case None:
            return "untrained floor is missing" if full else "full source is missing"
        case False:
            return "target is insensitive"
    return "" if len(full) >= MIN_SEEDS else f"{len(full)} of the {MIN_SEEDS} seeds needed"


def _sensitive(full: Sequence[Result], untrained: Sequence[Result], margin: float) -> bool | None:
    if not (full and untrained):
        return None
    return is_sensitive(accuracies(full), accuracies(untrained), margin)


def paired(full: Iterable[Result], pruned: Iterable[Result]) -> list[tuple[Result, Result]]:
    """Pair results of equal seeds."""
    full_of_seed = {r.seed: r for r in full}
    return [(full_of_seed[r.seed], r) for r in pruned if r.seed in full_of_seed]


def _point(results: Sequence[Result], panel: Panel, judge: Judge) -> Point:
    finished = done(results)
    pairs = paired(panel.full, finished)
    kept = None
    if finished and panel.sensitive:
        levels = (accuracies(finished), accuracies(panel.full), accuracies(panel.untrained))
        kept = gain_kept(*(float(np.mean(level)) for level in levels))
    # seconds on another device, or on more workers, say nothing about pruning
    timed = [(f, p) for f, p in pairs if (f.device, f.num_workers) == (p.device, p.num_workers)]
    seconds = sum(f.pretrain_seconds for f, _ in timed)
    pruned = sum(p.pretrain_seconds for _, p in timed)
    overhead = sum(p.surrogate_seconds + p.score_seconds for _, p in timed)
    return Point(
        pruning_ratio=results[0].pruning_ratio,
        done=finished,
        num_failed=len(results) - len(finished),
        num_paired=len(pairs),
        loss_bound=loss_bound(pairs, judge),
        gain_kept=kept,
        speed_up=seconds / pruned if pruned else None,
        net_speed_up=seconds / (pruned + overhead) if pruned else None,
    )


def loss_bound(pairs: Sequence[tuple[Result, Result]], judge: Judge) -> float | None:
    """Bound the loss of pairs (full, pruned); the same numbers at every call.

    Null with few pairs or without predictions.
    """
    if judge.predictions is None or len(pairs) < MIN_SEEDS:
        return None
    full = [_correct(f, judge.predictions) for f, _ in pairs]
    pruned = [_correct(p, judge.predictions) for _, p in pairs]
    generator = np.random.default_rng(0)
    return loss_upper_bound(full, pruned, generator, confidence=judge.confidence)


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
