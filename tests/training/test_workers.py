"""Several workers on one machine: four processes go through all scenarios together."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.stages import embed
from dp4tl_ray.stages.bench import Job, StageError
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.fit import Halted, fit
from dp4tl_ray.training.inference import infer
from dp4tl_ray.training.recorder import DynamicsRecorder
from dp4tl_ray.training.worker import Worker
from tests.training import test_adversarial, test_objectives
from tests.training.test_fit import equal, examples, network, recipe, weights
from tests.training.test_objectives import OBJECTIVES

UNEVEN = recipe(batch_size=20, budget={"examples_seen": 400})
"""20 steps of 5 groups, over 6 epochs and a part of a seventh."""
BF16 = recipe(batch_size=20, budget={"examples_seen": 100}, precision="bf16")
ADAMW = recipe(batch_size=20, ema=0.2, optimizer={"name": "adamw", "lr": 0.01})
CASES = {
    **{f"ddp {n}": Worker(0, n) for n in (1, 2, 3, 4)},
    **{f"ddp {n} accumulating": Worker(0, n, microbatch=4) for n in (1, 2, 3, 4)},
    **{f"fsdp2 {n}": Worker(0, n, sharding="fsdp2") for n in (1, 2, 3)},
    **{f"fsdp2 {n} accumulating": Worker(0, n, sharding="fsdp2", microbatch=4) for n in (2, 3)},
}
ROWS = np.arange(1300) % 60

Result = dict[str, Any]


@contextlib.contextmanager
def noted_gradients() -> Iterator[list[Tensor]]:
    """Give the gradient of every optimizer step, whole."""
    gradients: list[Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parts = [whole(p.grad).flatten() for g in optimizer.param_groups for p in g["params"]]
        gradients.append(torch.cat(parts).clone())

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield gradients
    finally:
        handle.remove()


def trajectory(worker: Worker) -> Result:
    """Train for 20 steps; return the gradient of each, the network, the histories."""
    model, recorder = network(), DynamicsRecorder(60, 3, worker, divergences=True)
    with noted_gradients() as gradients:
        summary = fit(model, examples(), UNEVEN, 0, worker, recorder=recorder)
    history = {name: torch.from_numpy(h) for name, h in vars(recorder.dynamics()).items()}
    return {
        "gradients": gradients,
        "weights": weights(model),
        "loss": summary.train_loss,
        "history": history,
    }


def two_views(worker: Worker, out: Path) -> Result:
    """Train with every self-supervised objective for 6 steps, or some where that is slow."""
    results: Result = {}
    for name in OBJECTIVES if worker.sharding == "ddp" else ("moco_v2 symmetric", "moco_v3"):
        spec = test_objectives.recipe(
            name, batch_size=20, budget={"examples_seen": 120}, optimizer={"lr": 0.001}
        )
        model = test_objectives.network()
        with noted_gradients() as gradients:
            fit(model, test_objectives.examples(), spec, 0, worker)
        results[name] = {"gradients": gradients, "weights": weights(model)}
    return results


def attacked(worker: Worker, out: Path) -> Result:
    """Train under some attacks for 6 steps."""
    results: Result = {}
    for name in ("pgd", "pgd eval", "pgd awp", "free"):
        spec = test_adversarial.adversarial(name, batch_size=20, budget={"examples_seen": 120})
        model = network()
        with noted_gradients() as gradients:
            summary = fit(model, examples(), spec, 0, worker)
        results[name] = {"gradients": gradients, "weights": weights(model), "facts": summary.facts}
    return results


def whole(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def trained(spec: Recipe, worker: Worker, folder: Path | None = None) -> dict[str, Tensor]:
    model = network()
    fit(model, examples(), spec, 0, worker, Checkpoint(folder) if folder else None)
    return weights(model)


def shares_at_once(worker: Worker, out: Path) -> Result:
    """What two workers compute, to be repeated by one."""
    return {name: trained(spec, w) for name, spec, w in two_shares(worker)}


def two_shares(worker: Worker) -> Iterator[tuple[str, Recipe, Worker]]:
    yield "even", recipe(ema=0.2), worker
    yield "uneven", UNEVEN, worker
    yield "accumulating", UNEVEN, replace(worker, microbatch=4)


def shares_in_turn(worker: Worker, out: Path) -> Result:
    return shares_at_once(replace(worker, shards=2), out)


def halt(spec: Recipe, worker: Worker, folder: Path) -> Result:
    """Train until the second epoch ends, where rank 0 is told not to go on."""
    published: list[str] = []
    told = replace(worker, report=lambda progress: progress["epoch"] != 2)
    checkpoint = Checkpoint(folder, lambda path: published.append(path.name))
    try:
        fit(network(), examples(), spec, 0, told, checkpoint)
    except Halted:
        return {"halted": True, "published": published}
    return {"halted": False, "published": published}


def resumed(worker: Worker, out: Path) -> Result:
    """Halt two sharded and two unsharded workers; let two sharded ones continue."""
    sharded = replace(worker, sharding="fsdp2")
    halted = halt(ADAMW, sharded, out / "fsdp2 2")
    halt(ADAMW, worker, out / "ddp 2")
    dist.barrier()
    if worker.rank == 0:
        shutil.copytree(out / "fsdp2 2", out / "copy")
    dist.barrier()
    straight, again = trained(ADAMW, sharded), trained(ADAMW, sharded, out / "copy")
    return {**halted, "straight": straight, "again": again}


def resumed_by_others(worker: Worker, out: Path) -> Result:
    """Continue what other workers have begun."""
    sharded = replace(worker, sharding="fsdp2")
    results = {}
    for begun, going_on in (("fsdp2 2", sharded), ("fsdp2 2", worker), ("ddp 2", sharded)):
        folder = out / f"{begun} by {going_on.sharding} {worker.world_size}"
        if worker.rank == 0:
            shutil.copytree(out / begun, folder)
        worker.barrier()
        results[folder.name] = trained(ADAMW, going_on, folder)
    return results


def mixed_precision(worker: Worker, out: Path) -> Result:
    return {"weights": trained(BF16, replace(worker, sharding="fsdp2", microbatch=4))}


def embedded(worker: Worker, out: Path) -> Result:
    logits, features = infer(network(), examples().images, ROWS, worker)
    return {"logits": torch.from_numpy(logits), "features": torch.from_numpy(features)}


def not_finite(worker: Worker, out: Path) -> Result:
    """Embed with a network whose output is not finite; return what each worker raises."""
    model = network()
    assert model.head is not None
    model.head.bias.data.fill_(torch.nan)
    data = examples()
    arrays = {"labels": data.labels, "splits": np.zeros(60, np.int64)}
    source = SimpleNamespace(array=arrays.__getitem__, json=lambda name: [f"id{i}" for i in ROWS])
    vars(embed)["images_of"] = lambda artifact: data.images
    vars(embed)["load_network"] = lambda artifact, image_size: model
    bench = SimpleNamespace(growing=growing)
    spec = SimpleNamespace(shots=None)
    inputs: Any = {"data": source, "surrogate": None}
    try:
        embed.run_embed(spec, Job(inputs, bench, worker))  # type: ignore[arg-type]
    except StageError as error:
        return {"error": str(error)}
    return {"error": ""}


@contextlib.contextmanager
def growing(name: str, shape: tuple[int, int], dtype: type) -> Iterator[Any]:
    yield np.empty(shape, dtype)


Scenario = tuple[int, Callable[[Worker, Path], Result]]


def scenarios() -> dict[str, Scenario]:
    """Return what to run, by name: the number of workers, and what each of them does."""

    def case(template: Worker) -> Scenario:
        return template.world_size, lambda worker, _: trajectory(
            replace(template, rank=worker.rank)
        )

    return {
        **{name: case(worker) for name, worker in CASES.items()},
        "shares at once": (2, shares_at_once),
        "shares in turn": (1, shares_in_turn),
        "mixed precision": (2, mixed_precision),
        "resumed": (2, resumed),
        "resumed by one": (1, resumed_by_others),
        "resumed by three": (3, resumed_by_others),
        "embedded by one": (1, embedded),
        "embedded by two": (2, embedded),
        "not finite": (2, not_finite),
        "two views by one": (1, two_views),
        "two views by two": (2, two_views),
        "two views by three": (3, two_views),
        "two views by two, sharded": (
            2,
            lambda worker, out: two_views(replace(worker, sharding="fsdp2"), out),
        ),
        "attacked by one": (1, attacked),
        "attacked by two": (2, attacked),
        "attacked by three": (3, attacked),
        "two views in turn": (1, lambda worker, out: two_views(replace(worker, shards=2), out)),
    }


def one_of_four(rank: int, out: str) -> None:
    torch.set_num_threads(1)
    for name, (size, run) in scenarios().items():
        if rank < size:
            place = f"file://{out}/{name.replace(' ', '-')}"
            dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size)
            torch.save(run(Worker(rank, size), Path(out)), f"{out}/{name}.{rank}.pt")
            dist.destroy_process_group()


Load = Callable[[str, int], Result]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Load:
    out = tmp_path_factory.mktemp("workers")
    start_processes(one_of_four, (str(out),), nprocs=4, start_method="spawn")  # type: ignore[no-untyped-call]
    return lambda name, rank: torch.load(out / f"{name}.{rank}.pt")


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the norm of the difference of the floats, relative to b's."""
    assert a.keys() == b.keys()
    x, y = (torch.cat([d[n].flatten() for n in b if b[n].is_floating_point()]) for d in (a, b))
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("name", [name for name in CASES if name != "ddp 1"])
def test_any_workers_take_the_same_steps_as_one(name: str, result: Load) -> None:
    one = result("ddp 1", 0)
    for rank in range(CASES[name].world_size):
        several = result(name, rank)
        assert len(one["gradients"]) == len(several["gradients"]) == 20
        for step, (a, b) in enumerate(zip(several["gradients"], one["gradients"], strict=True)):
            # batch norm over groups of 4 makes more of a difference at every step
            bound = 1e-5 if step < 10 else 1e-4
            assert float((a - b).norm() / b.norm()) < bound, f"step {step}"
        for key, tensor in one["weights"].items():
            torch.testing.assert_close(several["weights"][key], tensor, rtol=1e-5, atol=1e-6)
        assert several["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert one["history"]["margin_EN"].shape == (6, 60)
        for key, history in one["history"].items():
            torch.testing.assert_close(several["history"][key], history, rtol=0, atol=5e-3)


@pytest.mark.parametrize("by", ["by two", "by three", "by two, sharded"])
def test_workers_compare_the_views_of_the_whole_batch(by: str, result: Load) -> None:
    one, several = result("two views by one", 0), result(f"two views {by}", 0)
    assert len(several) == (2 if "sharded" in by else len(OBJECTIVES))
    for name, found in several.items():
        assert len(found["gradients"]) == 6
        pairs = zip(found["gradients"], one[name]["gradients"], strict=True)
        off = [float((a - b).norm() / b.norm()) for a, b in pairs]
        # batch norm over groups of 4 makes more of a difference at every step
        assert off[0] < 1e-4, name
        assert max(off[:4]) < 0.01, name
        assert max(off) < 0.05, name
        assert difference(found["weights"], one[name]["weights"]) < 1e-3
        assert equal(found["weights"], result(f"two views {by}", 1)[name]["weights"])


@pytest.mark.parametrize("by", ["by two", "by three"])
def test_workers_attack_the_images_that_one_would(by: str, result: Load) -> None:
    one, several = result("attacked by one", 0), result(f"attacked {by}", 0)
    assert len(several) == 4
    for name, found in several.items():
        assert len(found["gradients"]) == 6
        pairs = zip(found["gradients"], one[name]["gradients"], strict=True)
        off = [float((a - b).norm() / b.norm()) for a, b in pairs]
        # rounding decides the sign of few pixels, and more at every step
        assert off[0] < 1e-4 and max(off) < 0.05, (name, off)
        assert found["facts"]["largest_perturbation"] == pytest.approx(
            one[name]["facts"]["largest_perturbation"], rel=1e-4
        )
        assert equal(found["weights"], result(f"attacked {by}", 1)[name]["weights"])


def test_one_worker_repeats_bit_for_bit_the_views_of_two(result: Load) -> None:
    two, one = result("two views by two", 0), result("two views in turn", 0)
    for name in OBJECTIVES:
        pairs = zip(two[name]["gradients"], one[name]["gradients"], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name


def test_one_worker_repeats_bit_for_bit_what_two_compute(result: Load) -> None:
    two, one = result("shares at once", 0), result("shares in turn", 0)
    assert len(two) == 3
    for case in two:
        for name, tensor in two[case].items():
            if "running" in name:
                torch.testing.assert_close(one[case][name], tensor, rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(one[case][name], tensor), (case, name)


def test_sharded_workers_train_in_mixed_precision(result: Load) -> None:
    sharded, alone = result("mixed precision", 0)["weights"], trained(BF16, Worker())
    assert 0 < difference(sharded, alone) < 0.02


def test_all_workers_halt_together_after_the_state_was_saved(result: Load) -> None:
    for rank in (0, 1):
        halted = result("resumed", rank)
        shard = f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
        assert halted["halted"]
        assert halted["published"] == [shard, *["facts.json"] * (rank == 0)] * 2


def test_sharded_workers_resume_bit_for_bit(result: Load) -> None:
    for rank in (0, 1):
        assert equal(result("resumed", rank)["again"], result("resumed", rank)["straight"])
    assert difference(result("resumed", 0)["straight"], trained(ADAMW, Worker())) < 1e-4


@pytest.mark.parametrize("name", ["resumed by one", "resumed by three"])
def test_others_continue_what_some_workers_began(name: str, result: Load) -> None:
    straight, others = result("resumed", 0)["straight"], result(name, 0)
    assert len(others) == 3
    for found in others.values():
        assert difference(found, straight) < 1e-4


def test_workers_embed_together_what_one_embeds_alone(result: Load) -> None:
    one, two = result("embedded by one", 0), result("embedded by two", 0)
    assert one["logits"].shape == (1300, 3)
    assert equal(one, two)
    assert [len(table) for table in result("embedded by two", 1).values()] == [0, 0]


def test_an_output_that_is_not_finite_is_named_on_every_worker(result: Load) -> None:
    for rank in (0, 1):
        assert "example 'id0' is not finite" in result("not finite", rank)["error"]
