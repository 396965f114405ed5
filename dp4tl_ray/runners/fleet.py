"""The lanes of a study: started as the cluster has room for them, ended as work runs out."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from dp4tl_ray.runners.admission import InfeasibleError, form_lanes, workers_that_fit
from dp4tl_ray.runners.board import Summary
from dp4tl_ray.runners.desk import alive_nodes
from dp4tl_ray.runners.lane import Lane
from dp4tl_ray.specs.study import Runtime

IDLE_RESTARTS = 20
"""Restarts that Train grants a lane beyond those that its steps may cause."""
LANE_ERRORS = 3
"""Lanes that may end in an error before the study is given up."""
PATIENCE_SECONDS = 300.0
"""How long to wait for nodes of a cluster that does not grow when no lane has any."""

log = logging.getLogger("dp4tl")


class Fleet:
    """Starts lanes where live resources hold them whole, so that none waits inside Train.

    A lane whose node goes away gives back what it held; Train starts it again when there is room,
    with fewer workers where `min_workers` allows it.
    """

    def __init__(
        self, desk: Any, store: str, runtime: Runtime, folder: Path | str, num_steps: int
    ) -> None:
        self.desk, self.store, self.runtime, self.folder = desk, store, runtime, folder
        self.may_grow = "RAY_ADDRESS" in os.environ
        # every step may end its lane a few times before the board gives it up
        self.restarts = IDLE_RESTARTS + (runtime.max_failures + 1) * num_steps
        self.lanes: list[Lane] = []
        self.errors: list[str] = []
        self.started = 0
        self.last_work = time.monotonic()
        self.note = ""
        """What the lanes wait for, for the display."""
        nodes = list(alive_nodes().values())
        self.formation = form_lanes(runtime, nodes, self.may_grow)  # refuses before any work

    @property
    def cuda(self) -> bool:
        """Whether workers compute on GPUs."""
        return "GPU" in self.formation.worker and self.runtime.device != "cpu"

    def tick(self) -> Summary | None:
        """Look after the lanes once; returns the board's summary, null when all is over."""
        import ray

        ray.get(self.desk.release_lost.remote(), timeout=30)
        for lane in [lane for lane in self.lanes if not lane.alive]:
            ray.get(self.desk.note.remote("release", lane.name), timeout=30)
            self.lanes.remove(lane)
            if lane.error:
                self.errors.append(lane.error)
        summary: Summary = ray.get(self.desk.summary.remote(), timeout=30)
        if summary.over:
            return None if not self.lanes else summary
        if len(self.errors) >= LANE_ERRORS:
            self._give_up("; ".join(self.errors))
        else:
            self._start_lanes(summary)
        return summary

    def _start_lanes(self, summary: Summary) -> None:
        import ray

        nodes, self.note = list(alive_nodes().values()), ""
        try:
            self.formation = form_lanes(self.runtime, nodes, self.may_grow)
        except InfeasibleError as error:
            self._wait_for_nodes(summary, str(error))
            return
        if summary.running:
            self.last_work = time.monotonic()
        asked = ray.get(self.desk.asked.remote(), timeout=30)
        free = ray.available_resources()
        for lane in self.lanes:
            if lane.name not in asked:  # its reservation may not show yet
                free = _less(free, self.formation.worker, lane.workers)
        for single, target, work in (
            (False, self.formation.lanes, summary.open_wide + summary.open_narrow),
            (True, self.formation.single_lanes, summary.open_narrow),
        ):
            width = 1 if single else self.runtime.pretrain_workers
            fewest = min(width, self.runtime.min_workers or width)
            missing = min(target, work) - sum(lane.single == single for lane in self.lanes)
            for _ in range(missing):
                if workers_that_fit(self.formation.worker, [free]) < fewest:
                    self.note = f"{len(self.lanes)} of {target} lanes, the others wait for room"
                    break
                free = _less(free, self.formation.worker, width)
                self._start(single)

    def _start(self, single: bool) -> None:
        name = f"lane{self.started}" + ("-single" if single else "")
        self.started += 1
        self.lanes.append(
            Lane(
                name,
                self.desk,
                self.store,
                self.runtime,
                single,
                self.formation.worker,
                self.folder,
                self.restarts,
            )
        )

    def _wait_for_nodes(self, summary: Summary, why: str) -> None:
        """Wait a while for nodes that went away; nobody can wait for ever."""
        self.note = "waiting for nodes to come back"
        if summary.running:
            self.last_work = time.monotonic()
        elif time.monotonic() - self.last_work > PATIENCE_SECONDS:
            self._give_up(f"no node came back in {PATIENCE_SECONDS:g} s: {why}")

    def _give_up(self, why: str) -> None:
        import ray

        ray.get(self.desk.note.remote("close", why), timeout=30)

    def ask_for_nodes(self) -> None:
        """Tell an autoscaler, if there is one, what the lanes will need, until they `end`."""
        from ray.autoscaler.sdk import request_resources

        if self.may_grow:
            lanes, single = self.formation.lanes, self.formation.single_lanes
            workers = lanes * self.runtime.pretrain_workers + single
            request_resources(bundles=[dict(self.formation.worker)] * workers)

    def end(self, seconds: float) -> None:
        """End every lane, and leave no process and no placement group of theirs behind.

        A thread that is inside Ray while it shuts down takes the whole process with it, message
        and exit code included; so the runs of an interrupted study are ended here. Train runs its
        controllers on the driver's machine.
        """
        import ray
        from ray.util.state import list_actors

        deadline = time.monotonic() + seconds
        while any(lane.alive for lane in self.lanes) and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            context = ray.get_runtime_context()
            job, address = context.get_job_id(), context.gcs_address
            mine = [("class_name", "=", "TrainController"), ("job_id", "=", job)]
            filters = [*mine, ("state", "=", "ALIVE")]
            for actor in list_actors(
                address=address, filters=filters, detail=True, raise_on_missing_output=False
            ):
                os.kill(actor.pid, signal.SIGKILL)
            for lane in self.lanes:
                lane.thread.join(timeout=10)
            remove_groups_of(job, address)
            self._cancel_reservations()
            if self.may_grow:
                from ray.autoscaler.sdk import request_resources

                request_resources(bundles=[])
        except Exception as error:  # Ray may be what has failed
            log.debug("lanes were not ended cleanly: %s", error)

    def _cancel_reservations(self) -> None:
        """Give back what elastic runs that were shot reserved; Ray would keep it for minutes."""
        if self.runtime.min_workers is None:
            return
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        coordinator = get_or_create_autoscaling_coordinator()
        for lane in self.lanes:
            coordinator.cancel_request.remote(lane.requester)


def remove_groups_of(job: str, address: str) -> int:
    """Remove the placement groups that a job has left on a cluster; returns how many there were.

    A Train run that is stopped while it waits for its workers leaves its group pending, and the
    group takes the resources as soon as they are there.
    """
    from ray._raylet import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup
    from ray.util.state import list_placement_groups

    groups = [
        group
        for group in list_placement_groups(
            address=address, detail=True, raise_on_missing_output=False
        )
        if group.creator_job_id == job and group.state != "REMOVED"
    ]
    for group in groups:
        remove_placement_group(
            PlacementGroup(PlacementGroupID(bytes.fromhex(group.placement_group_id)))
        )
    return len(groups)


def _less(free: dict[str, float], worker: Any, times: int) -> dict[str, float]:
    return {kind: amount - times * worker.get(kind, 0.0) for kind, amount in free.items()}
