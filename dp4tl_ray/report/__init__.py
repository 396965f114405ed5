"""results.jsonl -> tables and curves; every number in them comes from a result."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dp4tl_ray.algorithms.lossless import CONFIDENCE
from dp4tl_ray.atomic import write_atomically
from dp4tl_ray.report.attacked import Attacked, panels_under_attack
from dp4tl_ray.report.curves import Predictions, build_panels
from dp4tl_ray.report.tables import csv_table, markdown
from dp4tl_ray.report.variants import build_families
from dp4tl_ray.specs.records import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Predictions", "write_report"]

MANY = 10
"""Methods from which on lines can no longer be told apart."""


def write_report(
    results: Sequence[Result],
    folder: Path,
    margin: float,
    predictions: Predictions | None,
    confidence: float = CONFIDENCE,
    under_attack: Attacked | None = None,
) -> list[Path]:
    """Write results.csv, results.md and figures as PNG and SVG; return their paths.

    A figure is accuracy over ratio, or a matrix of losses where there are many methods. Where a
    pretraining has adversarial variants, two more have them side by side, over ratio and cost.

    `margin` is the loss of accuracy that counts as none, a fraction, and `confidence` that of the
    bound that stays below it. Without `predictions` there are curves and no verdicts. Without a
    finished pretraining there is no figure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    panels = build_panels(results, margin, predictions, confidence)
    attacked = panels_under_attack(results, margin, under_attack, confidence)
    drawable = [p for p in panels if p.full or any(q.done for c in p.curves for q in c.points)]
    many = len({c.method for p in drawable for c in p.curves}) >= MANY
    name = "loss_matrix" if many else "accuracy_over_ratio"
    families = build_families(panels, attacked)
    drawings: dict[str, Figure] = {}
    captions: dict[str, str] = {}
    if drawable:
        # matplotlib takes half a second to import, and tables do without it
        from dp4tl_ray.report.figure import draw, render
        from dp4tl_ray.report.matrix import draw_matrix
        from dp4tl_ray.report.variant_figure import draw_variants

        drawings[name] = draw_matrix(drawable) if many else draw(drawable, margin)
        captions["accuracy over pruning ratio"] = f"{name}.png"
        for over in ("ratio", "cost") if families else ():
            drawings[f"variants_over_{over}"] = draw_variants(families, over)
            captions[f"adversarial variants over {over}"] = f"variants_over_{over}.png"
    text = markdown(results, panels, margin, captions, confidence, attacked, families)
    files = {"results.csv": csv_table(results).encode(), "results.md": text.encode()}
    for name, drawn in drawings.items():
        files |= {f"{name}.{kind}": render(drawn, kind) for kind in ("png", "svg")}
    for file, content in files.items():
        write_atomically(folder / file, partial(Path.write_bytes, data=content))
    return [folder / name for name in files]
