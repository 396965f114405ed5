import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from dp4tl_ray.data import pack as packing
from dp4tl_ray.data.image_folder import EXTENSIONS
from dp4tl_ray.data.images import Role
from dp4tl_ray.data.load import fingerprint, open_pictures
from dp4tl_ray.data.pictures import DatasetError
from dp4tl_ray.specs.data import Dataset, GlyphsAndTextures, ImageFolder
from dp4tl_ray.specs.steps import DataStep
from dp4tl_ray.stages import data as data_stage
from dp4tl_ray.stages.bench import Job, StageError
from dp4tl_ray.store import Workbench
from dp4tl_ray.training.fit import Halted
from dp4tl_ray.training.worker import Progress, Worker
from tests.conftest import write_folder
from tests.data.loading import load_images


def spec(path: Path, **changes: object) -> ImageFolder:
    return ImageFolder.model_validate(
        {"dataset": "image_folder", "path": str(path), "image_size": 16, "channels": 1, **changes}
    )


@pytest.fixture
def pictures_here(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "p", range(3), 10, seed=0)


def test_the_extensions_are_torchvisions() -> None:
    assert EXTENSIONS == IMG_EXTENSIONS


def test_reads_what_torchvision_reads(pictures_here: Path) -> None:
    ours = load_images(spec(pictures_here), "source")
    theirs = TorchvisionImageFolder(str(pictures_here))
    assert list(ours.class_names) == theirs.classes
    assert ours.labels.tolist() == theirs.targets
    for image, (path, _) in zip(ours.images, theirs.samples, strict=True):
        assert np.array_equal(image[..., 0], np.asarray(Image.open(path).convert("L")))


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """Two classes with folders in folders, files among them, and links to folders elsewhere."""
    names = ("A/z", "A/a/x", "A/a-b/y", "A/a/b/w", "A/Z", "A/.hidden/h", "A/a b/v", "B/1", "B/é/2")
    for name in names:
        path = tmp_path / "root" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), names.index(name)).save(path)
    write_folder(tmp_path / "elsewhere", range(2), 3, seed=0)
    (tmp_path / "root" / "A" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "C").symlink_to(tmp_path / "elsewhere" / "stripes0")
    (tmp_path / "root" / "B" / "0.png").symlink_to(tmp_path / "elsewhere/stripes1/001.png")
    (tmp_path / "root" / "B" / "notes.txt").touch()
    return tmp_path / "root"


def test_nested_and_linked_folders_are_listed_in_torchvisions_order(nested: Path) -> None:
    ours = open_pictures(spec(nested), "source")
    theirs = TorchvisionImageFolder(str(nested))
    paths = [Path(path).relative_to(nested).as_posix() for path, _ in theirs.samples]
    assert ours.ids == paths and len(paths) == 9 + 6 + 1 + 3
    assert ours.labels.tolist() == theirs.targets and list(ours.class_names) == theirs.classes
    last = ours.take(np.array([len(ours) - 1]))
    assert last.one_file_each and last.place(0) == theirs.samples[-1][0]
    for i, (path, _) in enumerate(theirs.samples):
        assert ours.read(i) == Path(path).read_bytes()


def test_any_shape_and_mode_becomes_one_size(tmp_path: Path) -> None:
    for name, mode, size in (("a", "RGB", (40, 20)), ("b", "L", (9, 30)), ("c", "RGBA", (16, 16))):
        (tmp_path / name).mkdir()
        Image.new(mode, size).save(tmp_path / name / "x.png")
    data = load_images(spec(tmp_path, channels=3), "source")
    assert data.images.shape == (3, 16, 16, 3) and data.images.dtype == np.uint8


def test_the_middle_of_the_picture_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "x.png")
    assert (load_images(spec(tmp_path), "source").images == 200).all()


def test_a_source_gives_everything_and_a_target_is_split(pictures_here: Path) -> None:
    assert np.bincount(load_images(spec(pictures_here), "source").splits).tolist() == [30]
    target = load_images(spec(pictures_here), "target")
    for label in range(3):
        counts = np.bincount(target.splits[target.labels == label]).tolist()
        assert counts == [6, 2, 2]
    again = load_images(spec(pictures_here), "target")
    assert np.array_equal(target.splits, again.splits)


