from typing import Any

from dp4tl_ray.plan import make_plan
from dp4tl_ray.runners.board import Board
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
    assert b.status(keys) == (False, "", {"step": 3})
    b.finish(keys[0])
    assert b.status(keys) == (True, "", {})
