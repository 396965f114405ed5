"""Lists of examples from elsewhere: how they are read, and what is refused."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ray.contents import Contents
from dp4tl_ray.scoring.elsewhere import ScorerError
from dp4tl_ray.scoring.examples import score_examples
from dp4tl_ray.scoring.given import (
    Listing,
    check_lists,
    left_out_alarm,
    list_scores,
    read_list,
    rows_of_list,
    shortage,
)
from dp4tl_ray.scoring.inputs import ScorerInputs
from dp4tl_ray.specs.example_methods import Given
from dp4tl_ray.specs.load import StudyError
from tests.conftest import folder, tiny_study

IDS = [f"class {k}/picture, {n}.png" for k in range(3) for n in range(4)]
ORDER = [7, 2, 11, 0, 5]
WHOLE = Listing(np.arange(len(IDS)))


def write(folder: Path, name: str, names: list[str]) -> Path:
    """Write a list in the format of its file's name."""
    path, rows = folder / name, [IDS.index(n) if n in IDS else 99 for n in names]
    match path.suffix:
        case ".txt":
            path.write_text("".join(f"{n}\n" for n in names))
        case ".npy":
            np.save(path, np.array(rows, np.int32))
        case ".json":
            path.write_text(json.dumps({"format": "dp4tl_ray subset", "ids": names}))
        case ".csv" if "index" in name:
            path.write_text("label,index\n" + "".join(f"x,{row}\n" for row in rows))
        case ".csv":
            path.write_text("index,id\n" + "".join(f'{50},"{n}"\r\n' for n in names))
    return path