def test_official_splits_are_kept(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        write_folder(tmp_path / split, range(2), 4 + seed, seed=seed)
    target = load_images(spec(tmp_path), "target")
    assert np.bincount(target.splits).tolist() == [8, 10, 12]
    source = load_images(spec(tmp_path), "source")
    assert len(source.labels) == 8


def test_the_fingerprint_sees_every_change(pictures_here: Path) -> None:
    seen = {fingerprint(spec(pictures_here), "source")}
    assert fingerprint(spec(pictures_here), "source") in seen
    picture = pictures_here / "stripes0" / "000.png"
    os.utime(picture, (1, 1))
    seen.add(fingerprint(spec(pictures_here), "source"))
    shutil.move(picture, pictures_here / "stripes1" / "999.png")
    seen.add(fingerprint(spec(pictures_here), "source"))
    (pictures_here / "stripes1" / "999.png").unlink()
    seen.add(fingerprint(spec(pictures_here), "source"))
    assert len(seen) == 4


def test_missing_and_empty_folders_are_named(tmp_path: Path, pictures_here: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder; expected FOLDER"):
        fingerprint(spec(tmp_path / "nowhere"), "source")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DatasetError, match="no pictures below"):
        fingerprint(spec(tmp_path / "bare"), "source")
    (pictures_here / "void").mkdir()
    with pytest.raises(DatasetError, match=r"class 'void' .* has no pictures"):
        fingerprint(spec(pictures_here), "source")


def test_classes_must_agree_between_splits(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", range(3), 2, seed=0)
    write_folder(tmp_path / "test", range(2), 2, seed=0)
    with pytest.raises(DatasetError, match="'stripes2' is not in every split"):
        open_pictures(spec(tmp_path), "target")


@pytest.mark.parametrize(("present", "role", "missing"), [
    (("train", "val"), "target", "no test"),
    (("test",), "target", "no train"),
    (("val", "test"), "source", "no train"),
])  # fmt: skip
def test_a_split_is_never_taken_for_a_class(
    tmp_path: Path, present: tuple[str, ...], role: Role, missing: str
) -> None:
    for split in present:
        write_folder(tmp_path / split, range(2), 4, seed=0)
    with pytest.raises(DatasetError, match=missing):
        fingerprint(spec(tmp_path), role)


# -- the data stage, which reads part by part ------------------------------------------------------


def pack(dataset: Dataset, role: Role, store: Path, worker: Worker | None = None) -> Path:
    """Run the data stage; returns the folder of its artifact."""
    store.mkdir(exist_ok=True)
    job = Job({}, Workbench(store), worker or Worker())
    data_stage.run_data(DataStep(dataset=dataset, role=role, fingerprint=""), job)
    return store


def statistics_at_once(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    pixels = images.reshape(-1, images.shape[3]).astype(object)  # integers of any size
    mean = [int(channel.sum()) / len(pixels) / 255 for channel in pixels.T]
    squares = [int((channel**2).sum()) / len(pixels) / 255**2 for channel in pixels.T]
    std = np.sqrt(np.array(squares) - np.array(mean) ** 2)
    return np.stack([mean, std]).astype(np.float32)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of many shapes and modes, in splits, some of them in folders below their class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 4)):
        for name in ("ape", "bee"):
            for index in range(count):
                below = "deeper" if index % 3 == 0 else ""
                (tmp_path / split / name / below).mkdir(parents=True, exist_ok=True)
                height, width = rng.integers(9, 70, 2)
                noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                picture = Image.fromarray(noise).convert(("RGB", "L", "RGBA", "P")[index % 4])
                picture.save(tmp_path / split / name / below / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_reading_in_parts_changes_no_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, threads: int
) -> None:
    dataset = spec(photos, channels=channels)
    whole = load_images(dataset, "target")
    monkeypatch.setattr(packing, "AT_A_TIME", 4)  # the last part is shorter
    torch.set_num_threads(threads)
    packed = pack(dataset, "target", tmp_path / "store")
    arrays: dict[str, npt.NDArray[Any]] = {
        "images-00000": whole.images,
        "labels": whole.labels,
        "splits": whole.splits,
        "statistics": statistics_at_once(whole.images),
    }
    for name, array in arrays.items():
        np.save(tmp_path / "expected.npy", array)
        written = (packed / f"{name}.npy").read_bytes()
        assert written == (tmp_path / "expected.npy").read_bytes(), name


def test_what_is_rendered_is_written_by_the_same_hand(tmp_path: Path) -> None:
    dataset = GlyphsAndTextures(images_per_class=1)
    whole = load_images(dataset, "source")
    packed = pack(dataset, "source", tmp_path / "store")
    assert np.array_equal(np.load(packed / "images-00000.npy"), whole.images)
    assert np.array_equal(np.load(packed / "statistics.npy"), statistics_at_once(whole.images))


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    Image.new("L", (128, 128), 100).save(path)

    def peak(count: int) -> int:
        folder = tmp_path / f"of{count}"
        (folder / "a").mkdir(parents=True)
        for index in range(count):
            os.link(path, folder / "a" / f"{index}.png")
        tracemalloc.start()
        pack(spec(folder, image_size=128), "source", tmp_path / f"s{count}")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    part = packing.AT_A_TIME * 128 * 128
    few, many = peak(4 * packing.AT_A_TIME), peak(12 * packing.AT_A_TIME)
    assert many - few < part  # eight parts more were read


def test_long_packing_is_reported_and_can_be_halted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "AT_A_TIME", 7)
    reports = list[Progress]()

    def report(progress: Progress) -> bool:
        reports.append(progress)
        return len(reports) < 2

    monkeypatch.setattr(data_stage, "REPORT_SECONDS", 1e9)
    pack(spec(photos), "source", tmp_path / "quick", Worker(report=report))
    assert not reports
    monkeypatch.setattr(data_stage, "REPORT_SECONDS", 0.0)
    with pytest.raises(Halted):
        pack(spec(photos), "source", tmp_path / "halted", Worker(report=report))
    assert reports == [{"step": 7, "steps": 18}, {"step": 14, "steps": 18}]
    assert not list((tmp_path / "halted").iterdir())


