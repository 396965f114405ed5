"""What preflight says of nodes that differ, that do not share the store, or have no room."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ray.runners.preflight import (
    MIN_FREE,
    Facts,
    check_nodes,
    judge,
    leave_mark,
    look_around,
    remove_mark,
    sees_mark,
)

GOOD = Facts(
    name="node 10.0.0.2 (head)",
    versions={"Python": "3.12", "ray": "2.60.0"},
    free={"/shared": MIN_FREE, "/tmp": MIN_FREE},
    gpus=2,
    gpus_of_torch=2,
    mark="mark",
)


def problems(**changes: Any) -> list[str]:
    """Judge a good node and one that is not."""
    other = dataclasses.replace(GOOD, **{"name": "node 10.0.0.3 (worker)", **changes})
    return judge(GOOD, [GOOD, other], {"mark"})


def test_nodes_that_agree_are_let_through() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"versions": {**GOOD.versions, "ray": "2.61.0"}}, "has ray 2.61.0, the driver 2.60.0"),
        ({"sees": False, "mark": ""}, "another folder under the store's path"),
        ({"mark": "one that the driver does not see"}, "another folder under the store's path"),
        ({"error": "Permission denied", "mark": ""}, "cannot use the store: Permission denied"),
        ({"free": {"/tmp": 5 << 20}}, "/tmp has 5 MiB free; at least 1024 are needed"),
        ({"gpus_of_torch": 1}, "Ray counts 2 GPU(s), torch sees 1"),
    ],
)
def test_a_problem_is_one_sentence_that_names_the_node(changes: dict[str, Any], words: str) -> None:
    (said,) = problems(**changes)
    assert said.startswith("node 10.0.0.3 (worker): ") and words in said


def test_a_machine_sees_the_marks_of_its_own_store_and_of_no_other(tmp_path: Path) -> None:
    mine, other = f"file://{tmp_path}", str(tmp_path / "other")
    mark = leave_mark(mine)
    facts = look_around(mine, 0, mark, "here")
    assert facts.sees and sees_mark(mine, facts.mark)
    assert judge(facts, [facts], {facts.mark}) == []
    assert not look_around(other, 0, mark, "there").sees
    assert not Path(other).exists()  # what is missing is not made up for
    for name in (mark, facts.mark):
        remove_mark(mine, name)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    facts = look_around(str(blocked), 0, "mark", "there")
    assert "Not a directory" in facts.error and facts.mark == ""


@pytest.mark.ray
def test_ray_without_a_dashboard_is_refused_even_where_another_one_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr("dp4tl_ray.runners.preflight.STATE_API_SECONDS", 0.1)
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=40
    )
    try:
        (said,) = check_nodes(str(tmp_path), gpus=False)
    finally:
        ray.shutdown()
    assert "install ray[default] on the head and leave the dashboard on" in said
