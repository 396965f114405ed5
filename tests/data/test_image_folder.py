import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from dp4tl_ray.data.image_folder import EXTENSIONS, DatasetError, fingerprint, read_image_folder
from dp4tl_ray.data.images import Role
from dp4tl_ray.data.load import load_images
from dp4tl_ray.specs.data import ImageFolder
from tests.conftest import write_folder


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
    ours = read_image_folder(spec(pictures_here), "source")
    theirs = TorchvisionImageFolder(str(pictures_here))
    assert list(ours.class_names) == theirs.classes
    assert ours.labels.tolist() == theirs.targets
    for image, (path, _) in zip(ours.images, theirs.samples, strict=True):
        assert np.array_equal(image[..., 0], np.asarray(Image.open(path).convert("L")))


def test_any_shape_and_mode_becomes_one_size(tmp_path: Path) -> None:
    for name, mode, size in (("a", "RGB", (40, 20)), ("b", "L", (9, 30)), ("c", "RGBA", (16, 16))):
        (tmp_path / name).mkdir()
        Image.new(mode, size).save(tmp_path / name / "x.png")
    data = read_image_folder(spec(tmp_path, channels=3), "source")
    assert data.images.shape == (3, 16, 16, 3) and data.images.dtype == np.uint8


def test_the_middle_of_the_picture_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "x.png")
    assert (read_image_folder(spec(tmp_path), "source").images == 200).all()


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


def test_a_picture_that_does_not_decode_is_named(pictures_here: Path) -> None:
    broken = pictures_here / "stripes1" / "003.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DatasetError, match=r"stripes1/003\.png does not decode"):
        read_image_folder(spec(pictures_here), "source")


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
        read_image_folder(spec(tmp_path), "target")


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
