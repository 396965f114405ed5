from typing import Any

from dp4tl_ray.plan import make_plan
from dp4tl_ray.runners.board import Board, tasks_of
from tests.test_plan import study


def board(done: Any = (), **changes: Any) -> Board:
    return Board(make_plan(study(pruning_ratios=[0.0, 0.5], **changes)), done)


def stage(b: Board, key: str) -> str:
    return b.entries[key].step.stage


def test_steps_come_when_their_inputs_are_done() -> None:
    b, order = board(), []
    while (keys := b.take("lane")) is not None:
        assert keys, "one lane alone never waits"
        for used in b.entries[keys[0]].step.inputs.values():
            assert b.entries[used].state == "done"
        order.append(stage(b, keys[0]))
        b.finish(keys[0])
    assert b.finished and b.ran == len(b.entries)
    # the pretraining that needs no pruning is long, but the path through the surrogate is longer
    assert order.index("surrogate") < order.index("pretrain")


def test_a_wide_step_goes_alone_and_narrow_ones_together() -> None:
    b = board(targets=["held_out_letters", "handwritten_digits"])
    first = b.take("lane", workers=3)
    assert first is not None and sorted(stage(b, k) for k in first) == ["data"] * 3
    for key in first:
        b.finish(key)
    second = b.take("lane", workers=3)
    assert second is not None and [stage(b, k) for k in second] == ["surrogate"]


def test_a_failure_takes_along_what_needs_it_and_nothing_else() -> None:
    b = board()
    while keys := b.take("lane"):
        if stage(b, keys[0]) == "surrogate":
            b.fail(keys[0], "surrogate x: broke")
        else:
            b.finish(keys[0])
    failed = sorted(stage(b, k) for k in b.errors())
    assert failed == ["embed", "finetune", "pretrain", "prune", "score", "surrogate"]
    assert set(b.errors().values()) == {"surrogate x: broke"}
    assert sum(e.state == "done" for e in b.entries.values()) == 4  # data, data, pretrain, finetune


def test_a_step_that_kills_its_lane_twice_is_given_up_and_the_rest_goes_on() -> None:
    b = board()
    keys = b.take("lane")
    assert keys is not None
    assert b.take("lane") == keys  # the lane died and asks again
    b.blame(keys[0], "out of memory")
    other = b.take("lane")
    assert other != keys
    assert "out of memory" in b.errors()[keys[0]]


def test_after_a_crash_the_steps_that_ran_together_are_tried_alone() -> None:
    b = board(targets=["held_out_letters", "handwritten_digits"])
    together = b.take("lane", workers=3)
    assert together is not None and len(together) == 3
    left = set(together)
    while left:
        keys = b.take("lane", workers=3)  # the first time because the lane died
        assert keys is not None
        assert len(keys) == 1 or not left & set(keys)
        left -= set(keys)
        for key in keys:
            b.finish(key)
    assert not b.errors()


def test_done_steps_are_not_handed_out() -> None:
    everything = list(board().entries)
    b = board(done=everything)
    assert b.finished and b.take("lane") is None and b.ran == 0


def test_a_step_that_another_driver_computes_comes_back_later() -> None:
    b = board()
    keys = b.take("lane")
    assert keys is not None
    b.postpone(keys[0])
    assert b.entries[keys[0]].state == "ready" and b.entries[keys[0]].attempts == 0
    again = b.take("lane")
    assert again is not None and keys[0] not in again


def test_closing_gives_up_what_is_left() -> None:
    b = board()
    b.take("lane")
    b.close("every lane has ended")
    assert b.finished and all("every lane has ended" in e for e in b.errors().values())
    assert b.take("other") is None


def test_a_status_tells_of_progress_and_end() -> None:
    b = board()
    keys = b.take("lane")
    assert keys is not None
    b.progress(keys[0], {"step": 3})
    assert b.status("everything", keys) == (False, "", {"step": 3})
    b.finish(keys[0])
    assert b.status("everything", keys) == (True, "", {})


