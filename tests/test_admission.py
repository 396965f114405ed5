import pytest

from dp4tl_ray.runners.admission import InfeasibleError, lanes_that_fit
from dp4tl_ray.specs.study import Runtime

NODE = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}


def lanes(nodes: list[dict[str, float]], **runtime: object) -> int:
    return lanes_that_fit(Runtime.model_validate(runtime), nodes)[0]


def test_as_many_lanes_as_the_cluster_holds() -> None:
    assert lanes([NODE], device="cpu") == 8
    assert lanes([NODE, NODE]) == 4
    assert lanes([NODE], device="cpu", pretrain_workers=3) == 2
    assert lanes([NODE], lanes=1) == 1
    assert lanes_that_fit(Runtime(), [NODE])[1] == {"CPU": 1.0, "GPU": 1.0}


def test_a_worker_does_not_span_nodes() -> None:
    small = {"CPU": 4.0}
    assert lanes([small, small], threads_per_worker=3) == 2
    with pytest.raises(InfeasibleError, match=r"1 workers of 5 CPU each; .*4 CPU; 4 CPU.* holds 0"):
        lanes([small, small], threads_per_worker=5)


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(InfeasibleError, match=r"2 lane\(s\) x 4 worker\(s\) = 8 workers .*holds 4"):
        lanes([NODE], lanes=2, pretrain_workers=4, threads_per_worker=2, device="cpu")
    with pytest.raises(InfeasibleError, match="holds 0"):
        lanes([{"CPU": 8.0}], device="cuda")


def test_lanes_by_number_may_wait_for_nodes_of_a_growing_cluster() -> None:
    runtime = Runtime(lanes=4, device="cuda")
    assert lanes_that_fit(runtime, [{"CPU": 8.0}], may_grow=True) == (4, {"CPU": 1.0, "GPU": 1.0})
    with pytest.raises(InfeasibleError):  # how many would it be?
        lanes_that_fit(Runtime(device="cuda"), [{"CPU": 8.0}], may_grow=True)
