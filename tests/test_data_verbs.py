"""dp4tl data pack, check, show and warm, as people use them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image, ImageOps

from dp4tl_ray import store as store_module
from dp4tl_ray.cli import main
from dp4tl_ray.data import pack as packing
from dp4tl_ray.data.load import open_pictures
from dp4tl_ray.data.pictures import DatasetError
from dp4tl_ray.specs.data import ImageFolder
from dp4tl_ray.stages.bench import images_of
from dp4tl_ray.store import Store, open_store
from dp4tl_ray.sweep import plan_study
from dp4tl_ray.warm import warm_study
from tests.conftest import folder, study_data, supervised, tiny_study
from tests.data.test_packed import photo

Pictures = dict[str, str]


@pytest.fixture
def dp4tl(tmp_path: Path) -> Callable[..., int]:
    """Run a verb on a study in this process, with a store below tmp_path."""

    def run(*words: str, **study: Any) -> int:
        path = tmp_path / "tiny.yaml"
        path.write_text(json.dumps(study))
        handler = signal.getsignal(signal.SIGTERM)
        *verb, last = words
        options = [last] if last.startswith("--") else []
        verb = verb if options else [*verb, last]
        try:
            return main([*verb, str(path), "--store", str(tmp_path / "store"), *options])
        finally:
            signal.signal(signal.SIGTERM, handler)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Pictures:
    """Photographs as source and target, with much that is wrong about them."""
    rng = np.random.default_rng(0)
    for place, classes, each in (("source", 4, 8), ("target/train", 2, 10), ("target/test", 2, 6)):
        for label in range(classes):
            (tmp_path / place / f"c{label}").mkdir(parents=True)
            for n in range(each):
                picture = Image.fromarray(photo(rng, *rng.integers(40, 90, 2)))
                picture.save(tmp_path / place / f"c{label}" / f"{n}.jpg", quality=95)
    source, test = tmp_path / "source", tmp_path / "target" / "test"
    (source / "c1" / "twin.jpg").write_bytes((source / "c0" / "3.jpg").read_bytes())
    (test / "c0" / "seen.jpg").write_bytes((tmp_path / "target/train/c0/1.jpg").read_bytes())
    copied = Image.open(test / "c1" / "2.jpg")
    copied.resize((copied.width * 2 // 3, copied.height * 2 // 3)).save(
        source / "c2" / "copy.jpg", quality=70
    )
    broken = source / "c3" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    Image.new("RGB", (200, 20), (9, 200, 40)).save(source / "c3" / "long.jpg")
    return {"source": str(source), "target": str(tmp_path / "target")}


def study_of(pictures: Pictures, **source: Any) -> dict[str, Any]:
    options = {"image_size": 32, "channels": 3}
    return study_data(
        pictures,
        source=folder(pictures["source"], **options, **source),
        targets=[folder(pictures["target"], **options)],
        methods=["random_examples"],
        pretraining=[supervised(budget={"epochs": 1})],
    )


def test_check_finds_what_is_wrong(
    photos: Pictures, dp4tl: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dp4tl("data", "check", **study_of(photos)) == 1
    report = capsys.readouterr().out
    for finding in (
        "train: 35 pictures of 4 classes, 8 (c0) to 9 each, median 9",
        "**1 cannot be read** (unreadable-source.txt)",
        "c3/5.jpg does not decode",
        "c0/3.jpg = c1/twin.jpg",
        "**1 of these are in several classes**",
        "smaller than image_size 32, and enlarged: 1",
        "more than 3 times as long as wide, or the reverse: 1",
        "**1 of these are in several splits**, such as test/c0/seen.jpg = train/c0/1.jpg",
        "that look like one of the source: 1 of 13",
        "c2/copy.jpg ≈ test/c1/2.jpg",
    ):
        assert finding in report, finding
    found = tmp_path / "store" / "studies" / "tiny"
    assert (found / "data_check.md").read_text() in report
    assert (found / "near_duplicates.txt").read_text() == "c2/copy.jpg\n"
    assert (found / "unreadable-source.txt").read_text() == "c3/5.jpg\n"
    assert (found / "doubled-source.txt").read_text() == "c1/twin.jpg\n"
    assert dp4tl("data", "check", "--against=nobody", **study_of(photos)) == 2
    assert "no such target; allowed: image_folder" in capsys.readouterr().err


def test_a_study_can_do_without_what_check_lists(
    photos: Pictures, dp4tl: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dp4tl("data", "check", **study_of(photos))
    unwanted = tmp_path / "store" / "studies" / "tiny" / "near_duplicates.txt"
    clean = study_of(photos, exclude=str(unwanted), corrupt="skip")
    assert dp4tl("run", "--local", **clean) == 0
    assert "left out 1 of 34 pictures" in capsys.readouterr().err
    [line, _] = (tmp_path / "store/studies/tiny/results.jsonl").read_text().splitlines()
    assert json.loads(line)["num_source"] == 33
    sound = study_of(photos, exclude=str(unwanted))
    Path(photos["source"], "c3", "5.jpg").unlink()
    capsys.readouterr()
    assert dp4tl("data", "check", **sound) == 0
    report = capsys.readouterr().out
    assert "that look like one of the source: 1 of 13" in report
    assert unwanted.read_text() == "c2/copy.jpg\n"  # a list that the study uses stays


def test_every_list_can_be_excluded(
    photos: Pictures, dp4tl: Callable[..., int], tmp_path: Path
) -> None:
    dp4tl("data", "check", **study_of(photos))
    lists = tmp_path / "store" / "studies" / "tiny"
    for name, left in (("unreadable", 34), ("doubled", 34)):
        source = study_of(photos, exclude=str(lists / f"{name}-source.txt"))["source"]
        pictures = open_pictures(ImageFolder.model_validate(source), "source")
        assert len(pictures) == left


def test_copies_within_a_target_are_found_mirrored_rescaled_and_compressed(
    photos: Pictures, dp4tl: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Path(photos["target"])

    def copy(origin: str, name: str, scale: float, quality: int, mirror: bool = False) -> None:
        with Image.open(target / origin) as picture:
            size = round(picture.width * scale), round(picture.height * scale)
            made = ImageOps.mirror(picture) if mirror else picture
            made.resize(size).save(target / name, quality=quality)

    for name in ("c0", "c1"):
        (target / "val" / name).mkdir(parents=True)
        (target / "train" / name / "9.jpg").rename(target / "val" / name / "9.jpg")
    copy("test/c0/2.jpg", "train/c0/mirrored.jpg", 1.0, 90, mirror=True)
    copy("train/c0/4.jpg", "train/c1/rescaled.jpg", 0.7, 80)
    copy("train/c1/5.jpg", "train/c1/compressed.jpg", 1.0, 50)
    copy("test/c1/3.jpg", "test/c1/tested.jpg", 1.2, 90)
    copy("test/c1/4.jpg", "../source/c0/mirrored.jpg", 0.8, 90, mirror=True)
    dp4tl("data", "check", **study_of(photos))
    _, report = capsys.readouterr().out.split("## target")
    for finding in (
        "**1 have copies** (doubled-target-0.txt: all but the first of each, none of test)",
        "**4 have near-duplicates, mirrored or not** (alike-target-0.txt: all but the first of "
        "each and of the copies above, none of test)",
        "    - test/c0/2.jpg ≈ train/c0/mirrored.jpg\n",
        "**1 of these are in several splits**, such as test/c0/2.jpg ≈ train/c0/mirrored.jpg",
        "    - test/c1/3.jpg ≈ test/c1/tested.jpg\n",
        "**1 of these are in several classes**, such as train/c0/4.jpg ≈ train/c1/rescaled.jpg",
        "    - c0/mirrored.jpg ≈ test/c1/4.jpg\n",
    ):
        assert finding in report, finding
    assert "nearly of one colour" not in report
    lists = tmp_path / "store" / "studies" / "tiny"
    listed = {*(lists / "alike-target-0.txt").read_text().split()}
    assert (lists / "doubled-target-0.txt").read_text() == "train/c0/1.jpg\n"
    made = {f"train/{name}.jpg" for name in ("c0/mirrored", "c1/compressed", "c1/rescaled")}
    assert listed == made | {"train/c0/1.jpg"}
    exclude = study_of(photos)["targets"][0] | {"exclude": str(lists / "alike-target-0.txt")}
    assert len(open_pictures(ImageFolder.model_validate(exclude), "target")) == 37 - 4
    assert not (lists / "alike-source.txt").exists()


def test_skies_are_said_to_look_alike_without_being_copies(
    photos: Pictures, dp4tl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(photos["target"], "test", "c0", "seen.jpg").unlink()
    for n in range(12):
        sky = Image.new("RGB", (60, 40 + n), (90, 150, 240))
        sky.save(Path(photos["target"], "test", "c0", f"sky{n}.jpg"))
    dp4tl("data", "check", **study_of(photos))
    report = capsys.readouterr().out
    assert "**1 have near-duplicates, mirrored or not** (all in test):" in report
    assert ".jpg … and 2 more\n" in report
    assert "- 1 of these are nearly of one colour, and may show different things" in report


def test_a_dataset_that_is_missing_is_named_before_any_work(
    photos: Pictures, dp4tl: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = study_of({**photos, "target": str(tmp_path / "nowhere")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dp4tl_ray.checkup.inspect", None)
        assert dp4tl("data", "check", **study) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_nothing_is_done_twice_and_a_broken_picture_is_named(
    photos: Pictures, dp4tl: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dp4tl("data", "pack", "--local", **study_of(photos)) == 1
    assert "c3/5.jpg does not decode" in capsys.readouterr().err
    skipping = study_of(photos, corrupt="skip", stored="jpeg")
    assert dp4tl("data", "pack", "--local", **skipping) == 0
    out, err = capsys.readouterr()
    assert ": 34 pictures of 4 classes" in out and "tiny: 1 packed" in out
    assert "left out 1 of 35" in err
    assert dp4tl("data", "pack", "--local", **skipping) == 0
    assert "tiny: 0 packed" in capsys.readouterr().out


def test_show_draws_even_what_has_a_broken_picture(
    photos: Pictures,
    dp4tl: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, written, write = "US$_CA$日本", list[str](), Axes.set_xticks  # not maths, and no font
    Path(photos["source"], "c0").rename(Path(photos["source"], name))
    Path(photos["source"], name, "0a.jpg").symlink_to("gone.jpg")

    def set_xticks(axes: Axes, at: Any, labels: Any = (), **options: Any) -> Any:
        written.extend(labels)
        return write(axes, at, labels, **options)

    monkeypatch.setattr(Axes, "set_xticks", set_xticks)
    assert dp4tl("data", "show", **study_of(photos)) == 0
    assert written == [name, "c1", "c2", "c3", "c0", "c1"]
    with Image.open(capsys.readouterr().out.strip()) as sheet:
        assert sheet.width > 500


def test_warm_reads_the_bytes_of_what_is_kept_and_no_others(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD_BYTES", 50 * 256)
    read: list[tuple[int, int]] = []
    pread = os.pread

    def counted(file: int, size: int, at: int) -> bytes:
        read.append((size, at))
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", counted)

    def warmed(**changes: Any) -> dict[str, tuple[int, int]]:
        study = tiny_study(pictures, methods=["random_examples"], **changes)
        plan, store = plan_study(study), open_store(str(tmp_path / "store"))
        _run(plan_study(study, "prune"), store)
        read.clear()
        found = {name: (n, size) for name, n, size in warm_study(plan, store)}
        assert sum(size for size, _ in read) == sum(size for _, size in found.values())
        return found

    pruned = warmed(pruning_ratios=[0.75], pretraining=[supervised()])
    assert list(pruned.values()) == [(36, 36 * 256), (90, 90 * 256)]
    assert [name.split("(")[0] for name in pruned] == ["source image_folder", "target image_folder"]
    whole = warmed(pruning_ratios=[0.0, 0.75], pretraining=[supervised()])
    assert next(iter(whole.values())) == (144, 144 * 256)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_large_datasets_are_compared_picture_by_picture(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    plan = plan_study(tiny_study(pictures), "data")
    _run(plan, open_store(str(tmp_path)))
    [step] = [s for s in plan.steps.values() if getattr(s.spec, "role", "") == "source"]
    shard = open_store(str(tmp_path)).folder(step) / "images-00000.npy"
    content = bytearray(shard.read_bytes())
    content[128 + 7 * 256] ^= 1
    shard.write_bytes(content)
    monkeypatch.setattr(store_module, "READ_WHOLE", limit)
    found = open_store(str(tmp_path)).find(step)
    assert (found is None) == (limit > 0)  # a small one is read as a whole when it is opened
    if found is not None:
        images = images_of(found)
        assert len(images[np.array([6, 8])]) == 2
        with pytest.raises(DatasetError, match="picture 7 does not match its checksum"):
            images[np.array([7])]
    shard.write_bytes(content[:-1])
    assert open_store(str(tmp_path)).find(step) is None


def _run(plan: Any, store: Store) -> None:
    from dp4tl_ray.sweep import run_study

    assert not run_study(plan.study, plan, store, local=True).errors
