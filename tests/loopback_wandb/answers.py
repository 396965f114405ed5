"""What the server knows, and its answer to each operation that the client and the agent ask for."""

import base64
import itertools
import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML

from tests.loopback_wandb.artifacts import Artifacts, identity

Variables = dict[str, Any]
ENTITY = "somebody"


class UnknownError(Exception):
    """An operation that nobody has thought of."""


@dataclass
class Run:
    """What the server has of a run."""

    name: str
    project: str
    state: str = "running"
    raw_config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Line -> what was logged."""
    exit_code: int | None = None
    tags: list[str] = field(default_factory=list)
    group: str = ""
    job_type: str = ""
    display_name: str = ""
    sweep: str | None = None
    opened: int = 0
    """Times that a client has begun it, or gone on with it."""
    logged: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    """Names of artifacts."""

    @property
    def config(self) -> dict[str, Any]:
        plain = {k: v["value"] for k, v in self.raw_config.items() if k != "_wandb"}
        return plain

    @property
    def history(self) -> list[dict[str, Any]]:
        return [self.rows[n] for n in sorted(self.rows)]

    def curve(self, name: str) -> list[Any]:
        return [row[name] for row in self.history if name in row]


@dataclass
class Sweep:
    name: str
    project: str
    config: dict[str, Any]
    prior: str | None
    queue: list[dict[str, Any]] = field(default_factory=list)


class Answers:
    """State and operations; `answer` finds the operation by its name."""

    def __init__(self) -> None:
        self.url = ""
        self.lock = threading.RLock()
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts = Artifacts()
        self.files: dict[str, bytes] = {}
        self.views: dict[str, Variables] = {}
        """Saved views by name."""
        self.agents: dict[str, str] = {}
        self.calls: list[str] = []
        self.unknown: list[tuple[str, str]] = []
        self.broken: list[str] = []
        self.refuses = False
        """Whether it knows no key."""
        self.operations: dict[str, Callable[[Variables], Any]] = {
            "Viewer": self.viewer,
            "GetDefaultEntity": self.viewer,
            "ServerFeaturesQuery": lambda v: {"serverInfo": {"features": []}},
            "RunResumeStatus": self.resume_status,
            "UpsertBucket": self.upsert_run,
            "CreateRunFiles": self.create_files,
            "UpsertSweep": self.upsert_sweep,
            "GetSweep": lambda v: self.sweep_with_runs({"sweep": v["name"]}),
            "CreateAgent": self.create_agent,
            "Heartbeat": self.heartbeat,
            "SweepWithRuns": self.sweep_with_runs,
            "UpsertView2": self.upsert_view,
            "View": self.view,
        }

    def answer(self, operation: str, variables: Variables) -> Any:
        if (ours := self.operations.get(operation)) is not None:
            return ours(variables)
        if (theirs := self.artifacts.operation(operation)) is not None:
            return theirs(variables, self.runs, self.url)
        raise UnknownError(f"unknown operation {operation}")

    def in_group(self, group: str, job_type: str = "finetune") -> list[Run]:
        return [r for r in self.runs.values() if r.group == group and r.job_type == job_type]

    def ended(self) -> list[Run]:
        return [run for run in self.runs.values() if run.exit_code is not None]

    # -- who ---------------------------------------------------------------------------------------

    def viewer(self, v: Variables) -> Any:
        if self.refuses:
            return {"viewer": None}
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        about = {"id": "u", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "a@b.c"}
        return {"viewer": {**about, "admin": False, "flags": "{}", "teams": teams}}

    # -- runs --------------------------------------------------------------------------------------

    def resume_status(self, v: Variables) -> Any:
        run, bucket = self.runs.get(v["name"]), None
        if run is not None:
            bucket = {
                **_bucket(run),
                "summaryMetrics": json.dumps(run.summary),
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
                "eventsTail": "[]",
                "tags": run.tags,
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),  # without t the client ignores all of it
            }
        return {"model": {**_project(v["project"]), "bucket": bucket}}

    def upsert_run(self, v: Variables) -> Any:
        name = v["name"]
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(name, v.get("project") or "uncategorized"))
        run.raw_config |= json.loads(v.get("config") or "{}")
        run.summary |= json.loads(v.get("summaryMetrics") or "{}")
        for key, attribute in (
            ("groupName", "group"),
            ("jobType", "job_type"),
            ("displayName", "display_name"),
            ("tags", "tags"),
            ("sweep", "sweep"),
            ("state", "state"),
        ):
            if v.get(key) is not None:  # null is what an update leaves alone
                setattr(run, attribute, v[key])
        if v.get("groupName") is not None:
            run.opened, run.state = run.opened + 1, "running"
        return {"upsertBucket": {"inserted": new, "bucket": _bucket(run)}}

    def stream(self, name: str, body: Variables) -> None:
        """Take rows, summary and the end of a run."""
        with self.lock:
            run = self.runs[name]
            for file, chunk in (body.get("files") or {}).items():
                lines = [json.loads(line) for line in chunk.get("content") or [] if line[:1] == "{"]
                if file == "wandb-history.jsonl":
                    run.rows |= {chunk.get("offset", 0) + n: row for n, row in enumerate(lines)}
                elif file == "wandb-summary.json":
                    run.summary = lines[-1]
            if body.get("complete"):
                run.exit_code = body.get("exitcode")
                run.state = "failed" if run.exit_code else "finished"

    def create_files(self, v: Variables) -> Any:
        base = f"{self.url}/storage/{v['run']}"
        files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    # -- sweeps ------------------------------------------------------------------------------------

    def upsert_sweep(self, v: Variables) -> Any:
        config = YAML(typ="safe").load(v["config"])
        name = secrets.token_hex(4)
        parameters = config["parameters"]
        values = [p.get("values", [p.get("value")]) for p in parameters.values()]
        grid = [dict(zip(parameters, point, strict=True)) for point in itertools.product(*values)]
        prior = v.get("priorRunsFilters")
        self.sweeps[name] = Sweep(name, v.get("projectName") or "", config, prior, grid)
        for condition in json.loads(prior or "{}").get("$or", []):
            if (run := self.runs.get(condition["name"])) is not None:
                run.sweep = name
        sweep = {"name": name, "project": _project(v.get("projectName") or "")}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def create_agent(self, v: Variables) -> Any:
        id = identity("Agent", secrets.token_hex(3))
        self.agents[id] = v["sweep"]
        return {"createAgent": {"agent": {"id": id}}}

    def sweep_with_runs(self, v: Variables) -> Any:
        sweep = self.sweeps[v["sweep"]]
        about = {"id": sweep.name, "name": sweep.name, "method": "grid", "state": "RUNNING"}
        about |= {"__typename": "Sweep"}
        empty = ("description", "heartbeatAt", "updatedAt", "bestLoss", "controller", "scheduler")
        return {
            "project": {
                "sweep": {
                    **about,
                    **dict.fromkeys(empty),
                    "config": json.dumps(sweep.config),
                    "createdAt": "2026-01-01T00:00:00",
                    "earlyStopJobRunning": False,
                    "runs": {"edges": []},
                }
            }
        }

    # -- saved views -------------------------------------------------------------------------------

    def upsert_view(self, v: Variables) -> Any:
        new = "id" not in v
        self.views[v["name"]] = {**v, "id": v.get("id") or identity("View", v["name"])}
        view = {"id": self.views[v["name"]]["id"], "name": v["name"]}
        return {"upsertView": {"view": view, "inserted": new}}

    def view(self, v: Variables) -> Any:
        found = [self.views[v["viewName"]]] if v["viewName"] in self.views else []
        nodes = [{"node": {k: w[k] for k in ("id", "displayName", "spec")}} for w in found]
        return {"project": {"allViews": {"edges": nodes}}}

    # -- agents ------------------------------------------------------------------------------------

    def heartbeat(self, v: Variables) -> Any:
        sweep = self.sweeps[self.agents[v["id"]]]
        command: dict[str, Any] = {"type": "exit"}
        if sweep.queue and not json.loads(v.get("runState") or "{}"):
            args = {name: {"value": value} for name, value in sweep.queue.pop(0).items()}
            program = sweep.config.get("program")
            command = {"type": "run", "run_id": secrets.token_hex(4), "logs": []}
            command |= {"program": program, "args": args}
        elif sweep.queue or json.loads(v.get("runState") or "{}"):
            return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": "[]"}}
        commands = json.dumps([command])
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": commands}}


def _project(name: str) -> Variables:
    entity = {"id": identity("Entity", ENTITY), "name": ENTITY}
    return {"id": identity("Project", name), "name": name, "entity": entity}


def _bucket(run: Run) -> Variables:
    return {
        "id": base64.b64encode(f"Run:v1:{run.name}:{run.project}:{ENTITY}".encode()).decode(),
        "name": run.name,
        "displayName": run.display_name or run.name,
        "description": "",
        "config": json.dumps(run.raw_config),
        "sweepName": run.sweep,
        "historyLineCount": len(run.rows),
        "project": _project(run.project),
    }
