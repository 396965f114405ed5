"""Files that hold many pictures each: Parquet, and the tars of WebDataset."""

import io
import json
import os
import random
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image

from dp4tl_ray.data import parquet
from dp4tl_ray.data.files import numbered
from dp4tl_ray.data.load import fingerprint, is_absent, open_pictures
from dp4tl_ray.data.pictures import DatasetError, Pictures
from dp4tl_ray.specs.data import Parquet, WebDataset, located
from tests.data.loading import check_empty

Sample = tuple[bytes, Any]
RNG = np.random.default_rng(0)


def encoded(kind: str = "JPEG") -> bytes:
    height, width = RNG.integers(8, 20, 2)
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def samples(count: int, classes: list[Any]) -> list[Sample]:
    return [(encoded(), classes[n % len(classes)]) for n in range(count)]


def write_parquet(path: Path, rows: list[Sample], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures, labels = zip(*rows, strict=True)
    table = pyarrow.table({"image": pictures, "label": labels})
    pyarrow.parquet.write_table(table, path, row_group_size=4, **options)


def write_tar(path: Path, rows: list[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as shard:
        for n, (picture, label) in enumerate(rows):
            shard.write({"__key__": f"sample{n:04d}", "jpg": picture, "cls": str(label)})


WRITERS: dict[str, Callable[[Path, list[Sample]], None]] = {
    "parquet": write_parquet, "webdataset": write_tar
}  # fmt: skip
ENDINGS = {"parquet": ".parquet", "webdataset": ".tar"}


def spec(kind: str, path: Path | str, **fields: Any) -> Parquet | WebDataset:
    record: type[Parquet | WebDataset] = Parquet if kind == "parquet" else WebDataset
    return record.model_validate({"dataset": kind, "path": str(path), **fields})


def contents(pictures: Pictures, split: str) -> list[tuple[Any, str]]:
    rows = pictures.rows(split)  # type: ignore[arg-type]
    return [(pictures.read(int(i)), pictures.class_names[pictures.labels[i]]) for i in rows]


def named(rows: list[Sample]) -> list[tuple[Any, str]]:
    return [(picture, str(label)) for picture, label in rows]


LAYOUTS = {
    "folders": ("train/0", "train/1", "val/0", "test/0"),
    "hub": ("data/train-00000-of-00002", "data/train-00001-of-00002",
            "data/validation-00000-of-00001", "data/test-00000-of-00001"),
    "prefixes": ("train-0", "train-1", "val-0", "test-0"),
    "inside": ("imagenet1k-train-0000", "imagenet1k-train-0001", "imagenet1k-validation-00",
               "imagenet1k-test-00"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", WRITERS)
def test_splits_are_in_the_names_of_files_and_folders(
    kind: str, layout: str, tmp_path: Path
) -> None:
    parts = [samples(count, ["ape", "bee"]) for count in (9, 6, 4, 5)]
    for name, rows in [*zip(LAYOUTS[layout], parts, strict=True)][::-1]:
        WRITERS[kind](tmp_path / f"{name}{ENDINGS[kind]}", rows)
    target = open_pictures(spec(kind, tmp_path), "target")
    assert target.class_names == ("ape", "bee")
    assert contents(target, "train") == named(parts[0] + parts[1])
    assert contents(target, "val") == named(parts[2])
    assert contents(target, "test") == named(parts[3])
    source = open_pictures(spec(kind, tmp_path), "source")
    assert contents(source, "train") == named(parts[0] + parts[1])
    assert source.ids == [target.ids[i] for i in target.rows("train")]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_and_a_glob_will_do(kind: str, tmp_path: Path) -> None:
    parts = [samples(6, [1, 0]), samples(6, [0, 1])]
    for n, rows in enumerate(parts):
        WRITERS[kind](tmp_path / f"part{n}" / f"rows{ENDINGS[kind]}", rows)
    one = spec(kind, f"part0/rows{ENDINGS[kind]}")
    assert contents(open_pictures(located(one, str(tmp_path)), "source"), "train") == named(
        parts[0]
    )
    both = spec(kind, tmp_path / "part*" / f"*{ENDINGS[kind]}")
    source = open_pictures(both, "source")
    assert contents(source, "train") == named(parts[0] + parts[1])
    assert source.ids[0].startswith(f"part0/rows{ENDINGS[kind]}#")
    assert not is_absent(both) and is_absent(spec(kind, tmp_path / "other*"))


@pytest.mark.parametrize("pattern", [
    "train-{000..146}.tar", "{9..11}", "{08..11}/x", "{8..010}", "{3..1}-{00..02}.tar", "{0..3}",
    "none.tar", "{1..}",
])  # fmt: skip
def test_numbers_in_braces_are_written_out_as_webdataset_does(pattern: str) -> None:
    assert [*numbered(pattern)] == webdataset.shardlists.expand_urls(pattern)


@pytest.mark.parametrize("kind", WRITERS)
def test_numbered_files_are_all_there_or_named(kind: str, tmp_path: Path) -> None:
    ending = ENDINGS[kind]
    parts = [samples(4, [0, 1]) for _ in range(4)]
    for n, rows in enumerate(parts):
        WRITERS[kind](tmp_path / f"part{n // 2}" / f"train-{n % 2:03d}{ending}", rows)
    both = spec(kind, f"part{{0..1}}/train-{{000..001}}{ending}")
    source = open_pictures(located(both, str(tmp_path)), "source")
    assert contents(source, "train") == named([row for rows in parts for row in rows])
    assert source.ids[0].startswith(f"part0/train-000{ending}#")
    one = spec(kind, tmp_path / "part0" / f"train-{{000..001}}{ending}")
    here = spec(kind, tmp_path / "part0")
    assert open_pictures(one, "source").ids == open_pictures(here, "source").ids
    assert not is_absent(one) and is_absent(spec(kind, tmp_path / f"part{{2..3}}/*{ending}"))
    more = spec(kind, tmp_path / "part1" / f"train-{{000..002}}{ending}")
    with pytest.raises(
        DatasetError, match=rf"part1/train-002\{ending} is not there, which .*\.\.0"
    ):
        open_pictures(more, "source")
    literal = tmp_path / f"{{0..1}}{ending}"
    WRITERS[kind](literal, parts[0])
    assert len(open_pictures(spec(kind, literal), "source")) == 4
    with pytest.raises(DatasetError, match=rf"or numbers such as train-{{000\.\.146}}\{ending}"):
        open_pictures(spec(kind, tmp_path / "nowhere"), "source")


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_one_picture_are_still_no_pictures(kind: str, tmp_path: Path) -> None:
    for n in range(3):
        WRITERS[kind](tmp_path / f"{n}{ENDINGS[kind]}", samples(1, [n]))
    source = open_pictures(spec(kind, tmp_path), "source")
    assert len(source.files) == len(source) == 3
    assert not source.one_file_each and source.place(1) == source.ids[1]
    last = source.take(np.array([2]))
    assert last.files == source.files and not last.one_file_each


@pytest.mark.parametrize("kind", WRITERS)
def test_without_a_test_split_val_serves_as_one(kind: str, tmp_path: Path) -> None:
    parts = {"train": samples(10, [0, 1]), "val": samples(4, [0, 1])}
    for name, rows in parts.items():
        WRITERS[kind](tmp_path / f"{name}{ENDINGS[kind]}", rows)
    target = open_pictures(spec(kind, tmp_path), "target")
    assert contents(target, "test") == named(parts["val"])
    assert sorted(contents(target, "train") + contents(target, "val")) == sorted(
        named(parts["train"])
    )
    WRITERS[kind](tmp_path / f"test{ENDINGS[kind]}", samples(3, [-1]))  # its labels are kept secret
    assert contents(open_pictures(spec(kind, tmp_path), "target"), "test") == named(parts["val"])


@pytest.mark.parametrize("kind", WRITERS)
def test_numbers_are_in_the_order_of_numbers(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"a{ENDINGS[kind]}", samples(12, [10, 9, 100]))
    source = open_pictures(spec(kind, tmp_path), "source")
    assert source.class_names == ("9", "10", "100")
    assert source.labels.tolist() == [1, 0, 2] * 4


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_are_read_in_any_order_by_many_threads(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "KEPT_BYTES", 1000)  # about one picture
    rows = samples(40, [0])
    for n in range(4):
        WRITERS[kind](tmp_path / f"{n}{ENDINGS[kind]}", rows[10 * n : 10 * n + 10])
    source = open_pictures(spec(kind, tmp_path), "source")
    order = [*range(40)] * 3
    random.Random(0).shuffle(order)
    gate = threading.Barrier(4)

    def read(n: int) -> bool:
        if n < 4:
            gate.wait()
        return bool(source.read(order[n]) == rows[order[n]][0])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(len(order))))


@pytest.mark.parametrize("kind", WRITERS)
def test_the_fingerprint_changes_with_the_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{ENDINGS[kind]}"
    rows = samples(6, [0, 1])
    WRITERS[kind](path, rows)
    os.utime(path, (1, 1))
    seen = {fingerprint(spec(kind, tmp_path), "source")}
    assert fingerprint(spec(kind, tmp_path), "source") in seen
    os.utime(path, (2, 2))
    seen.add(fingerprint(spec(kind, tmp_path), "source"))
    os.utime(path.rename(tmp_path / f"train{ENDINGS[kind]}"), (2, 2))
    seen.add(fingerprint(spec(kind, tmp_path), "source"))
    (tmp_path / "excluded.txt").write_text(
        open_pictures(spec(kind, tmp_path), "source").ids[0] + "\n"
    )
    seen.add(fingerprint(spec(kind, tmp_path, exclude=str(tmp_path / "excluded.txt")), "source"))
    assert len(seen) == 4


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_missing_or_ambiguous_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"no \{ENDINGS[kind]} files at .*nowhere; expected"):
        open_pictures(spec(kind, tmp_path / "nowhere"), "source")
    broken = tmp_path / "broken" / f"a{ENDINGS[kind]}"
    broken.parent.mkdir()
    broken.write_bytes(b"neither of them" * 100)
    with pytest.raises(DatasetError, match=rf"{kind}: .*broken/a.* cannot be read"):
        open_pictures(spec(kind, broken.parent), "source")
    two = tmp_path / "two"
    for name in ("train/test-0", "train/1"):
        WRITERS[kind](two / f"{name}{ENDINGS[kind]}", samples(2, [0]))
    with pytest.raises(DatasetError, match=r"train/test-0.* names test and train: train, val or"):
        open_pictures(spec(kind, two), "source")
    some = tmp_path / "some"
    for name in ("train", "extra"):
        WRITERS[kind](some / f"{name}{ENDINGS[kind]}", samples(2, [0]))
    with pytest.raises(DatasetError, match=r"extra\..* names no split, unlike others"):
        open_pictures(spec(kind, some), "source")
    WRITERS[kind](tmp_path / "secret" / f"a{ENDINGS[kind]}", samples(3, [0, -1]))
    with pytest.raises(DatasetError, match="label -1 is none of 1 classes"):
        open_pictures(spec(kind, tmp_path / "secret"), "source")
    mixed = tmp_path / "mixed"
    WRITERS[kind](mixed / f"a{ENDINGS[kind]}", samples(2, [0]))
    WRITERS[kind](mixed / f"b{ENDINGS[kind]}", samples(2, ["ape"]))
    told = r"labels are 0 \(int\) and 'ape' \(str\): they must be whole numbers or names"
    with pytest.raises(DatasetError, match=told):
        open_pictures(spec(kind, mixed), "source")


# -- Parquet ---------------------------------------------------------------------------------------


def test_columns_may_have_other_names_and_hugging_faces_form(tmp_path: Path) -> None:
    rows = samples(9, [2, 0, 1])
    structs = [{"bytes": picture, "path": "x.jpg"} for picture, _ in rows]
    features = {
        "img": {"_type": "Image"},
        "fine": {"names": ["c", "b", "a"], "_type": "ClassLabel"},
    }
    table = pyarrow.table(
        {"img": structs, "fine": [label for _, label in rows], "name": [f"p{n}" for n in range(9)]}
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    source = open_pictures(
        spec("parquet", tmp_path, image="img", label="fine", id="name"), "source"
    )
    assert source.class_names == ("c", "b", "a")
    assert source.ids == [f"p{n}" for n in range(9)]
    assert source.labels.tolist() == [2, 0, 1] * 3
    assert [source.read(n) for n in range(9)] == [picture for picture, _ in rows]
    with pytest.raises(DatasetError, match="no column 'image'; it has img, fine, name"):
        open_pictures(spec("parquet", tmp_path), "source")
    wrong = open_pictures(spec("parquet", tmp_path, image="fine", label="name"), "source")
    with pytest.raises(DatasetError, match=r"column 'fine' of .* does not hold pictures"):
        wrong.read(0)
    with pytest.raises(DatasetError, match=r"two pictures of .* have the id"):
        open_pictures(spec("parquet", tmp_path, image="img", label="fine", id="fine"), "source")


def test_whole_numbers_may_be_floats(tmp_path: Path) -> None:
    """pandas makes them so where some column of integers had a gap."""
    write_parquet(tmp_path / "rows.parquet", samples(4, [10.0, 9.0]))
    source = open_pictures(spec("parquet", tmp_path), "source")
    assert source.class_names == ("9", "10") and source.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("labels", "told"), [
    ([0.5, 1.5], r"1\.5 \(float\)"),
    ([0.0, None], r"0 \(int\) and None \(NoneType\)"),
    ([None, None], r"None \(NoneType\)"),
    ([float("nan"), 1.0], r"nan \(float\) and 1 \(int\)"),
    ([[0, 1], [2]], r"\[2\] \(list\)"),
    ([True, False], r"False \(bool\)"),
])  # fmt: skip
def test_other_labels_are_refused_by_column_and_type(
    labels: list[Any], told: str, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "rows.parquet", samples(4, labels))
    with pytest.raises(DatasetError, match=rf"column 'label': labels are {told}: they must be"):
        open_pictures(spec("parquet", tmp_path), "source")


@pytest.mark.parametrize("struct", [False, True])
def test_empty_pictures_can_be_skipped(struct: bool, tmp_path: Path) -> None:
    contents = [encoded() if n % 3 else None for n in range(6)]
    images = [{"bytes": one, "path": None} for one in contents] if struct else contents
    table = pyarrow.table({"image": images, "label": [0, 1] * 3})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    check_empty(spec("parquet", tmp_path), [0, 3], tmp_path / "store", r"rows\.parquet#0")


def test_labels_beyond_the_names_are_refused(tmp_path: Path) -> None:
    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    table = pyarrow.table({"image": [b"1", b"2"], "label": [0, 2]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DatasetError, match="label 2 is none of 2 classes"):
        open_pictures(spec("parquet", tmp_path), "source")


def test_few_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "rows.parquet", samples(40, [0]))
    groups = parquet._RowGroups("image")
    opened, original = list[Path](), pyarrow.parquet.ParquetFile

    def open_file(file: Path) -> Any:
        opened.append(file)
        return original(file)

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", open_file)
    for row in range(40):
        groups.read(tmp_path / "rows.parquet", row // 4, row % 4)
    assert len(opened) == 10 == len(groups._kept)
    monkeypatch.setattr(parquet, "KEPT_BYTES", 0)
    groups.read(tmp_path / "rows.parquet", 9, 0)
    groups.read(tmp_path / "rows.parquet", 0, 0)
    assert len(opened) == 10
    other = parquet._RowGroups("image")
    for group in (0, 1):
        other.read(tmp_path / "rows.parquet", group, 0)
    assert [key[1] for key in other._kept] == [1]


# -- WebDataset ------------------------------------------------------------------------------------


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


# webdataset leaves the file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shard_is_read_as_webdataset_reads_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        add(shard, "a/0001.png", encoded("PNG"))
        add(shard, "a/0001.json", b'{"label": 3, "text": "x"}')
        add(shard, "a/0001.seg.png", encoded("PNG"))  # another component, not the picture
        add(shard, "a/" + "long" * 40 + ".jpeg", encoded())  # a name that a plain head cannot hold
        add(shard, "a/" + "long" * 40 + ".cls", b"1\n")
        add(shard, "b/0001.webp", encoded("WEBP"))
        add(shard, "b/0001.json", b'{"label": 7}')
        add(shard, "b/0001.cls", b"1")  # goes before a label in JSON
        add(shard, "notes.txt", b"none of a sample")
    ours = open_pictures(WebDataset(path=str(tmp_path)), "source")
    theirs = [
        sample
        for sample in webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)
        if "txt" not in sample
    ]
    assert ours.ids == [f"0.tar#{sample['__key__']}" for sample in theirs]
    for i, sample in enumerate(theirs):
        picture = next(sample[ending] for ending in ("png", "jpeg", "webp") if ending in sample)
        label = sample.get("cls") or str(json.loads(sample["json"])["label"]).encode()
        assert ours.read(i) == picture
        assert ours.class_names[ours.labels[i]] == label.decode().strip()


def test_class_names_may_lie_beside_the_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "0.tar", samples(4, [2, 0]))
    (tmp_path / "classnames.txt").write_text("ape\nbee\ncat\n")
    here = WebDataset(path=str(tmp_path))
    source, seen = open_pictures(here, "source"), fingerprint(here, "source")
    assert source.class_names == ("ape", "bee", "cat") and source.labels.tolist() == [2, 0, 2, 0]
    (tmp_path / "classnames.txt").write_text("ape\nbee\ndog\n")
    os.utime(tmp_path / "classnames.txt", (1, 1))
    assert fingerprint(here, "source") != seen


def test_a_picture_without_a_class_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        add(shard, "a.jpg", encoded())
        add(shard, "a.json", b'{"text": "x"}')
    with pytest.raises(DatasetError, match=r"a of .*0\.tar has no class: a\.cls, or `label` in a"):
        open_pictures(WebDataset(path=str(tmp_path)), "source")


@pytest.mark.parametrize(("content", "told"), [
    (b'{"label": [1, 2]}', r"`label` in a\.json of .*0\.tar is \[1, 2\] \(list\): it must be"),
    (b'{"label": {}}', r"`label` in a\.json of .*0\.tar is \{\} \(dict\): it must be"),
    (b'{"label": true}', r"`label` in a\.json of .*0\.tar is True \(bool\): it must be"),
    (b'{"label": null}', r"a of .*0\.tar has no class"),
    (b'[{"label": 1}]', r"a of .*0\.tar has no class"),
    (b'{"label": 1.5}', r"labels are 1\.5 \(float\)"),
])  # fmt: skip
def test_json_that_names_no_class_is_refused_unless_another_file_does(
    content: bytes, told: str, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        add(shard, "a.jpg", encoded())
        add(shard, "a.json", content)
    with pytest.raises(DatasetError, match=told):
        open_pictures(WebDataset(path=str(tmp_path)), "source")
    with tarfile.open(tmp_path / "0.tar", "a") as shard:
        add(shard, "a.cls", b"ape")
    assert open_pictures(WebDataset(path=str(tmp_path)), "source").class_names == ("ape",)


def test_a_key_that_comes_twice_is_refused_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for label in (b"0", b"1"):
            add(shard, "a.jpg", encoded())
            add(shard, "a.cls", label)
    with pytest.raises(DatasetError, match=r"0\.tar has a twice"):
        open_pictures(WebDataset(path=str(tmp_path)), "source")
