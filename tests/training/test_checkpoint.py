import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.worker import Worker


def save(checkpoint: Checkpoint, step: int) -> None:
    tensors = {"a": torch.full((2,), float(step)), "b": torch.tensor(step)}
    checkpoint.save(Worker(), tensors, {"step": step}, sharded=False)


def steps(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_last_state_alone_is_kept_and_published_facts_last(tmp_path: Path) -> None:
    published: list[Path] = []
    checkpoint = Checkpoint(tmp_path, published.append)
    assert checkpoint.newest() is None
    for step in (9, 10):
        save(checkpoint, step)
    assert steps(tmp_path) == {"step-10"}
    assert published == [
        tmp_path / f"step-{step}" / name
        for step in (9, 10)
        for name in ("state.safetensors", "facts.json")
    ]
    saved = checkpoint.newest()
    assert saved is not None and saved.facts["step"] == 10
    assert torch.equal(saved.read("a"), torch.tensor([10.0, 10.0]))
    assert saved.read("b").shape == saved.size("b") == () and saved.names("b") == ["b"]


def no_facts(folder: Path) -> None:
    (folder / "facts.json").unlink()


def broken_facts(folder: Path) -> None:
    (folder / "facts.json").write_text('{"step": ')


def no_file_list(folder: Path) -> None:
    (folder / "facts.json").write_text('{"step": 10}')


def missing_tensors(folder: Path) -> None:
    (folder / "state.safetensors").unlink()


def cut_tensors(folder: Path) -> None:
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage", [no_facts, broken_facts, no_file_list, missing_tensors, cut_tensors]
)
def test_the_newest_whole_state_is_found(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    checkpoint = Checkpoint(tmp_path)
    save(checkpoint, 10)
    (tmp_path / "step-10").rename(tmp_path / "later")
    save(checkpoint, 9)
    (tmp_path / "later").rename(tmp_path / "step-10")
    damage(tmp_path / "step-10")
    saved = checkpoint.newest()
    assert saved is not None and saved.facts["step"] == 9
    save(checkpoint, 10)
    assert steps(tmp_path) == {"step-10"}
    found = checkpoint.newest()
    assert found is not None and found.facts["step"] == 10


def test_files_of_an_earlier_attempt_are_not_mixed_in(tmp_path: Path) -> None:
    save(Checkpoint(tmp_path), 3)
    stale = tmp_path / "step-3" / "shard-00002-model-00001-of-00001.safetensors"
    stale.write_bytes(b"stale")
    saved = Checkpoint(tmp_path).newest()
    assert saved is not None and not stale.exists()
    assert json.loads((saved.folder / "facts.json").read_text())["files"] == ["state.safetensors"]
