"""A saved view of a study's runs: what decides accuracy, and losses by method.

The server shows every other key below, in a section per prefix: curves, scores, report.
"""

import contextlib

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from dp4tl_ray.specs.adversarial import PGDRobustness
from dp4tl_ray.specs.study import Study
from dp4tl_ray.store import Store
from dp4tl_ray.tracking.entries import ROLES, robust_name
from dp4tl_ray.tracking.ledger import Ledger
from dp4tl_ray.tracking.server import destination, refusal
from dp4tl_ray.tracking.sweep_file import axes_of_sweep

TWO_BY_TWO = ws.SectionLayoutSettings(columns=2, rows=2)
MOST_RUNS = 100
"""Runs that a panel draws; the default is 10."""


class WorkspaceError(Exception):
    """The view cannot be saved; the message says why."""


def save_workspace(study: Study, store: Store) -> str:
    """Save the view, or bring the one that was saved before up to date; returns its address.

    Sections that people have added to it stay.

    Raises:
        WorkspaceError: The server is away, does not know the key, or does not take the view.
    """
    spec = study.tracking.wandb
    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        if why := refusal():
            raise WorkspaceError(why)
        view = workspace_of(study, spec.entity or wandb.Api().default_entity or "")
        ledger, where = Ledger(store, study.name), destination(spec.project, spec.entity)
        if where in ledger.workspaces:
            with contextlib.suppress(ValueError):  # somebody has deleted it
                old, sections = ws.Workspace.from_url(ledger.workspaces[where]), view.sections
                ours = {section.name for section in sections}
                old.sections = [*sections, *(s for s in old.sections if s.name not in ours)]
                view = old
        view.save()
        ledger.note(destination=where, workspace=view.url)
        ledger.publish()
        return str(view.url)
    except WorkspaceError:
        raise
    except Exception as error:  # the client's errors are of many kinds, most of them its own
        raise WorkspaceError(f"{destination(spec.project, spec.entity)}: {error}") from error
    finally:
        wandb.teardown()


def workspace_of(study: Study, entity: str) -> ws.Workspace:
    """Describe the view: of the runs in the study's group, all panels that W&B makes by itself."""
    return ws.Workspace(
        entity=entity,
        project=study.tracking.wandb.project,
        name=study.name,
        sections=[
            _section("What decides", _deciding(study)),
            _section("Training by method", _training()),
        ],
        settings=ws.WorkspaceSettings(max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == study.name),
            order=[ws.Ordering(ws.Summary("accuracy"), ascending=False)],
            pinned_columns=[
                *(f"config:{name}" for name in _varied(study)),
                *(f"summary:{name}" for name in _measured(study)),
            ],
        ),
        auto_generate_panels=True,
    )


def _section(name: str, panels: list[wr.interface.PanelTypes]) -> ws.Section:
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=TWO_BY_TWO)


def _varied(study: Study) -> list[str]:
    """Return the axes along which cells differ."""
    return [name for name, values in axes_of_sweep(study).items() if len(values) > 1]


def _measured(study: Study) -> list[str]:
    """Return the accuracies that a run ends with."""
    attacked = [
        robust_name(
            check.attack, check.norm, check.steps if isinstance(check, PGDRobustness) else None, eps
        )
        for check in study.robustness
        for eps in sorted(check.eps)
    ]
    return ["accuracy", *attacked]


def _deciding(study: Study) -> list[wr.interface.PanelTypes]:
    """Return how accuracy depends on the axes."""
    measured, varied = _measured(study), _varied(study)
    columns = [
        *(wr.ParallelCoordinatesPlotColumn(wr.Config(name)) for name in varied),
        *(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(name)) for name in measured),
    ]
    over_ratio = [
        wr.ScatterPlot(x=wr.Config("pruning_ratio"), y=wr.SummaryMetric(name), running_ymean=True)
        for name in measured
    ]
    by_method = [
        wr.BarPlot(
            title=f"{name} by method",
            metrics=[name],
            groupby=wr.Config("method"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for name in measured
    ]
    importance = wr.ParameterImportancePlot(with_respect_to="accuracy")
    return [wr.ParallelCoordinatesPlot(columns=columns), importance, *over_ratio, *by_method]


def _training() -> list[wr.interface.PanelTypes]:
    """Return the losses of pretraining and transfer, a line per method."""
    return [
        wr.LinePlot(
            title=f"{role} loss",
            x=f"{role}/{x}",
            y=[f"{role}/loss"],
            groupby=wr.Config("method"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for role, x in ROLES.items()
    ]
