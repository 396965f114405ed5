"""The packed store against Pillow, and what happens to it."""

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from dp4tl_ray.data import check as check_module
from dp4tl_ray.data import pack as packing
from dp4tl_ray.data.check import inspect
from dp4tl_ray.data.decode import DecodeError, decode_jpeg, decoded, encode_jpeg, plain_jpeg
from dp4tl_ray.data.images import Pixels, Role
from dp4tl_ray.data.load import fingerprint, open_pictures
from dp4tl_ray.data.pack import ADDRESS, pack_shard
from dp4tl_ray.data.packed import JPEGImages, RawImages, Shards, cut
from dp4tl_ray.data.pictures import DatasetError, Pictures, split_at_random
from dp4tl_ray.specs.data import Dataset, ImageFolder
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.stages import data as data_stage
from dp4tl_ray.stages.bench import Job, StageError
from dp4tl_ray.store import Workbench
from dp4tl_ray.training.fit import Halted
from dp4tl_ray.training.worker import Progress, Worker
from tests.data.loading import load_images

JPEG = {"encoding": "jpeg", "short_side": 48, "quality": 90}


def photo(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Draw something smooth, as photographs are."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """JPEG of many shapes, some larger than the store keeps, some grey, and a PNG per class."""
    rng = np.random.default_rng(0)
    for name in ("ape", "bee", "cow"):
        (tmp_path / "p" / name).mkdir(parents=True)
        for index in range(7):
            height, width = rng.integers(20, 120, 2)
            picture = Image.fromarray(photo(rng, height, width))
            if index % 3 == 0:
                picture = picture.convert("L")
            kind = "png" if index == 5 else "jpg"
            picture.save(tmp_path / "p" / name / f"{index}.{kind}", quality=95)
    return tmp_path / "p"


def spec(path: Path, **changes: Any) -> ImageFolder:
    return ImageFolder.model_validate(
        {"dataset": "image_folder", "path": str(path), "image_size": 16, **changes}
    )


def pack(dataset: Dataset, store: Path, worker: Worker | None = None) -> dict[str, Any]:
    """Run the data stage; returns its metrics."""
    store.mkdir(exist_ok=True)
    job = Job({}, Workbench(store), worker or Worker())
    return data_stage.run_data(DataStep(dataset=dataset, role="source"), job)


def opened(store: Path, dataset: ImageFolder) -> JPEGImages | RawImages:
    names = sorted(path.name for path in store.glob("images-*"))
    shards = Shards(names, store.joinpath, np.load(store / "addresses.npy", mmap_mode="r"))
    kind = RawImages if dataset.stored.encoding == "raw" else JPEGImages
    return kind(shards, dataset.image_size, dataset.channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_any_rows_of_raw_shards_are_read_in_any_order(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, threads: int
) -> None:
    monkeypatch.setattr(packing, "SHARD_BYTES", 4 * 16 * 16 * channels)
    torch.set_num_threads(threads)
    dataset = spec(photos, channels=channels)
    pack(dataset, tmp_path / "s")
    assert len(list((tmp_path / "s").glob("images-*.npy"))) == 6  # of 21 images, 4 in each
    whole, images = load_images(dataset, "source").images, opened(tmp_path / "s", dataset)
    assert images.shape == whole.shape and len(images) == 21
    for rows in ([20, 0, 3, 3, 19], [7], [], range(21)):
        chosen = np.array(rows, np.int64)
        assert np.array_equal(images[chosen], whole[chosen])


def test_small_jpegs_are_kept_as_they_are_and_others_within_the_tolerance_of_jpeg(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD_PICTURES", 5)
    dataset = spec(photos, stored=JPEG)
    pack(dataset, tmp_path / "s")
    images = opened(tmp_path / "s", dataset)
    assert isinstance(images, JPEGImages)
    pictures, kept = open_pictures(dataset, "source"), 0
    for row, name in enumerate(pictures.ids):
        content = (photos / name).read_bytes()
        address = images.shards.addresses_N[row]
        start, end = address["offset"], address["offset"] + address["length"]
        stored = bytes(images.shards.map(address["shard"])[start:end])
        with Image.open(photos / name) as file:
            original = file.convert("RGB")
        small = min(original.size) <= 48
        if small and name.endswith("jpg"):
            kept += 1
            assert stored == content
        scale = 1 if small else 48 / min(original.size)
        size = tuple(round(side * scale) for side in original.size)
        assert (address["width"], address["height"]) == size
        buffer = io.BytesIO(content)
        if not (small and name.endswith("jpg")):
            buffer = io.BytesIO()
            original.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=90)
        expected = np.asarray(Image.open(buffer).convert("RGB"), int)
        assert np.abs(decode_jpeg(stored, 3).astype(int) - expected).mean() < 2
    assert 0 < kept < len(pictures.ids)


def test_decoding_gives_the_pixels_of_pillow() -> None:
    rng = np.random.default_rng(0)
    for mode in ("RGB", "L", "CMYK"):
        buffer = io.BytesIO()
        picture = Image.fromarray(photo(rng, 37, 53)).convert(mode)
        picture.save(buffer, "JPEG", quality=85)
        again = Image.open(io.BytesIO(buffer.getvalue()))
        assert np.array_equal(decoded(buffer.getvalue(), 3), np.asarray(again.convert("RGB")))
        if mode == "L":
            assert np.array_equal(decoded(buffer.getvalue(), 1)[..., 0], np.asarray(again))


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_those_of_pillow(photos: Path, tmp_path: Path, channels: int) -> None:
    dataset = spec(photos, stored=JPEG, channels=channels)
    pack(dataset, tmp_path / "s")
    images = opened(tmp_path / "s", dataset)
    assert isinstance(images, JPEGImages)
    rows = np.array([3, 1, 8, 8, 20])
    crop_N4 = np.array([[0, 0, 1, 1], [-0.5, 0.5, 0.5, 0.5], [0.2, -0.3, 0.7, 0.4],
                        [0.9, 0.9, 0.01, 0.01], [0.0, 0.1, 0.3, 0.9]])  # fmt: skip
    middle, crops = images.crops(rows, [None, crop_N4], 12)
    for n, row in enumerate(rows):
        address = images.shards.addresses_N[row]
        whole = decode_jpeg(_bytes(images, row), channels)
        assert whole.shape[:2] == (address["height"], address["width"])
        assert images.aspects(np.array([row])) == whole.shape[1] / whole.shape[0]
        sides = np.array(whole.shape[:2])
        size = np.maximum(1, (crop_N4[n, 2:] * sides).round()).astype(int)
        start = ((crop_N4[n, :2] + 1) * sides / 2 - size / 2).round().astype(int)
        start = np.clip(start, 0, sides - size)
        part = whole[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
        assert np.array_equal(cut(whole, crop_N4[n]), part)
        assert np.abs(_by_pillow(part, (12, 12)).astype(int) - crops[n]).max() <= 1
        assert middle[n].shape == (12, 12, channels)
    assert np.array_equal(images[rows], images.crops(rows, [None], 16)[0])


def _by_pillow(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    array = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.uint8)
    return array.reshape(*size, pixels.shape[2])


def _bytes(images: JPEGImages, row: int) -> bytes:
    shard, start, length, *_ = images.shards.addresses_N[row].item()
    return bytes(images.shards.map(shard)[start : start + length])


def test_threads_change_no_bit(photos: Path, tmp_path: Path) -> None:
    dataset, rows = spec(photos, stored=JPEG), np.arange(21)[::-1]
    pack(dataset, tmp_path / "s")
    read = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        read.append(opened(tmp_path / "s", dataset)[rows])
    assert np.array_equal(read[0], read[1])


@pytest.mark.parametrize("stored", ["raw", JPEG])
def test_a_picture_that_does_not_decode_is_named_or_left_out(
    photos: Path, tmp_path: Path, stored: Any
) -> None:
    whole = load_images(spec(photos), "source")
    for name in ("ape/1.jpg", "cow/5.png"):
        (photos / name).write_bytes((photos / name).read_bytes()[:200])
    with pytest.raises(StageError, match=r"ape/1\.jpg does not decode.*corrupt: skip"):
        pack(spec(photos, stored=stored), tmp_path / "stop")
    assert not list((tmp_path / "stop").glob("*images*"))
    dataset = spec(photos, stored=stored, corrupt="skip")
    metrics = pack(dataset, tmp_path / "skip")
    assert metrics["num_examples"] == 19 and metrics["num_skipped"] == 2
    assert "left out 2 of 21 pictures" in metrics["alarm"] and "ape/1.jpg" in metrics["alarm"]
    kept = [row for row, id in enumerate(whole.ids) if id not in ("ape/1.jpg", "cow/5.png")]
    assert np.load(tmp_path / "skip" / "labels.npy").tolist() == whole.labels[kept].tolist()
    images = opened(tmp_path / "skip", dataset)
    difference = np.abs(images[np.arange(19)].astype(int) - whole.images[kept])
    assert difference.mean() < (1 if stored == "raw" else 4)


def test_nothing_that_decodes_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "p" / "ape").mkdir(parents=True)
    (tmp_path / "p" / "ape" / "1.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(StageError, match="none of the 1 pictures can be read"):
        pack(spec(tmp_path / "p", corrupt="skip"), tmp_path / "s")


@pytest.mark.parametrize("stored", ["raw", JPEG])
def test_a_damaged_picture_is_noticed_when_it_is_read(
    photos: Path, tmp_path: Path, stored: Any
) -> None:
    dataset = spec(photos, stored=stored)
    pack(dataset, tmp_path / "s")
    [shard] = (tmp_path / "s").glob("images-*")
    content = bytearray(shard.read_bytes())
    address = np.load(tmp_path / "s" / "addresses.npy")[4]
    each = 16 * 16 * 3
    start = 128 + 4 * each if stored == "raw" else address["offset"]
    content[start + 40] ^= 1
    shard.write_bytes(content)
    images = opened(tmp_path / "s", dataset)
    assert len(images[np.array([3, 5])]) == 2
    with pytest.raises(DatasetError, match="picture 4 does not match its checksum"):
        images[np.array([3, 4])]


def test_packing_goes_on_at_the_shard_where_it_was_ended(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD_PICTURES", 5)
    monkeypatch.setattr(data_stage, "REPORT_SECONDS", 0.0)
    dataset = spec(photos, stored=JPEG)

    def until(row: int) -> Worker:
        def report(progress: Progress) -> bool:
            return float(progress["step"]) < row

        return Worker(report=report)

    with pytest.raises(Halted):
        pack(dataset, tmp_path / "s", until(15))
    packed = []
    one = packing._pack

    def counted(row: int, *rest: Any) -> Any:
        packed.append(row)
        return one(row, *rest)

    monkeypatch.setattr(packing, "_pack", counted)
    pack(dataset, tmp_path / "s")
    assert packed == [*range(10, 21)]  # the third shard was not whole
    pack(dataset, tmp_path / "again")
    for path in sorted((tmp_path / "again").glob("*.*")):
        assert path.read_bytes() == (tmp_path / "s" / path.name).read_bytes(), path.name


def test_what_is_excluded_is_not_there(photos: Path, tmp_path: Path) -> None:
    unwanted = tmp_path / "ids.txt"
    unwanted.write_text("ape/1.jpg\n\nbee/0.jpg\n")
    pictures = open_pictures(spec(photos, exclude=str(unwanted)), "source")
    assert len(pictures) == 19 and {"ape/1.jpg", "bee/0.jpg"}.isdisjoint(pictures.ids)
    assert (
        decoded(pictures.read(1), 3).shape == decoded((photos / "ape/2.jpg").read_bytes(), 3).shape
    )
    unwanted.write_text("ape/1.jpg\nape/99.jpg\n")
    with pytest.raises(DatasetError, match=r"1 of its 2 ids .* such as 'ape/99.jpg'"):
        open_pictures(spec(photos, exclude=str(unwanted)), "source")
    with pytest.raises(DatasetError, match="cannot be read"):
        open_pictures(spec(photos, exclude=str(tmp_path / "none.txt")), "source")
    unwanted.write_text("\n".join(open_pictures(spec(photos), "source").ids))
    for role in get_args(Role):
        with pytest.raises(DatasetError, match=r"exclude .*ids\.txt: leaves no train pictures of"):
            open_pictures(spec(photos, exclude=str(unwanted)), role)


def test_pixels_are_packed_like_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [photo(rng, 20, 30), photo(rng, 40, 20)[:, :, 0], photo(rng, 16, 16)[:, :, :1]]
    pictures = Pictures(
        ["a", "b", "c"], np.zeros(3, np.int64), np.zeros(3, np.int8), ("x",), arrays.__getitem__
    )
    plan = data_stage.packing_of(spec(tmp_path, stored={"encoding": "jpeg"}))
    index = pack_shard(pictures, plan, 0, tmp_path, tmp_path / "notes", threads=1)
    assert index.addresses.dtype == ADDRESS and index.rows.tolist() == [0, 1, 2]
    assert index.addresses["height"].tolist() == [20, 40, 16]
    bad: Sequence[npt.NDArray[Any]] = [np.zeros((4, 4), np.float32)]
    with pytest.raises(DatasetError, match="uint8 is needed"):
        pack_shard(
            Pictures(["a"], np.zeros(1, np.int64), np.zeros(1, np.int8), ("x",), bad.__getitem__),
            plan, 0, tmp_path, tmp_path / "other", threads=1,
        )  # fmt: skip


def test_encoding_and_decoding_is_within_the_tolerance_of_jpeg() -> None:
    picture = photo(np.random.default_rng(1), 60, 80)
    for channels in (1, 3):
        pixels = np.ascontiguousarray(picture[:, :, :channels])
        again = decode_jpeg(encode_jpeg(pixels, 95), channels)
        assert again.shape == pixels.shape
        assert np.abs(again.astype(int) - pixels).mean() < 2


def test_what_has_a_flaw_to_one_decoder_is_a_picture_to_the_other(
    photos: Path, tmp_path: Path
) -> None:
    """Some of OxfordIIITPet's pictures have bytes too many before their end."""
    name = photos / "bee" / "2.jpg"
    content = name.read_bytes()
    name.write_bytes(content[:-2] + bytes(20) + content[-2:])
    flawed = name.read_bytes()
    assert plain_jpeg(flawed, 3) is None
    assert np.array_equal(decoded(flawed, 3), np.asarray(Image.open(name).convert("RGB")))
    dataset = spec(photos, stored=JPEG)
    pack(dataset, tmp_path / "s")
    images = opened(tmp_path / "s", dataset)
    row = list(open_pictures(dataset, "source").ids).index("bee/2.jpg")
    assert isinstance(images, JPEGImages)
    assert plain_jpeg(_bytes(images, row), 3) is not None  # encoded anew, without the flaw
    for cut_short in (content[: len(content) // 2], content[:300]):
        with pytest.raises(DecodeError, match="does not decode"):
            decoded(cut_short, 3)


def test_what_is_no_picture_is_said_to_be_none() -> None:
    with pytest.raises(DecodeError, match="does not decode: it is no picture that Pillow knows"):
        decoded(b"no picture", 3)


def test_16_bits_per_value_are_brought_to_8() -> None:
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    assert np.array_equal(decoded(buffer.getvalue(), 1)[..., 0], (ramp >> 8).astype(np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(np.float32)).save(buffer, "TIFF")
    with pytest.raises(DecodeError, match="its pixels are floats"):
        decoded(buffer.getvalue(), 1)


@pytest.mark.parametrize("stored", ["raw", JPEG])
def test_a_shard_that_a_crash_has_cut_is_packed_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Any
) -> None:
    monkeypatch.setattr(packing, "SHARD_PICTURES", 5)
    monkeypatch.setattr(packing, "SHARD_BYTES", 5 * 16 * 16 * 3)
    monkeypatch.setattr(data_stage, "REPORT_SECONDS", 0.0)
    dataset = spec(photos, stored=stored)
    stop = Worker(report=lambda progress: float(progress["step"]) < 15)
    with pytest.raises(Halted):
        pack(dataset, tmp_path / "s", stop)
    first = sorted((tmp_path / "s").glob("images-*"))[0]
    first.write_bytes(first.read_bytes()[:-100])
    note = sorted(data_stage.notes_of(tmp_path / "s" / "checkpoint").iterdir())[1]
    note.write_bytes(note.read_bytes()[:200])
    pack(dataset, tmp_path / "s")
    pack(dataset, tmp_path / "again")
    for path in sorted((tmp_path / "again").glob("*.*")):
        assert path.read_bytes() == (tmp_path / "s" / path.name).read_bytes(), path.name


def test_a_dataset_that_changes_while_it_is_packed_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = spec(photos)
    seen = fingerprint(dataset, "source")

    def run(folder: Path) -> None:
        folder.mkdir()
        step = DataStep(dataset=dataset, role="source", fingerprint=seen)
        data_stage.run_data(step, Job({}, Workbench(folder), Worker()))

    run(tmp_path / "same")
    whole = data_stage._pack

    def meanwhile(*arguments: Any) -> Any:
        index = whole(*arguments)
        (photos / "ape" / "1.jpg").rename(photos / "bee" / "moved.jpg")
        return index

    with monkeypatch.context() as patch, pytest.raises(StageError, match="is not what it was"):
        patch.setattr(data_stage, "_pack", meanwhile)
        run(tmp_path / "during")
    with pytest.raises(StageError, match="is not what it was when the study was planned"):
        run(tmp_path / "before")


def test_what_is_excluded_is_not_as_if_it_had_never_been_there(
    photos: Path, tmp_path: Path
) -> None:
    """The rest is the same, but its rows in the dataset are not."""
    unwanted = tmp_path / "ids.txt"
    unwanted.write_text("ape/1.jpg\n")
    excluded = fingerprint(spec(photos, exclude=str(unwanted)), "source")
    (photos / "ape" / "1.jpg").unlink()
    assert fingerprint(spec(photos), "source") != excluded


def test_excluding_pictures_moves_no_other_to_another_split(photos: Path, tmp_path: Path) -> None:
    unwanted = tmp_path / "ids.txt"
    unwanted.write_text("ape/1.jpg\nbee/3.jpg\n")
    whole = open_pictures(spec(photos), "target")
    fewer = open_pictures(spec(photos, exclude=str(unwanted)), "target")
    splits = dict(zip(whole.ids, whole.splits.tolist(), strict=True))
    assert len(fewer) == len(whole) - 2
    assert {id: splits[id] for id in fewer.ids} == dict(
        zip(fewer.ids, fewer.splits.tolist(), strict=True)
    )


@pytest.mark.parametrize(("size", "three", "two"), [
    (1, [1, 0, 0], [1, 0, 0]),
    (2, [1, 0, 1], [1, 1, 0]),
    (3, [1, 1, 1], [2, 1, 0]),
    (4, [2, 1, 1], [3, 1, 0]),
    (10, [6, 2, 2], [8, 2, 0]),
])  # fmt: skip
def test_small_classes_are_trained_on_first(size: int, three: list[int], two: list[int]) -> None:
    labels = np.zeros(size, np.int64)
    for shares, counts in (([0.6, 0.2, 0.2], three), ([0.8, 0.2, 0.0], two)):
        assert np.bincount(split_at_random(labels, shares), minlength=3).tolist() == counts


def test_a_class_that_is_only_tested_raises_an_alarm(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("ape", "bee"):
            (tmp_path / "t" / split / name).mkdir(parents=True)
            for n in (1, 2):
                content = (photos / name / f"{n}.jpg").read_bytes()
                (tmp_path / "t" / split / name / f"{n}.jpg").write_bytes(content)
    for n in (1, 2):
        (tmp_path / "t" / "train" / "bee" / f"{n}.jpg").write_bytes(b"broken")
    (tmp_path / "t" / "val").mkdir()
    shutil.copytree(tmp_path / "t" / "test", tmp_path / "t" / "val", dirs_exist_ok=True)
    folder = tmp_path / "s"
    folder.mkdir()
    step = DataStep(dataset=spec(tmp_path / "t", corrupt="skip"), role="target")
    metrics = data_stage.run_data(step, Job({}, Workbench(folder), Worker()))
    assert "has 1 classes with test and no train pictures, such as bee" in str(metrics["alarm"])


def test_an_interrupted_check_waits_for_no_more_than_is_under_way(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_module, "AT_A_TIME", 1)
    pictures, read = open_pictures(spec(photos), "source"), list[int]()

    def counted(i: int) -> bytes | Pixels:
        read.append(i)
        return pictures.read(i)

    def interrupted(row: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect(replace(pictures, read=counted), 3, threads=1, report=interrupted)
    assert len(read) <= 3  # of 21


def test_a_store_of_many_shards_may_open_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 1_048_576)]
    monkeypatch.setattr("dp4tl_ray.data.packed.resource.getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(
        "dp4tl_ray.data.packed.resource.setrlimit", lambda kind, new: limits.append(new)
    )
    for number, soft in ((200, 1024), (2880, 3904), (900, 3904), (2**21, 1_048_576)):
        Shards([f"{n}.npy" for n in range(number)], Path, np.zeros(1, ADDRESS))
        assert limits[-1] == (soft, 1_048_576)
