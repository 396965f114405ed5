"""The wall time of a sweep on Ray against what no scheduler could beat, and where the rest goes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from dp4tl_ray.plan import Plan, make_plan
from dp4tl_ray.runners.board import Entry
from tests.benchmarks.figure import Figure, figure
from tests.benchmarks.overhead import RAY_IS_UP, Ran, embedded_study, run_plan, timed

LANES = 2
SEEDS = 6
"""Of one minute of work each."""


def sweep_bound() -> Iterator[Figure]:
    """Run a study here, step after step, then on Ray in lanes of one worker.

    Its bound is the longest path through the plan, or the work shared by all lanes, whichever is
    more, with the seconds that the steps took here. `parts` of the wall time beyond the work follow
    in seconds against the bound; with work_per_lane they add up to the wall time.
    """
    study = embedded_study(
        ["methods=[label_mapping, random_classes]", "pruning_ratios=[0.0, 0.3, 0.5, 0.8]",
         "targets=[held_out_letters, held_out_textures]", f"seeds={list(range(SEEDS))}",
         f"runtime={{lanes: {LANES}}}"]
    )  # fmt: skip
    plan = make_plan(study)
    here = run_plan(plan, study.runtime, on_ray=False)
    with timed(RAY_IS_UP) as at:
        lanes = run_plan(plan, study.runtime, on_ray=True)
    seconds = {key: manifest.seconds for key, manifest in here.manifests.items()}
    work, longest = sum(seconds.values()), critical_path(plan, seconds)
    bound = max(longest, work / LANES)
    yield figure("sweep_wall_time", lanes.wall, bound, "s against the bound")
    yield figure("sweep_wall_time_here", here.wall, work, "s against the work")
    yield figure("critical_path", longest, bound, "s of the bound")
    yield figure("work_per_lane", work / LANES, bound, "s of the bound")
    for name, part in parts(lanes, work, at[RAY_IS_UP][0] - lanes.started).items():
        yield figure(f"sweep_{name}", part, bound, "s against the bound")
    steps = len(plan.steps)
    yield figure("overhead_per_step", overhead(lanes) / steps, overhead(here) / steps, "s vs here")


def critical_path(plan: Plan, seconds: Mapping[str, float]) -> float:
    """Return the longest time that steps take which must follow one another."""
    ends: dict[str, float] = {}
    for key, step in plan.steps.items():
        begins = max((ends[used] for used in step.inputs.values()), default=0.0)
        ends[key] = begins + seconds[key]
    return max(ends.values())


def overhead(ran: Ran) -> float:
    """Return the seconds from handing steps out to hearing of them, beyond what they say."""
    computing = sum(manifest.seconds for manifest in ran.manifests.values())
    return sum(entry.seconds for entry in ran.entries()) - computing


def parts(ran: Ran, work: float, ray_is_up: float) -> dict[str, float]:
    """Return name -> seconds of wall time, of idle or busy lanes divided by their number.

    Args:
        ran: On Ray.
        work: Seconds that the same steps took here.
        ray_is_up: Seconds from the start until Ray was.
    """
    computing = sum(manifest.seconds for manifest in ran.manifests.values())
    late, between, done = idle(ran)
    return {
        "start_of_ray": ray_is_up,
        "start_of_the_first_lane": ran.first_take - ray_is_up,
        "start_of_the_other_lanes": late / LANES,
        "slower_steps": (computing - work) / LANES,
        "overhead_of_steps": overhead(ran) / LANES,
        "idle_between_steps": between / LANES,
        "idle_at_the_end": done / LANES,
        "end": ran.wall - ran.last_finish,
    }


def idle(ran: Ran) -> tuple[float, float, float]:
    """Return the seconds for which lanes had no step: before their first, later, after the last."""
    first, last = ran.started + ran.first_take, ran.started + ran.last_finish
    by_lane = defaultdict[str, list[Entry]](list)
    for entry in ran.entries():
        by_lane[entry.lane].append(entry)
    # a lane that never had a step was idle all the time
    late, done, between = (LANES - len(by_lane)) * (last - first), 0.0, 0.0
    for entries in by_lane.values():
        begins, ends = entries[0].taken_at, entries[-1].taken_at + entries[-1].seconds
        late, done = late + begins - first, done + last - ends
        between += ends - begins - sum(entry.seconds for entry in entries)
    return late, between, done
