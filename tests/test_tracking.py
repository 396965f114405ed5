"""Weights & Biases against a server of our own: the client and the agent are the real ones."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dp4tl_ray.plan import make_plan
from dp4tl_ray.results import read_results
from dp4tl_ray.runners.journal import News
from dp4tl_ray.specs.load import StudyError, load_study
from dp4tl_ray.specs.records import Metrics, Result, RobustAccuracy
from dp4tl_ray.specs.study import Study, Wandb
from dp4tl_ray.store import open_store
from dp4tl_ray.tracking.entries import accuracies, run_id
from dp4tl_ray.tracking.ledger import Ledger
from dp4tl_ray.tracking.sweep_file import only, sweep_config
from dp4tl_ray.tracking.tracker import Tracker
from tests.conftest import study_data, supervised
from tests.loopback_wandb.answers import Run
from tests.loopback_wandb.offline import OfflineRun, offline_runs
from tests.loopback_wandb.server import Server
from tests.test_cli import Answer, dp4tl
from tests.test_report import result

KEY = "an-api-key-that-is-to-be-found-nowhere-at-all"
OLD_VALIDATORS = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
"""Of wandb-workspaces, as it is imported."""
FINETUNE = {"transfer": "full_finetune", "epochs": 2, "lrs": [0.01]}


@dataclass
class Tracked:
    """A study that was run against a server."""

    server: Server
    store: Path
    path: Path
    answer: Answer

    @property
    def results(self) -> list[Result]:
        return read_results(self.store / "studies" / "tiny" / "results.jsonl")

    def again(self, *args: str, store: Path | None = None) -> Answer:
        return dp4tl("run", self.path, "--store", store or self.store, "--local", *args)


@pytest.fixture(autouse=True, scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        patch.setenv("NETRC", str(folder / "netrc"))
        yield patch


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Server]]:
    """Start servers that the test's runs go to; none of them was asked what it did not know."""
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server())
        monkeypatch.setenv("WANDB_BASE_URL", servers[-1].url)
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
        assert server.unknown == [] and server.broken == []


@pytest.fixture(scope="module")
def tracked(
    pictures: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    environment: pytest.MonkeyPatch,
) -> Iterator[Tracked]:
    """A small study, run online once for all tests of this file."""
    folder, server = tmp_path_factory.mktemp("tracked"), Server()
    path = folder / "tiny.yaml"
    tracking = {"wandb": {"mode": "online", "project": "letters"}}
    transfers = ["linear_probe", FINETUNE]
    pretraining = [supervised(), "none"]
    data = study_data(pictures, pretraining=pretraining, transfers=transfers, tracking=tracking)
    path.write_text(json.dumps(data))
    environment.setenv("WANDB_BASE_URL", server.url)
    answer = dp4tl("run", path, "--store", folder / "store", "--local")
    yield Tracked(server, folder / "store", path, answer)
    server.stop()
    assert server.unknown == [] and server.broken == []


@pytest.fixture
def copied(tracked: Tracked, tmp_path: Path) -> Path:
    """A store in which everything is done, and nothing was ever tracked."""
    store = tmp_path / "store"
    left_out = shutil.ignore_patterns("wandb", "tracked.jsonl")
    shutil.copytree(tracked.store, store, ignore=left_out)
    return store


def mirrors(run: Run | OfflineRun, line: Result) -> bool:
    """Whether a run says what a line of results.jsonl says."""
    expected = {**line.model_dump(mode="json", exclude={"metrics"}), **accuracies(line)}
    said = {**run.config, **run.summary}  # a null in a summary is not sent
    return all(said.get(name) == value for name, value in expected.items())


def of_result(runs: list[Any], line: Result) -> Any:
    """Return the one run that mirrors a line."""
    (run,) = [run for run in runs if run.job_type == "finetune" and mirrors(run, line)]
    return run


# -- a study online --------------------------------------------------------------------------------


