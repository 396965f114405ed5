from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from aum import AUMCalculator

from dp4tl_ray.algorithms import dynamics
from dp4tl_ray.algorithms.dynamics import (
    aum_scores,
    dyn_unc_scores,
    forgetting_scores,
    tdds_scores,
)
from dp4tl_ray.algorithms.memory import row_chunks

EPOCHS, EXAMPLES = 7, 40


def table(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).random((EPOCHS, EXAMPLES), dtype=np.float32)


def correct(seed: int) -> npt.NDArray[np.bool_]:
    """Some examples are learned late, some never."""
    x = table(seed) > 0.5
    x[:, 3::10] = False
    return x


@pytest.mark.parametrize("seed", range(5))
def test_forgetting_replays_the_epochs_one_by_one(seed: int) -> None:
    replayed = []
    for history in correct(seed).T.tolist():
        learned, forgotten, last = False, 0, False
        for now in history:
            forgotten += last and not now
            learned |= now
            last = now
        replayed.append(float(forgotten) if learned else np.inf)
    assert forgetting_scores(correct(seed)).tolist() == replayed
    assert len(set(replayed)) > 3


def test_the_never_learned_are_kept_before_the_forgotten_and_these_before_the_rest() -> None:
    histories = [[0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    scores = forgetting_scores(np.array(histories, bool).T)
    assert scores.tolist() == [np.inf, 2, 1, 0, 0]


def test_aum_matches_the_package_of_its_authors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, EXAMPLES)
    calculator = AUMCalculator(str(tmp_path))
    margins = []
    for _ in range(EPOCHS):
        logits = rng.normal(size=(EXAMPLES, 5)).astype(np.float32)
        last = calculator.update(
            torch.from_numpy(logits), torch.from_numpy(labels), list(range(EXAMPLES))
        )
        true = logits[np.arange(EXAMPLES), labels]
        logits[np.arange(EXAMPLES), labels] = -np.inf
        margins.append(true - logits.max(axis=1))
    area = [last[i].aum for i in range(EXAMPLES)]
    np.testing.assert_allclose(aum_scores(np.stack(margins), keep="easy"), area, rtol=1e-6)


def test_hard_aum_keeps_low_margins_and_easy_aum_high_ones() -> None:
    margin_EN = np.array([[-1.0, 3.0], [-2.0, 4.0]], np.float32)
    assert aum_scores(margin_EN).tolist() == [1.5, -3.5]
    assert aum_scores(margin_EN, keep="easy").tolist() == [-1.5, 3.5]


@pytest.mark.parametrize("window", [2, 3, EPOCHS])
def test_dyn_unc_matches_its_definition(window: int) -> None:
    p = table(1)
    by_hand = []
    for history in p.T.tolist():
        starts = range(EPOCHS - window + 1)
        by_hand.append(mean(stdev(history[s : s + window]) for s in starts))
    np.testing.assert_allclose(dyn_unc_scores(p, window), by_hand, rtol=1e-12)


def test_dyn_unc_keeps_the_undecided() -> None:
    sure, moving = [0.9] * 4, [0.1, 0.9, 0.1, 0.9]
    scores = dyn_unc_scores(np.array([sure, moving]).T, window=3)
    assert scores[0] == 0 < scores[1]


@pytest.mark.parametrize("window", [3, 4, EPOCHS + 1])
@pytest.mark.parametrize("decay", [0.9, 0.3, 1.0])
def test_tdds_matches_its_definition(window: int, decay: float) -> None:
    k = table(2)  # steps between one epoch more
    last = EPOCHS + 1 - window
    by_hand = []
    for steps in k.T.tolist():
        total = 0.0
        for start in range(last + 1):
            seen = steps[start : start + window - 1]
            center = sum(seen) / len(seen)
            norm = sum((x - center) ** 2 for x in seen) ** 0.5
            total += norm * decay * (1 - decay) ** (last - start)
        by_hand.append(total)
    np.testing.assert_allclose(tdds_scores(k, window, decay), by_hand, rtol=1e-9)


def test_tdds_of_a_single_window_is_a_deviation() -> None:
    k = table(3)
    expected = k.astype(np.float64).std(axis=0) * np.sqrt(EPOCHS)
    np.testing.assert_allclose(tdds_scores(k, EPOCHS + 1, decay=1.0), expected, rtol=1e-9)


def test_tdds_keeps_what_moves_unevenly_and_late() -> None:
    steady, early, late = [0.5] * 6, [2.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2.0]
    scores = tdds_scores(np.array([steady, early, late]).T, window=3)
    assert scores[0] == 0 < scores[1] < scores[2]


SCORES: dict[str, Any] = {
    "forgetting": lambda x: forgetting_scores(x > 0.5),
    "aum": aum_scores,
    "dyn_unc": lambda x: dyn_unc_scores(x, window=3),
    "tdds": lambda x: tdds_scores(x, window=3),
}


@pytest.mark.parametrize("name", SCORES)
def test_permuting_examples_permutes_scores_whatever_the_chunks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = np.random.default_rng(0).permutation(EXAMPLES)
    whole = SCORES[name](table(4))
    assert (SCORES[name](table(4)[:, order]) == whole[order]).all()
    by_seven = partial(row_chunks, budget=7 * 16 * EPOCHS)
    monkeypatch.setattr(dynamics, "row_chunks", by_seven)
    assert (SCORES[name](table(4)) == whole).all()


def test_a_memory_mapped_table_of_halves_is_accepted(tmp_path: Path) -> None:
    halves = table(5).astype(np.float16)
    np.save(tmp_path / "table.npy", halves)
    mapped = np.load(tmp_path / "table.npy", mmap_mode="r")
    for name in ("aum", "dyn_unc", "tdds"):
        assert (SCORES[name](mapped) == SCORES[name](halves.astype(np.float64))).all()


def test_too_few_epochs_are_refused() -> None:
    one = np.ones((1, 3), np.float32)
    for name, short in (("forgetting", one), ("aum", one), ("dyn_unc", one), ("tdds", one[:0])):
        with pytest.raises(ValueError, match="2 complete epochs or more, got 1"):
            SCORES[name](short)


def test_a_window_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window must be in \[2, 7\] for 7 .*, got 8"):
        dyn_unc_scores(table(0), window=8)
    with pytest.raises(ValueError, match=r"window must be in \[3, 8\] for 8 .*, got 10"):
        tdds_scores(table(0))
    with pytest.raises(ValueError, match=r"window must be in \[3, 8\]"):
        tdds_scores(table(0), window=2)


def test_a_decay_outside_its_range_is_refused() -> None:
    for decay in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"decay must be in \(0, 1\]"):
            tdds_scores(table(0), window=3, decay=decay)
