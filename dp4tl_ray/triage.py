"""Cheap triage before any pretraining: are the choices of the methods stable, and do they cover?

Split-half: Spearman correlation of the scores from two halves of the target's train images. Near 0
the method reads noise. Jaccard: mean overlap of the kept examples over pairs of seeds. Radius: mean
distance of a target train image from the nearest kept example, in the surrogate's features, over
that from the nearest of all; 1 loses nothing, - is a study in which no method passes the source
through the surrogate. None of them knows whether a choice pretrains well;
the yardstick may, in a study with the method `counterfactual`: Spearman correlation over classes
of the mean place of their examples with that method's, worth what its regression explains.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dp4tl_ray.algorithms.agreement import mean_jaccard, spearman
from dp4tl_ray.algorithms.neighbors import coverage_radius
from dp4tl_ray.algorithms.selection import top_order
from dp4tl_ray.plan import Cell, Plan
from dp4tl_ray.report.layout import markdown_table
from dp4tl_ray.scoring.examples import score_examples
from dp4tl_ray.scoring.inputs import Embedding, Floats, Ints, ScorerInputs
from dp4tl_ray.scoring.units import score_units
from dp4tl_ray.specs.base import label
from dp4tl_ray.specs.method import AnyMethod, combined, needs
from dp4tl_ray.specs.steps import EmbedStep, ScoreStep
from dp4tl_ray.specs.unit_methods import Counterfactual, UnitMethod
from dp4tl_ray.stages.prune import load_kept
from dp4tl_ray.stages.score import embedding, load_scores, scorer_inputs
from dp4tl_ray.store import Store
from dp4tl_ray.training.worker import Worker, seed_for

MISSING = "-"


@dataclass(frozen=True)
class Row:
    """What is known of one method for one target before pretraining; means over seeds."""

    target: str
    method: str
    split_half: float | None
    """Null for methods that do not score from the target alone."""
    jaccard: dict[float, float | None]
    """Pruning ratio -> overlap; null with one seed."""
    radius: dict[float, float | None]
    """Pruning ratio -> relative radius; null where the study embeds no such images."""
    yardstick: float | None
    """Correlation with the counterfactual method; null in a study without it."""
    explained: float | None = None
    """Share of the variance over subsets left out that the counterfactual method explains."""


def triage(plan: Plan, store: Store) -> list[Row]:
    """Compare what the methods of a plan keep; all its prune steps must be done."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in plan.cells:
        if cell.method is not None:
            groups.setdefault((label(cell.target), label(cell.method)), []).append(cell)
    best = {
        target: _class_places(cells, plan, store)
        for (target, _), cells in groups.items()
        if isinstance(cells[0].method, Counterfactual)
    }
    context = _Context(plan, store, _embedded(plan), best)
    return [_row(cells, context) for cells in groups.values()]


def _row(cells: Sequence[Cell], context: "_Context") -> Row:
    """Measure the cells of one method and target: ratios, seeds, recipes."""
    plan, store = context.plan, context.store
    jaccard: dict[float, float | None] = {}
    radius: dict[float, float | None] = {}
    for ratio in sorted({c.pruning_ratio for c in cells}):
        of_seed = {c.seed: c for c in cells if c.pruning_ratio == ratio}
        kept = {seed: _kept(c, plan, store) for seed, c in of_seed.items()}
        jaccard[ratio] = mean_jaccard(list(kept.values())) if len(kept) > 1 else None
        radii = [
            value
            for seed, cell in of_seed.items()
            if (value := _radius(kept[seed], cell, context)) is not None
        ]
        radius[ratio] = float(np.mean(radii)) if radii else None
    method = cells[0].method
    assert method is not None
    halves = [
        _split_half(method, score, plan, store)
        for score in sorted({c.steps["score"] for c in cells})
        if _splits(method)
    ]
    known = [value for value in halves if not np.isnan(value)]
    split_half = float(np.mean(known)) if known else None
    best = context.best.get(label(cells[0].target))
    yardstick = None if best is None else spearman(_class_places(cells, plan, store), best)
    explained = None
    if isinstance(method, Counterfactual):
        scores = {c.steps["score"]: store.find(plan.steps[c.steps["score"]]) for c in cells}
        shares = [a.manifest.metrics.get("r2_loo") for a in scores.values() if a is not None]
        explained = float(np.mean([share for share in shares if isinstance(share, float)]))
    target = label(cells[0].target)
    return Row(target, label(method), split_half, jaccard, radius, yardstick, explained)


def _class_places(cells: Sequence[Cell], plan: Plan, store: Store) -> Floats:
    """Return minus the mean place of each class's examples, over the seeds of a method, (C,)."""
    places = []
    for score in sorted({c.steps["score"] for c in cells}):
        artifact = store.find(plan.steps[score])
        source = store.find(plan.steps[cells[0].steps["source"]])
        assert artifact is not None and source is not None
        order, labels = top_order(load_scores(artifact)), np.asarray(source.array("labels"))
        place = np.empty(len(order))
        place[order] = np.arange(len(order))
        sums, sizes = np.bincount(labels, place), np.bincount(labels)
        places.append(-sums / np.maximum(sizes, 1))
    mean: Floats = np.mean(places, axis=0)
    return mean