def run_until(b: Board, wanted: str, lane: str = "lane", **crew: Any) -> str:
    """Finish steps until one of a stage is given out; returns its digest."""
    while keys := b.take(lane, **crew):
        if stage(b, keys[0]) == wanted:
            return keys[0]
        for key in keys:
            b.finish(key)
    raise AssertionError(f"no {wanted} was given out")


def test_a_cell_hears_of_the_pretraining_that_it_waits_for() -> None:
    plan = make_plan(study(pruning_ratios=[0.0]))
    b = Board(plan, (), tasks_of(plan))
    key = run_until(b, "pretrain")
    b.progress(key, {"step": 5, "steps": 10})
    heard = [b.status(name, keys)[2] for name, keys in tasks_of(plan).items()]
    waiting = [name for name, keys in tasks_of(plan).items() if key in plan.closure(keys[0])]
    assert heard.count({"step": 5, "steps": 10}) == len(waiting) > 0


def test_only_what_somebody_waits_for_is_given_out() -> None:
    plan = make_plan(study(pruning_ratios=[0.0, 0.5]))
    (first, keys), *_ = tasks_of(plan).items()
    b = Board(plan, (), {first: keys})
    while given := b.take("lane"):
        for key in given:
            b.finish(key)
    done = {key for key, entry in b.entries.items() if entry.state == "done"}
    assert done == plan.closure(keys[0]) and b.finished
    b.want("again", list(plan.steps))
    assert not b.finished and b.take("lane")


def test_a_step_is_halted_when_the_last_cell_lets_go_of_it() -> None:
    plan = make_plan(study(pruning_ratios=[0.0], targets=["held_out_letters", "held_out_textures"]))
    tasks = tasks_of(plan)
    b = Board(plan, (), tasks)
    key = run_until(b, "pretrain")
    waiting = [name for name, keys in tasks.items() if key in plan.closure(keys[0])]
    assert len(waiting) == 2  # two targets share the pretraining
    b.unwant(waiting[0])
    assert b.progress(key, {"step": 1})
    b.unwant(waiting[1])
    assert not b.progress(key, {"step": 2})
    b.put_back(key)
    while given := b.take("lane"):
        assert key not in given
        for other in given:
            b.finish(other)
    assert b.finished and not b.errors()


def test_a_node_that_goes_away_is_not_the_fault_of_its_steps() -> None:
    b = Board(make_plan(study(pruning_ratios=[0.0])), (), max_attempts=1, max_preemptions=3)
    key = run_until(b, "pretrain", nodes=["a", "b"], workers=2)
    for round in range(3):
        b.release_lost(["b"])
        assert b.entries[key].state == "ready" and not b.entries[key].suspect, round
        assert b.take(f"other{round}", workers=2, nodes=["a", "b"]) == [key]
    b.release_lost(["b"])
    assert "its node went away 4 times" in b.errors()[key]


def test_a_lane_that_comes_back_with_fewer_workers_goes_on_without_blame() -> None:
    b = Board(make_plan(study(pruning_ratios=[0.0])), (), max_attempts=1)
    key = run_until(b, "pretrain", workers=4)
    assert b.take("lane", workers=3) == [key]
    assert b.entries[key].attempts == 1 and not b.errors()


def test_what_another_lane_took_over_is_not_released_by_the_first() -> None:
    b = board()
    keys = b.take("first")
    assert keys is not None
    b.release("first")
    assert b.take("second") == keys
    b.release("first")
    assert b.entries[keys[0]].state == "running"


def test_a_single_lane_takes_no_step_that_workers_share() -> None:
    b = board()
    while keys := b.take("single", single=True):
        assert not b.entries[keys[0]].wide
        b.finish(keys[0])
    assert keys == []  # it waits for what the wide step will need
    assert [stage(b, k) for k in b.take("lane", workers=2) or []] == ["surrogate"]


def test_an_idle_lane_ends_when_fewer_steps_are_left_than_lanes() -> None:
    b = board(done=[])
    last = next(key for key, users in b.plan.users.items() if not users)
    for key in b.plan.steps:
        if key != last:
            b.finish(key)
    assert b.take("first") == [last]
    assert b.take("second") is None
    b.expecting = True
    assert b.take("third") == []