def test_every_line_of_results_is_one_finished_run(tracked: Tracked) -> None:
    assert tracked.answer.returncode == 0 and tracked.answer.stderr == ""
    runs, results = tracked.server.in_group("tiny"), tracked.results
    assert len(runs) == len(results) == 8
    for line in results:
        run = of_result(runs, line)
        assert (run.project, run.state, run.exit_code, run.opened) == ("letters", "finished", 0, 1)
        assert run.config["spec"]["pretraining"]["objective"] == line.objective
        assert run.config["spec"]["transfer"]["transfer"] in line.transfer
        assert line.objective in [*run.tags, "none"] and "reused" not in run.tags
    assert f"10 runs at {tracked.server.url}" in tracked.answer.stdout


def test_curves_are_shown_by_every_cell_that_rests_on_them(tracked: Tracked) -> None:
    trained = [r for r in tracked.server.in_group("tiny") if r.config["objective"] == "supervised"]
    assert len(trained) == 6
    for run in trained:
        assert run.curve("pretrain/epoch") == [1, 2]
        assert run.config["cells_of_this_pretraining"] == 2
        finetunes = run.config["spec"]["transfer"]["transfer"] == "full_finetune"
        assert run.curve("finetune/report") == ([1, 2] if finetunes else [])
    losses = {tuple(run.curve("pretrain/loss")) for run in trained}
    assert len(losses) == 3 and all(first > last for first, last in losses)
    (surrogate,) = tracked.server.in_group("tiny", "surrogate")
    assert surrogate.curve("surrogate/epoch") == [1, 2] and surrogate.state == "finished"


def test_the_study_is_one_sweep_that_every_cell_joins(tracked: Tracked) -> None:
    ((name, sweep),) = tracked.server.sweeps.items()
    assert sweep.project == "letters" and sweep.config["method"] == "grid"
    assert {run.sweep for run in tracked.server.in_group("tiny")} == {name}
    for run in tracked.server.in_group("tiny"):
        for axis, parameter in sweep.config["parameters"].items():
            assert run.config[axis] in [*parameter["values"], "none"], axis
    assert [run.sweep for run in tracked.server.in_group("tiny", "surrogate")] == [None]


def test_lineage_leads_from_surrogate_to_subset_to_weights(tracked: Tracked) -> None:
    (surrogate,) = tracked.server.in_group("tiny", "surrogate")
    assert surrogate.logged == [f"surrogate-{surrogate.config['step'][:12]}"]
    for run in tracked.server.in_group("tiny"):
        steps = {role: key[:12] for role, key in run.config["steps"].items()}
        rests_on = {f"pretrained-{steps['pretrain']}"}
        if "prune" in steps:
            rests_on.add(f"subset-{steps['prune']}")
        if run.config["method"] == "label_mapping":
            assert surrogate.logged[0] in run.used
        assert rests_on == {*run.logged} | {*run.used} - {*surrogate.logged}
        assert not {*run.logged} & {*run.used}
    made = [name for run in tracked.server.in_group("tiny") for name in run.logged]
    assert len(made) == len({*made}) == 2 + 4  # each by one of the cells that share it
    for name in (*made, *surrogate.logged):
        (version,) = tracked.server.artifacts.named(name)
        assert version.made_by is not None, f"{name} was brought by a run that uses it"
    subset = tracked.server.artifacts.named("subset")[0]
    assert {*subset.files} == {"kept_indices.npy", "score_U.npy", "class_names.json"}
    assert json.loads(subset.metadata)["spec"]["pruning_ratio"] == 0.5


def test_the_summary_run_holds_table_curves_scores_and_pictures(tracked: Tracked) -> None:
    (run,) = tracked.server.in_group("tiny", "summary")
    (row,) = run.history
    assert row["results"]["nrows"] == 8
    sections = {name.partition("/")[0] for name in row}
    assert {"curves", "scores", "report"} <= sections
    assert row["report/accuracy_over_ratio"]["_type"] == "image-file"
    assert any(name.startswith("scores/label_mapping") for name in row)


