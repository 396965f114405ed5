"""What a training reads of raw and of compressed pictures, by any number of workers."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dp4tl_ray.data.images import Images
from dp4tl_ray.data.pack import Packing, joined, pack_shard
from dp4tl_ray.data.packed import JPEGImages, RawImages, Shards, cut
from dp4tl_ray.data.pictures import Pictures
from dp4tl_ray.specs.data import JPEG, Raw
from dp4tl_ray.specs.self_supervised import SimCLR
from dp4tl_ray.training.augment import draw_changes
from dp4tl_ray.training.examples import Examples, batches
from dp4tl_ray.training.fit import fit
from dp4tl_ray.training.objectives.supervised import SupervisedObjective
from dp4tl_ray.training.objectives.two_views import TwoViewObjective
from dp4tl_ray.training.parallel import Parallel
from dp4tl_ray.training.worker import Worker, seed_for
from tests.training.test_fit import KilledError, equal, network, recipe, weights

N, SIDE = 48, 16


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder: Path = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    arrays = []
    for n in range(N):
        height, width = rng.integers(SIDE, 3 * SIDE, 2)
        stripes = (np.arange(width) // (2 + n % 3) % 2 * 200).astype(np.uint8)
        arrays.append(np.tile(stripes, (height, 1)))
    pictures = Pictures(
        [f"{n}" for n in range(N)], np.arange(N) % 3, np.zeros(N, np.int8), ("a", "b", "c"),
        arrays.__getitem__,
    )  # fmt: skip
    stored = Raw() if request.param == "raw" else JPEG(short_side=24)
    packing = Packing(SIDE, 1, stored, skips=False)
    index = joined([pack_shard(pictures, packing, 0, folder, folder / "notes", threads=1)])
    shards = Shards([packing.shard_name(0)], folder.joinpath, index.addresses)
    return (RawImages if request.param == "raw" else JPEGImages)(shards, SIDE, 1)


def examples(images: Images, rows: Any = range(N)) -> Examples:
    chosen = np.array(rows, np.int64)
    return Examples(images, chosen, chosen % 3)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_every_example_is_read_once_per_epoch_by_one_worker(
    images: Images, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = np.arange(0, N, 2)  # a pruned subset: 24 of 48
    spec = recipe(batch_size=8, batch_norm={"group_size": 1})
    read: list[list[int]] = [[] for _ in range(workers)]
    for rank in range(workers):
        worker = Worker(rank, workers)
        objective = SupervisedObjective(network(), examples(images, kept), spec, 0, worker, 6, None)
        for step, positions in enumerate(islice(batches(len(kept), 8, 0, start=0), 6)):
            batch = objective.gather(step, np.array(positions))
            rows = kept[batch.positions]
            assert torch.equal(batch.labels, torch.from_numpy(rows % 3))
            read[rank] += rows.tolist()
    for epoch in range(2):
        share = [rows[len(rows) // 2 * epoch : len(rows) // 2 * (epoch + 1)] for rows in read]
        assert sorted(chain.from_iterable(share)) == kept.tolist()


def test_workers_together_read_what_one_does(images: Images) -> None:
    spec, positions = recipe(batch_size=8), np.arange(40, 48)
    torch.set_num_threads(2)

    def shown(rank: int, size: int) -> list[torch.Tensor]:
        worker = Worker(rank, size)
        objective = SupervisedObjective(network(), examples(images), spec, 0, worker, 6, None)
        batch = objective.gather(3, positions)
        passes = [one for share in objective.passes for one in share]
        return [objective.show(batch, one).pixels for one in passes]

    alone = torch.cat(shown(0, 1))
    together = torch.cat([pixels for rank in range(2) for pixels in shown(rank, 2)])
    assert alone.shape == (8, 1, SIDE, SIDE)
    torch.testing.assert_close(alone, together, atol=0, rtol=0)


def test_a_crop_is_cut_from_the_whole_picture(images: Images) -> None:
    spec = recipe(batch_size=8, augmentation={"crop": 0.3})
    objective = SupervisedObjective(network(), examples(images), spec, 0, Worker(), 6, None)
    batch = objective.gather(0, np.arange(8))
    if isinstance(images, RawImages):
        assert batch.view.changes.crop_N4 is not None  # on the device
        return
    assert isinstance(images, JPEGImages) and batch.view.changes.crop_N4 is None
    aspects = images.aspects(np.arange(8))
    assert len(set(aspects.tolist())) > 4
    rng = np.random.default_rng(seed_for(0, "augment", 0))
    crops = draw_changes(spec.augmentation, 8, rng, aspects).crop_N4
    assert crops is not None
    for n in range(8):
        part = Image.fromarray(cut(images._decode(n), crops[n])[..., 0])
        expected = np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BILINEAR), int)
        assert np.abs(batch.view.images_NHWC[n, ..., 0].numpy() - expected).max() <= 1


def test_images_grow_during_the_training(images: Images) -> None:
    growth = {"smallest": 8, "largest": 16, "start": 0.25, "end": 0.75, "multiple": 4}
    spec = recipe(batch_size=8, resolution=growth)
    objective = SupervisedObjective(network(), examples(images), spec, 0, Worker(), 8, None)
    sizes = []
    for step in range(8):
        batch = objective.gather(step, np.arange(8))
        [[one]] = objective.passes
        sizes.append(objective.show(batch, one).pixels.shape[2:])
    assert [side for side, _ in sizes] == [8, 8, 8, 8, 12, 16, 16, 16]
    assert all(height == width for height, width in sizes)


def test_smaller_images_are_smoothed(images: Images) -> None:
    # stripes two pixels wide: skipping pixels would leave black and white, smoothing leaves grey
    growth = {"smallest": 8, "largest": 8, "start": 0.5, "end": 0.5}
    spec = recipe(batch_size=8, resolution=growth, augmentation={})
    objective = SupervisedObjective(network(), examples(images), spec, 0, Worker(), 8, None)
    batch = objective.gather(0, np.arange(8))
    [[one]] = objective.passes
    small = objective.show(batch, one).pixels
    whole = torch.from_numpy(np.asarray(images[np.arange(8)])).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(small.mean((1, 2, 3)), whole.mean((1, 2, 3)), atol=0.06, rtol=0)


@pytest.mark.parametrize("attack", ["none", "pgd", "free"])
def test_a_training_with_growing_images_is_continued_exactly(
    images: Images, attack: str, tmp_path: Path
) -> None:
    from dp4tl_ray.training.checkpoint import Checkpoint

    growth = {"smallest": 8, "largest": 16, "start": 0.25, "end": 0.75, "multiple": 4}
    spec = recipe(resolution=growth, adversarial={"attack": attack})

    def die(progress: Any) -> bool:
        if progress["epoch"] == 3:
            raise KilledError
        return True

    straight, halted, resumed = network(), network(), network(seed=5)
    fit(straight, examples(images), spec, 0, Worker())
    with pytest.raises(KilledError):
        fit(halted, examples(images), spec, 0, Worker(report=die), Checkpoint(tmp_path))
    fit(resumed, examples(images), spec, 0, Worker(), Checkpoint(tmp_path))
    assert equal(weights(straight), weights(resumed))


def test_both_views_of_a_picture_are_cut_while_it_is_decoded_once(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimCLR.model_validate(
        {
            "objective": "simclr",
            "network": {"arch": "resnet9", "width": 4},
            "batch_size": 8,
            "batch_norm": {"group_size": 4},
            "budget": {"epochs": 1},
        }
    )
    objective = TwoViewObjective(network(), examples(images), spec, 0, Worker(), 6)
    decoded = []
    if isinstance(images, JPEGImages):
        one = images._decode

        def counted(row: int) -> Any:
            decoded.append(row)
            return one(row)

        monkeypatch.setattr(images, "_decode", counted)
    batch = objective.gather(0, np.arange(8))
    if isinstance(images, JPEGImages):
        assert sorted(map(int, decoded)) == list(range(8))
    [share] = batch.shares
    first, second = objective._two_views(share.queries)
    assert first.shape == second.shape == (8, 1, SIDE, SIDE) and not torch.equal(first, second)
    assert objective.backward(Parallel(objective.module, Worker()), batch, 0).isfinite()


def test_changes_in_pixels_are_those_of_the_full_size(images: Images) -> None:
    growth = {"smallest": 8, "largest": 8, "start": 0.5, "end": 0.5}
    spec = recipe(batch_size=8, resolution=growth, augmentation={"shift": 4, "blur": 1.0})
    objective = SupervisedObjective(network(), examples(images), spec, 0, Worker(), 8, None)
    view = objective.gather(0, np.arange(8)).view
    drawn = draw_changes(spec.augmentation, 8, np.random.default_rng(seed_for(0, "augment", 0)))
    factor = 0.5 if isinstance(images, JPEGImages) else 1.0  # decoded at half the size
    assert drawn.colors is not None and view.changes.colors is not None
    assert np.array_equal(view.changes.shift_N2, (drawn.shift_N2 * factor).round())
    assert np.array_equal(view.changes.colors.sigma_N, drawn.colors.sigma_N * factor)