def _kept(cell: Cell, plan: Plan, store: Store) -> Ints:
    artifact = store.find(plan.steps[cell.steps["prune"]])
    if artifact is None:
        raise FileNotFoundError(f"{plan.steps[cell.steps['prune']].name} is not done")
    return load_kept(artifact, 0)


Embedded = dict[tuple[int, str], dict[str, str]]
"""Seed and digest of a dataset -> digest of its embedding."""


@dataclass(frozen=True)
class _Context:
    """What all rows are measured against."""

    plan: Plan
    store: Store
    embedded: Embedded
    best: Mapping[str, Floats]
    """Target -> places of the classes by the counterfactual method."""
    nearest: dict[tuple[str, str], float] = field(default_factory=dict)
    """Digests of two embeddings -> mean distance to the nearest of all, alike for all methods."""


def _embedded(plan: Plan) -> Embedded:
    """Find the embeddings that any method of a seed is computed from."""
    found: Embedded = {}
    for cell in plan.cells:
        if "prune" in cell.steps:
            for key in plan.closure(cell.steps["prune"]):
                if isinstance(plan.steps[key].spec, EmbedStep):
                    inputs = plan.steps[key].inputs
                    of = found.setdefault((cell.seed, inputs["data"]), {})
                    of[inputs["surrogate"]] = key
    return found


def _radius(kept: Ints, cell: Cell, context: _Context) -> float | None:
    """Compare distances to the kept examples with those to all."""
    sources, targets = (
        context.embedded.get((cell.seed, cell.steps[role]), {}) for role in ("source", "target")
    )
    # the first surrogate that has embedded both, for all methods: radii of two do not compare
    both = [surrogate for surrogate in sources if surrogate in targets]
    if not both:
        return None
    keys = sources[both[0]], targets[both[0]]
    source, target = (embedding(context.store.find(context.plan.steps[key])) for key in keys)
    assert source is not None and target is not None
    features, goal = np.asarray(source.features), np.asarray(target.features)
    if keys not in context.nearest:
        context.nearest[keys] = float(coverage_radius(goal, features).mean())
    return float(coverage_radius(goal, features[kept]).mean() / max(context.nearest[keys], 1e-12))


def _splits(method: AnyMethod) -> bool:
    """Say whether a method scores from the target's train images, and from nothing dearer."""
    return "target" in needs(method) and combined(method) is None


def _split_half(method: AnyMethod, key: str, plan: Plan, store: Store) -> float:
    """Score from two halves of the target's train images, and correlate."""
    step = plan.steps[key]
    assert isinstance(step.spec, ScoreStep)
    found = {role: store.find(plan.steps[used]) for role, used in step.inputs.items()}
    artifacts = {role: artifact for role, artifact in found.items() if artifact is not None}
    inputs = scorer_inputs(artifacts, step.spec.seed, Worker())
    assert inputs.target is not None
    first, second = (
        _score(method, replace(inputs, target=half)) for half in _halves(inputs.target, step.spec)
    )
    return spearman(first, second)


def _halves(target: Embedding, spec: ScoreStep) -> Iterator[Embedding]:
    """Deal the examples of every class out to two halves."""
    rng = np.random.default_rng(seed_for(spec.seed, "halves"))
    order = rng.permutation(len(target.labels))
    order = order[np.argsort(target.labels[order], kind="stable")]
    for half in (np.sort(order[0::2]), np.sort(order[1::2])):
        yield Embedding(target.features[half], target.logits[half], target.labels[half])


def _score(method: AnyMethod, inputs: ScorerInputs) -> Floats:
    if isinstance(method, UnitMethod):
        return score_units(method, inputs).score
    return score_examples(method, inputs)[0]


def triage_table(rows: Sequence[Row]) -> str:
    """Write the rows as Markdown, a table per target."""
    lines = ["# Triage: what the methods keep, before any pretraining", "", *_legend()]
    for target in dict.fromkeys(row.target for row in rows):
        mine = [row for row in rows if row.target == target]
        ratios = sorted({ratio for row in mine for ratio in row.jaccard})
        head = ["method", "split-half", "yardstick"]
        head += [f"Jaccard {r:g}" for r in ratios] + [f"radius {r:g}" for r in ratios]
        body = [
            [
                row.method,
                _number(row.split_half),
                _number(row.yardstick),
                *(_number(row.jaccard.get(r)) for r in ratios),
                *(_number(row.radius.get(r)) for r in ratios),
            ]
            for row in mine
        ]
        lines += ["", f"## {target}", "", *markdown_table([head, *body])]
        lines += [
            f"\nThe yardstick explains {row.explained:.2f} of the variance over subsets left out."
            for row in mine
            if row.explained is not None
        ]
    return "\n".join(lines) + "\n"


def _legend() -> list[str]:
    return [" ".join((__doc__ or "").split("\n\n")[1].split())]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