def test_the_key_is_written_nowhere(tracked: Tracked) -> None:
    files = [path for path in tracked.store.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not [name for name, content in tracked.server.files.items() if KEY.encode() in content]


# -- the next run ----------------------------------------------------------------------------------


def test_a_rerun_adds_nothing_and_a_larger_study_what_is_new(
    tracked: Tracked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    shutil.copytree(tracked.store, store)
    before = {name: len(run.history) for name, run in tracked.server.runs.items()}
    assert tracked.again(store=store).returncode == 0
    assert {name: len(run.history) for name, run in tracked.server.runs.items()} == before
    assert {run.opened for run in tracked.server.runs.values()} == {1}
    # servers of other tests may log their requests in this process
    assert [record for record in caplog.records if record.name.startswith("dp4tl")] == []

    answer = tracked.again(
        "--set", "pruning_ratios=[0.0, 0.5, 0.85]", "--set", "methods=[label_mapping]",
        "--set", "transfers=[knn]", store=store,
    )  # fmt: skip
    assert answer.returncode == 1
    new = [run for name, run in tracked.server.runs.items() if name not in before]
    assert len(new) == 4 and {run.sweep for run in new} == {*tracked.server.sweeps}
    assert "lists fewer values of pruning_ratio, transfer than the study" in caplog.text
    (failed,) = [run for run in new if run.config["pruning_ratio"] == 0.85]
    assert failed.state == "failed" and "needs at least 2" in failed.summary["error"]
    for run in new:
        if run is not failed:  # its pretraining was there, its transfer is new
            assert "reused" in run.tags and run.config["reused"] == ["pretrain"]
            assert run.curve("pretrain/loss") == []
    (overview,) = tracked.server.in_group("tiny", "summary")
    assert overview.opened == 2 and overview.history[-1]["results"]["nrows"] == 4
    for run in new:
        del tracked.server.runs[run.name]


def test_what_was_done_before_appears_as_reused(
    tracked: Tracked, copied: Path, serve: Callable[[], Server]
) -> None:
    server = serve()
    answer = tracked.again(store=copied)
    assert answer.returncode == 0 and "0 steps run" in answer.stdout
    runs = server.in_group("tiny")
    assert len(runs) == 8
    for line in tracked.results:
        run = of_result(runs, line)
        assert "reused" in run.tags and run.config["reused"] == ["pretrain", "finetune"]
        assert run.history == [] and run.logged == []
    assert server.in_group("tiny", "surrogate") == []


def test_an_interrupted_run_is_resumed(
    tracked: Tracked, copied: Path, serve: Callable[[], Server]
) -> None:
    server, study = serve(), load_study(tracked.path)
    plan = make_plan(study, lambda thing, role="source": "")
    cell = next(cell for cell in plan.cells if cell.pretraining.objective == "supervised")
    news = News(cell.steps["pretrain"], "progress", {"epoch": 1, "loss": 2.0})
    with (
        pytest.raises(KeyboardInterrupt),
        Tracker(plan, open_store(str(copied)), study.tracking.wandb) as tracker,
    ):
        tracker.hear([news])
        raise KeyboardInterrupt
    (run,) = server.in_group("tiny")
    assert run.name == run_id("tiny", cell.steps["finetune"])
    assert run.exit_code == 255 and run.curve("pretrain/loss") == [2.0]
    with Tracker(plan, open_store(str(copied)), study.tracking.wandb) as tracker:
        tracker.hear([News(news.key, "progress", {"epoch": 2, "loss": 1.0})])
    assert run.opened == 2 and run.curve("pretrain/loss") == [2.0, 1.0]


# -- offline, by choice and by need ----------------------------------------------------------------


def sync(store: Path) -> None:
    wandb("sync", "--yes", store / "wandb", at=store)


def wandb(*args: str | Path, at: Path) -> None:
    """Run the client's own command in a folder, where it leaves files."""
    command = [Path(sys.executable).with_name("wandb"), *args]
    subprocess.run(command, check=True, capture_output=True, cwd=at)


def test_offline_runs_say_what_results_say_and_join_a_sweep_later(
    tracked: Tracked, copied: Path, serve: Callable[[], Server]
) -> None:
    server = serve()
    answer = tracked.again("--set", "tracking.wandb.mode=offline", store=copied)
    assert f"9 runs offline; send them with `wandb sync {copied / 'wandb'}`" in answer.stdout
    assert server.calls == []
    runs = offline_runs(copied)
    assert len(runs) == 9  # with the summary; the surrogate was trained before
    for line in tracked.results:
        run = of_result(runs, line)
        assert (run.group, run.exit_code) == ("tiny", 0)
    sync(copied)
    assert len(server.in_group("tiny")) == 8
    assert {run.sweep for run in server.in_group("tiny")} == {None}
    assert tracked.again(store=copied).returncode == 0
    ((name, sweep),) = server.sweeps.items()
    assert {run.sweep for run in server.in_group("tiny")} == {name}
    assert len(server.in_group("tiny")) == 8
    assert sorted(c["name"] for c in json.loads(sweep.prior or "")["$or"]) == sorted(
        run.id for run in runs
    )


def tracked_at(url: str, store: Path) -> set[str]:
    """Return the runs that the ledger says are whole at a server."""
    ledger = Ledger(open_store(str(store)), "tiny")
    return {run for destination, run in ledger.runs if destination.startswith(url)}


@pytest.mark.parametrize("trouble", ["unreachable", "refused", "no key"])
def test_a_server_that_does_not_take_runs_is_said_at_once(
    trouble: str,
    tracked: Tracked,
    copied: Path,
    serve: Callable[[], Server],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve()
    match trouble:
        case "unreachable":
            server.stop()
        case "refused":
            server.refuses = True
        case "no key":
            monkeypatch.delenv("WANDB_API_KEY")
    assert tracked.again(store=copied).returncode == 0
    (record,) = [r for r in caplog.records if "Weights & Biases" in r.message]
    said = {
        "unreachable": "cannot be reached",
        "refused": "did not recognize",
        "no key": "no API key",
    }
    assert said[trouble] in record.message and f"wandb sync {copied}" in record.message
    assert KEY not in record.message
    assert len(offline_runs(copied)) == 9 and server.runs == {}


def test_a_server_that_dies_in_mid_study_costs_nothing(
    tracked: Tracked,
    copied: Path,
    serve: Callable[[], Server],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("INIT", "FINISH"):
        monkeypatch.setenv(f"WANDB_{name}_TIMEOUT", "2")
    server = serve()
    server.dies_after = 2  # while the others are being ended
    assert tracked.again(store=copied).returncode == 0
    assert caplog.text.count("stopped answering") == 1
    there, here = {run.name for run in server.ended()}, offline_runs(copied)
    confirmed = tracked_at(server.url, copied)
    assert len(there) == 2 and confirmed <= there
    assert len(here) == len({run.id for run in here}) == 9 - len(confirmed)
    for line in tracked.results:
        of_result([*here, *(server.runs[name] for name in confirmed)], line)


def test_a_mirror_that_dies_costs_nothing(
    tracked: Tracked, copied: Path, serve: Callable[[], Server], caplog: pytest.LogCaptureFixture
) -> None:
    serve()
    study = load_study(tracked.path)
    plan = make_plan(study, lambda thing, role="source": "")
    with Tracker(plan, open_store(str(copied)), study.tracking.wandb) as tracker:
        assert tracker.client is None or tracker.client.ready is None  # a study does not wait
        while tracker.client is None:
            time.sleep(0.01)
        tracker.client.wait()
        tracker.client.kill()
        tracker.report(tracked.results, copied / "studies" / "tiny")
    assert "results.jsonl is whole" in caplog.text


# -- a sweep whose agents run cells ----------------------------------------------------------------


def test_an_agent_runs_single_cells(
    tracked: Tracked, copied: Path, serve: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    axes = ["methods=[label_mapping]", "transfers=[linear_probe]"]
    axes += [f"pretraining=[{json.dumps(supervised())}]", "pruning_ratios=[0.5]"]
    options = [part for axis in axes for part in ("--set", axis)]
    answer = dp4tl("wandb-sweep", tracked.path, "--store", copied, "--local", *options)
    path = copied / "studies" / "tiny" / "wandb_sweep.yaml"
    assert str(path) in answer.stdout and "wandb sweep --project letters" in answer.stdout
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    wandb("sweep", "--project", "letters", path, at=copied)
    ((name, sweep),) = server.sweeps.items()
    (point,) = sweep.queue
    wandb("agent", f"somebody/letters/{name}", at=copied)
    (run,) = server.runs.values()  # neither a summary nor a surrogate: the agent asked for a cell
    assert (run.sweep, run.state, run.group) == (name, "finished", "tiny")
    for axis, value in point.items():
        assert run.config[axis] == value
    assert mirrors(run, read_results(copied / "studies" / "tiny" / "results.jsonl")[0])


# -- a saved view ----------------------------------------------------------------------------------


@OLD_VALIDATORS
def test_a_view_shows_what_the_runs_of_the_study_have(tracked: Tracked, copied: Path) -> None:
    answer = dp4tl("wandb-workspace", tracked.path, "--store", copied)
    assert answer.returncode == 0 and answer.stderr == ""
    ((name, view),) = tracked.server.views.items()
    address = f"{tracked.server.url}/somebody/letters?nw={name.removeprefix('nw-')[:-2]}"
    assert answer.stdout == f"workspace: {address}\n"
    assert (view["displayName"], view["entityName"], view["projectName"]) == (
        "tiny", "somebody", "letters",
    )  # fmt: skip
    section = json.loads(view["spec"])["section"]
    (runs,) = section["runSets"]
    assert '"name": "group"' in json.dumps(runs["filters"])
    assert '"value": "tiny"' in json.dumps(runs["filters"])
    shown = json.dumps(section["panelBankConfig"]["sections"])
    of_cells = tracked.server.in_group("tiny")
    for axis in ("method", "pruning_ratio", "pretraining", "transfer"):
        assert f'"config:{axis}.value"' in shown
        assert all(axis in run.config for run in of_cells)
    assert '"config:seed.value"' not in shown  # the study has one
    assert '"summary:accuracy"' in shown and all("accuracy" in run.summary for run in of_cells)
    logged = {key for run in of_cells for row in run.history for key in row}
    for key in ("pretrain/loss", "pretrain/epoch", "finetune/loss", "finetune/report"):
        assert f'"{key}"' in shown and key in logged


@OLD_VALIDATORS
def test_a_view_saved_again_keeps_what_people_added(tracked: Tracked, copied: Path) -> None:
    tracked.server.views.clear()
    first = dp4tl("wandb-workspace", tracked.path, "--store", copied).stdout
    ((name, view),) = tracked.server.views.items()
    spec = json.loads(view["spec"])
    sections = spec["section"]["panelBankConfig"]["sections"]
    sections.append({**sections[0], "name": "My own"})
    sections[0]["panels"] = []
    tracked.server.views[name]["spec"] = json.dumps(spec)
    assert dp4tl("wandb-workspace", tracked.path, "--store", copied).stdout == first
    assert [*tracked.server.views] == [name]
    spec = json.loads(tracked.server.views[name]["spec"])
    names = [s["name"] for s in spec["section"]["panelBankConfig"]["sections"]]
    assert names == ["What decides", "Training by method", "My own"]
    assert spec["section"]["panelBankConfig"]["sections"][0]["panels"]
    tracked.server.views.clear()  # somebody has deleted it
    assert dp4tl("wandb-workspace", tracked.path, "--store", copied).returncode == 0
    assert len(tracked.server.views) == 1 and name not in tracked.server.views


@OLD_VALIDATORS
def test_a_view_of_a_server_that_refuses_the_key_is_an_error(
    tracked: Tracked, copied: Path, serve: Callable[[], Server]
) -> None:
    server = serve()
    server.refuses = True
    answer = dp4tl("wandb-workspace", tracked.path, "--store", copied)
    assert answer.returncode == 1 and answer.stdout == "" and not server.views
    assert answer.stderr.startswith("Weights & Biases: ") and KEY not in answer.stderr


@OLD_VALIDATORS
def test_a_view_that_the_server_does_not_take_is_an_error_with_its_reason(
    tracked: Tracked, copied: Path, serve: Callable[[], Server]
) -> None:
    server = serve()
    del server.operations["UpsertView2"]
    answer = dp4tl("wandb-workspace", tracked.path, "--store", copied)
    assert answer.returncode == 1 and answer.stdout == ""
    assert "letters: " in answer.stderr and "unknown operation UpsertView2" in answer.stderr
    server.unknown.clear()  # that it does not know it was meant


# -- the rest --------------------------------------------------------------------------------------


def tiny(pictures: dict[str, str], **changes: Any) -> Study:
    return Study.model_validate(study_data(pictures, **changes))


def test_points_that_mean_the_same_share_a_cell(pictures: dict[str, str]) -> None:
    plan = make_plan(tiny(pictures, seeds=[0, 1]), lambda thing, role="source": "")
    assert only(plan, []).cells == plan.cells and len(plan.cells) == 10
    cells = only(plan, ["seed=1", "pruning_ratio=0", "method=label_mapping"]).cells
    assert only(plan, ["seed=1", "pruning_ratio=0.0", "method=random_classes"]).cells == cells
    assert {cell.pretraining.objective for cell in cells} == {"supervised", "none", "raw_pixels"}
    one = only(plan, ["seed=1", "pruning_ratio=0.5", "method=label_mapping"])
    methods = [cell.method for cell in one.cells if cell.method is not None]
    assert [m.method for m in methods] == ["label_mapping"]
    assert len(one.steps) < len(plan.steps)
    assert only(plan, ["seed=0", "seed=1"]).cells == plan.cells
    both = only(plan, ["seed=1", "method=label_mapping", "method=random_classes"])
    assert both.cells == only(plan, ["seed=1"]).cells
    for wrong, said in (
        ("method=el2n", "allowed: label_mapping"),
        ("ratio=0", "pruning_ratio"),
        ("seed", "write AXIS=VALUE"),
    ):
        with pytest.raises(StudyError, match=said):
            only(plan, [wrong])


@pytest.mark.parametrize("path", sorted(Path("experiments").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_is_a_sweep_that_the_server_takes(path: Path) -> None:
    config = sweep_config(load_study(path), ["dp4tl", "run", str(path)])
    allowed = {"name", "description", "method", "metric", "parameters", "program", "command"}
    assert {*config} <= allowed and config["method"] in ("grid", "custom")
    for name, parameter in config["parameters"].items():
        assert name.isidentifier() and {*parameter} == {"values"} and parameter["values"]
    assert YAML(typ="safe").load(json.dumps(config)) == config


def test_disabled_starts_nothing(tracked: Tracked, copied: Path) -> None:
    answer = tracked.again("--set", "tracking.wandb.mode=disabled", store=copied)
    assert "Weights" not in answer.stdout and not (copied / "wandb").exists()


def test_what_cannot_be_written_is_said_and_costs_nothing(
    tracked: Tracked, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copied / "wandb").write_text("in the way")
    answer = tracked.again("--set", "tracking.wandb.mode=offline", store=copied)
    assert answer.returncode == 0 and "results.jsonl is whole" in caplog.text


def test_accuracies_under_attack_have_names_of_their_own() -> None:
    attacks: list[dict[str, Any]] = [
        {"attack": "pgd", "norm": "linf", "eps": 4 / 255, "steps": 20, "accuracy": 0.2},
        {"attack": "pgd", "norm": "linf", "eps": 8 / 255, "steps": 20, "accuracy": 0.1},
        {"attack": "pgd", "norm": "l2", "eps": 0.5, "steps": 20, "accuracy": 0.3},
    ]
    checks = [RobustAccuracy.model_construct(**attack) for attack in attacks]
    metrics = Metrics.model_construct(accuracy=0.9, mean_class_accuracy=0.8, robust=tuple(checks))
    named = accuracies(result(0.9).model_copy(update={"metrics": metrics}))
    assert len(named) == 5 and named["robust_accuracy/pgd linf 20 8 of 255"] == 0.1


def test_defaults_track_nothing() -> None:
    assert Wandb().mode == "disabled"