FORMATS = ["a.txt", "a.csv", "index.csv", "a.npy", "a.json", "A.TXT"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows_in_the_order_of_the_file(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path, name.lower(), [IDS[row] for row in ORDER]).rename(tmp_path / name)
    assert rows_of_list(str(path), lambda: IDS, WHOLE).tolist() == ORDER


def test_a_list_of_indices_reads_no_ids(tmp_path: Path) -> None:
    path = write(tmp_path, "a.npy", [IDS[row] for row in ORDER])

    def ids() -> list[str]:
        raise AssertionError

    assert rows_of_list(str(path), ids, WHOLE).tolist() == ORDER


@pytest.mark.parametrize("name", FORMATS[:-1])
def test_what_was_left_out_has_no_row_and_moves_no_other(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, [IDS[row] for row in ORDER])
    left_out = [2, 4, 11]  # the last one too, which the other rows cannot tell
    there = [row for row in range(len(IDS)) if row not in left_out]
    listing = Listing(np.array(there), [IDS[row] for row in left_out])
    rows = rows_of_list(str(path), lambda: [IDS[row] for row in there], listing)
    assert [there[row] for row in rows] == [7, 0, 5]
    alarm = left_out_alarm(str(path), list_scores(rows, len(there)))
    assert alarm.startswith(f"2 of the 5 examples that {path} lists were left out of the source")
    assert not left_out_alarm(str(path), list_scores(np.array(ORDER), len(IDS)))


@pytest.mark.parametrize("name", FORMATS[:-1])
def test_what_was_left_out_is_not_listed_twice_either(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, [IDS[0], IDS[11], IDS[11]])
    with pytest.raises(ScorerError, match="more than once: 2 of its 3 examples differ"):
        rows_of_list(str(path), lambda: IDS[:11], Listing(np.arange(11), IDS[11:]))


def test_what_is_not_known_to_be_left_out_is_of_another_dataset(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", [IDS[0], IDS[10], IDS[11]])
    with pytest.raises(ScorerError, match="another dataset: 1 of its 3 ids"):
        rows_of_list(str(path), lambda: IDS[:10], Listing(np.arange(10), IDS[10:11]))
    path = write(tmp_path, "a.npy", [IDS[0], IDS[10], IDS[11]])
    with pytest.raises(ScorerError, match="index 11 is not among the source's, 0 to 10"):
        rows_of_list(str(path), lambda: IDS[:10], Listing(np.arange(10), IDS[10:11]))


def test_text_from_a_spreadsheet_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa b.png\r\n\r\nc.png\r\n")
    assert read_list(str(tmp_path / "a.txt")) == ["a b.png", "c.png"]


def test_the_first_are_kept_first_and_the_rest_never_before_them(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", [IDS[row] for row in ORDER])
    labels = np.zeros(len(IDS), np.int64)
    inputs = ScorerInputs(labels, 1, seed=0, ids=lambda: IDS)
    score, tie_break = score_examples(Given(path=str(path)), inputs)
    best_first = sorted(range(len(IDS)), key=lambda row: (-score[row], row))
    assert best_first[: len(ORDER)] == ORDER
    assert not tie_break.any() and not np.isnan(score).any()


REFUSED: list[tuple[str, list[str], list[str]]] = [
    ("a.txt", [IDS[0], "other.png"], ["a.txt is of another dataset: 1 of its 2", "'other.png'"]),
    ("a.txt", [IDS[0], IDS[1], IDS[0]], [f"a.txt lists id {IDS[0]!r} more than once: 2 of its 3"]),
    ("a.npy", [IDS[3], IDS[3]], ["a.npy lists index 3 more than once: 1 of its 2"]),
    ("a.npy", [IDS[0], "outside"], ["a.npy is of another dataset: index 99", "0 to 11"]),
    ("a.json", ["x"], ["'x'; the source's are like 'class 0/picture, 0.png'"]),
    ("a.txt", [], ["a.txt: lists no example"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "names", "fragments"), REFUSED)
def test_what_is_no_list_of_the_source_is_refused_by_name(
    tmp_path: Path, name: str, names: list[str], fragments: list[str]
) -> None:
    path = write(tmp_path, name, names)
    with pytest.raises(ScorerError) as caught:
        rows_of_list(str(path), lambda: IDS, WHOLE)
    for fragment in fragments:
        assert fragment in str(caught.value)


CONTENTS: list[tuple[str, Any, str]] = [
    ("a.parquet", "", "its name ends in '.parquet'; allowed: .txt"),
    ("a", "", "its name ends in 'nothing'; allowed: .txt"),
    ("a.csv", "name,score\nx,1\n", "needs a column id or index; its first line has name, score"),
    ("a.csv", "index\n1\n1.5\n", "a.csv: line 3: index '1.5' is no whole number"),
    ("a.csv", "index\n99999999999999999999\n", "a.csv: "),
    ("a.csv", "index,id\n1,x\n\n2\n", "a.csv: line 4 has no id"),
    ("a.csv", "label,index\nx\n", "a.csv: line 2 has no index"),
    ("a.csv", "index,label\n,x\n", "a.csv: line 2 has no index"),
    ("a.npy", "", "a.npy: "),
    ("a.csv", "", "needs a column id or index"),
    ("a.json", "[1]", "is not of `dp4tl export --format dp4tl`"),
    ("a.json", '{"format": "dp4tl_ray subset", "ids": [1]}', "needs ids, a list of texts"),
    ("a.json", "{", "a.json: "),
    ("a.npy", np.ones(3), "needs one array of indices, whole numbers (n,); it holds float64"),
    ("a.npy", np.ones((2, 2), int), "of shape (2, 2)"),
    ("a.npy", np.array([True, False]), "it holds bool"),
    ("a.npy", np.array(["x", None]), "a.npy: "),
    ("gone.txt", None, "gone.txt: No such file"),
]


@pytest.mark.parametrize(("name", "content", "fragment"), CONTENTS)
def test_what_is_no_list_is_refused_by_name(
    tmp_path: Path, name: str, content: Any, fragment: str
) -> None:
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif content is not None:
        np.save(tmp_path / name, content, allow_pickle=True)
    with pytest.raises(ScorerError) as caught:
        read_list(str(tmp_path / name))
    assert fragment in str(caught.value) and str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("total", [7, 144, 8640, 1_281_167])
def test_the_ratio_that_is_named_is_served_and_hardly_a_smaller_one(total: int) -> None:
    for length in {1, total // 3, total // 2, total - 1}:
        assert shortage("x", length, total, 1 - length / total) == ""
        named = shortage("x", length, total, 0.0).split("from ")[1].split(" on")[0]
        assert shortage("x", length, total, float(named)) == ""
        # exact: the smallest ratio that keeps no more than the list has, and half an example
        least = 1 - (Fraction(length) + Fraction(1, 2)) / total
        assert 0 <= Fraction(named) - least <= Fraction(1, 2) / total + Fraction(1, 10**6)


def test_a_list_that_is_too_short_is_refused_before_any_work(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(72))
    methods = ["random_classes", {"method": "given", "path": str(path)}]
    check_lists(tiny_study(pictures, methods=methods, pruning_ratios=[0.0, 0.5, 0.9]))
    with pytest.raises(StudyError) as caught:
        check_lists(tiny_study(pictures, methods=methods, pruning_ratios=[0.0, 0.25, 0.5]))
    assert str(caught.value) == (
        f"methods[1].path: given {path} lists 72 examples, and pruning_ratio 0.25 keeps 108 of "
        "144: it serves ratios from 0.5 on"
    )


def test_a_list_is_left_to_the_prune_step_where_pictures_may_be_skipped(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(70))  # what 0.5 keeps of 141, should three not decode
    methods, source = [{"method": "given", "path": str(path)}], pictures["source"]
    check_lists(tiny_study(pictures, source=folder(source, corrupt="skip"), methods=methods))
    with pytest.raises(StudyError, match="keeps 72 of 144"):
        check_lists(tiny_study(pictures, methods=methods))


def test_what_is_not_here_is_not_checked_where_it_may_be_missing(
    pictures: dict[str, str], tmp_path: Path
) -> None:
    study = tiny_study(pictures, methods=[{"method": "given", "path": str(tmp_path / "gone.npy")}])
    check_lists(study, absent=[])
    with pytest.raises(ScorerError, match=r"gone\.npy: No such file"):
        check_lists(study)


def test_the_content_of_a_list_is_part_of_its_identity(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", IDS[:2])
    before = Contents()(Given(path=str(path)))
    assert len(before) == 64
    write(tmp_path, "a.txt", IDS[1:3])
    assert Contents()(Given(path=str(path))) != before
