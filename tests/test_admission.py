import pytest

from dp4tl_ray.runners.admission import Formation, InfeasibleError, form_lanes
from dp4tl_ray.specs.study import Runtime

NODE = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}


def form(nodes: list[dict[str, float]], may_grow: bool = False, **runtime: object) -> Formation:
    return form_lanes(Runtime.model_validate(runtime), nodes, may_grow)


def lanes(nodes: list[dict[str, float]], **runtime: object) -> int:
    return form_lanes(Runtime.model_validate(runtime), nodes).lanes


def test_as_many_lanes_as_the_cluster_holds() -> None:
    assert lanes([NODE], device="cpu") == 8
    assert lanes([NODE, NODE]) == 4
    assert lanes([NODE], device="cpu", pretrain_workers=3) == 2
    assert lanes([NODE], lanes=1) == 1
    assert form([NODE]).worker == {"CPU": 1.0, "GPU": 1.0}


def test_what_makes_no_whole_lane_makes_single_ones() -> None:
    assert form([NODE], device="cpu", pretrain_workers=3).single_lanes == 2
    assert form([NODE], device="cpu").single_lanes == 0  # every lane has one worker
    assert form([NODE], device="cpu", pretrain_workers=3, lanes=1).single_lanes == 0  # asked for
    asked = form([NODE], device="cpu", pretrain_workers=3, lanes=2, single_lanes=1)
    assert (asked.lanes, asked.single_lanes) == (2, 1)
    with pytest.raises(InfeasibleError, match=r"2 lane\(s\) x 3 .* \+ 3 single lane\(s\) = 9 "):
        form([NODE], device="cpu", pretrain_workers=3, lanes=2, single_lanes=3)


def test_a_lane_that_may_shrink_needs_only_its_fewest_workers() -> None:
    assert form([{"CPU": 2.0}], pretrain_workers=4, min_workers=2).lanes == 1
    with pytest.raises(InfeasibleError, match="holds 1"):
        form([{"CPU": 1.0}], pretrain_workers=4, min_workers=2)


def test_a_worker_does_not_span_nodes() -> None:
    small = {"CPU": 4.0}
    assert lanes([small, small], threads_per_worker=3) == 2
    with pytest.raises(InfeasibleError, match=r"1 workers of 5 CPU each; .*4 CPU; 4 CPU.* holds 0"):
        lanes([small, small], threads_per_worker=5)


def test_a_worker_may_reserve_what_only_some_nodes_have() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 4.0, "fast": 2.0}]
    assert lanes(nodes, worker_resources={"fast": 1.0}) == 2


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(InfeasibleError, match=r"2 lane\(s\) x 4 worker\(s\) = 8 workers .*holds 4"):
        lanes([NODE], lanes=2, pretrain_workers=4, threads_per_worker=2, device="cpu")
    with pytest.raises(InfeasibleError, match="holds 0"):
        lanes([{"CPU": 8.0}], device="cuda")


def test_lanes_by_number_may_wait_for_nodes_of_a_growing_cluster() -> None:
    grown = form([{"CPU": 8.0}], may_grow=True, lanes=4, device="cuda")
    assert (grown.lanes, grown.worker) == (4, {"CPU": 1.0, "GPU": 1.0})
    with pytest.raises(InfeasibleError):  # how many would it be?
        form([{"CPU": 8.0}], may_grow=True, device="cuda")