def test_a_picture_that_does_not_decode_ends_the_packing(photos: Path, tmp_path: Path) -> None:
    broken = photos / "train" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(StageError, match=r"bee/1\.png does not decode"):
        pack(spec(photos), "source", tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())


def test_pictures_come_in_the_order_of_their_paths(photos: Path) -> None:
    ids = load_images(spec(photos), "target").ids
    paths = sorted((photos / "train").rglob("*.png")) + sorted((photos / "test").rglob("*.png"))
    assert list(ids) == [path.relative_to(photos).as_posix() for path in paths]


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\nlines.png"])
def test_a_name_that_no_list_can_hold_is_refused(
    pictures: dict[str, str], tmp_path: Path, name: bytes
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(pictures["source"], folder)
    a_class = sorted(folder.iterdir())[0]
    os.rename(sorted(a_class.iterdir())[0], os.fsencode(a_class) + b"/" + name)
    with pytest.raises(DatasetError, match="rename it"):
        open_pictures(ImageFolder(path=str(folder)), "source")


def test_ids_with_spaces_at_their_ends_can_be_excluded(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(pictures["source"], folder)
    sorted(folder.iterdir())[0].rename(folder / " dogs")
    (tmp_path / "list.txt").write_text(" dogs/000.png\r\n dogs/001.png\n")
    spec = ImageFolder(path=str(folder), exclude=str(tmp_path / "list.txt"))
    ids = open_pictures(spec, "source").ids
    assert len(ids) == 6 * 24 - 2 and " dogs/000.png" not in ids and " dogs/002.png" in ids


@pytest.mark.parametrize(("names", "odd"), [
    (("Train", "Test"), "Test"),
    (("train", "valid", "test"), "valid"),
    (("training", "testing"), "testing"),
])  # fmt: skip
def test_a_folder_that_may_be_a_split_is_asked_about(
    pictures: dict[str, str], tmp_path: Path, names: tuple[str, ...], odd: str
) -> None:
    for name in names:
        shutil.copytree(pictures["target"], tmp_path / name)
    with pytest.raises(DatasetError, match=f"is {odd} in .* a split"):
        open_pictures(ImageFolder(path=str(tmp_path)), "target")


def test_a_class_may_be_called_as_a_split_is_elsewhere(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(pictures["target"], tmp_path / "vehicles")
    sorted((tmp_path / "vehicles").iterdir())[0].rename(tmp_path / "vehicles" / "Train")
    found = open_pictures(ImageFolder(path=str(tmp_path / "vehicles")), "source")
    assert len(found.class_names) == 3 and "Train" in found.class_names


def test_a_link_to_nothing_stops_a_run_unless_it_may_skip(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(pictures["source"], folder)
    (sorted(folder.iterdir())[0] / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DatasetError, match=r"gone\.png .*`exclude` and `corrupt: skip`"):
        fingerprint(ImageFolder(path=str(folder)), "source")
    skipping = spec(folder, corrupt="skip")
    assert fingerprint(skipping, "source")
    packed = pack(skipping, "source", tmp_path / "store")
    ((left_out, reason),) = json.loads((packed / "skipped.json").read_text())
    assert left_out.endswith("/gone.png") and "No such file" in reason
    assert len(np.load(packed / "labels.npy")) == 6 * 24
