from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import log_softmax

from dp4tl_ray.algorithms.memory import row_chunks
from dp4tl_ray.training import recorder as recorder_module
from dp4tl_ray.training.checkpoint import Checkpoint
from dp4tl_ray.training.examples import batches
from dp4tl_ray.training.fit import fit
from dp4tl_ray.training.recorder import Dynamics, DynamicsRecorder
from dp4tl_ray.training.worker import Worker
from tests.training.test_fit import (
    KilledError,
    die,
    equal,
    examples,
    network,
    recipe,
    weights,
)

N, C = 11, 4
LABELS = np.arange(N) % C


def logits_of(position: int, epoch: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng([position, epoch]).normal(0, 2, C).astype(np.float32)


def feed(recorder: DynamicsRecorder, batch_size: int, steps: int) -> None:
    """Feed a stream to a recorder, as `fit` does."""
    for step, positions in enumerate(islice(batches(N, batch_size, 0, 0), steps)):
        first, end = step * batch_size, (step + 1) * batch_size
        places = zip(positions, range(first, end), strict=True)
        logits = np.stack([logits_of(position, place // N) for position, place in places])
        labels = torch.from_numpy(LABELS[positions])
        recorder.record(first, np.array(positions), labels, torch.from_numpy(logits))
        recorder.end_epoch(end)


@pytest.mark.parametrize(
    ("batch_size", "steps", "epochs"), [(1, 33, 3), (4, 9, 3), (11, 3, 3), (15, 3, 4), (50, 2, 9)]
)
def test_histories_match_their_definition(
    batch_size: int, steps: int, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_three = partial(row_chunks, budget=3 * 20 * C)
    monkeypatch.setattr(recorder_module, "row_chunks", by_three)
    recorder = DynamicsRecorder(N, C, Worker(), divergences=True)
    feed(recorder, batch_size, steps)
    found = recorder.dynamics()
    assert found.divergence_EN is not None
    assert found.correct_EN.shape == found.margin_EN.shape == (epochs, N)
    assert found.divergence_EN.shape == (epochs - 1, N)
    for epoch in range(epochs):
        for i, label in enumerate(LABELS):
            z = logits_of(i, epoch)
            log_p = log_softmax(z.astype(np.float64))
            others = np.delete(z, label)
            assert found.correct_EN[epoch, i] == (z[label] > others.max())
            assert found.margin_EN[epoch, i] == z[label] - others.max()
            probability = found.true_probability_EN[epoch, i]
            assert probability == pytest.approx(np.exp(log_p[label]), rel=1e-5)
            if epoch:
                last = log_softmax(logits_of(i, epoch - 1).astype(np.float64))
                divergence = sum(abs(np.exp(log_p) * (log_p - last)))
                assert found.divergence_EN[epoch - 1, i] == pytest.approx(divergence, rel=5e-3)


def test_small_steps_of_sure_predictions_are_resolved() -> None:
    recorder = DynamicsRecorder(2, 2, Worker(), divergences=True)
    labels = torch.zeros(2, dtype=torch.int64)
    for epoch, gap in enumerate(([9.0, 10.0], [10.0, 10.5])):
        logits = torch.tensor([[g, 0.0] for g in gap])
        recorder.record(2 * epoch, np.arange(2), labels, logits)
        recorder.end_epoch(2 * epoch + 2)
    history = recorder.dynamics().divergence_EN
    assert history is not None
    now, last = (log_softmax([[a, 0.0], [b, 0.0]], axis=1) for a, b in ((10, 10.5), (9, 10)))
    expected = (np.exp(now) * np.abs(now - last)).sum(axis=1)
    np.testing.assert_allclose(history[0], expected, rtol=1e-2)


def test_without_a_complete_epoch_there_is_no_history() -> None:
    recorder = DynamicsRecorder(N, C, Worker(), divergences=True)
    feed(recorder, batch_size=4, steps=2)
    assert [len(table) for table in vars(recorder.dynamics()).values()] == [0, 0, 0, 0]


# -- in a training ---------------------------------------------------------------------------------


SHORT = recipe(budget={"examples_seen": 184})  # three epochs, and a part of a fourth


def fresh(worker: Worker) -> DynamicsRecorder:
    return DynamicsRecorder(60, 3, worker, divergences=True)


def same(a: Dynamics, b: Dynamics) -> bool:
    return all(np.array_equal(x, vars(b)[name]) for name, x in vars(a).items())


def test_a_recorder_changes_nothing_in_the_training() -> None:
    plain, recorded = network(), network()
    recorder = DynamicsRecorder(60, 3, Worker(), divergences=False)
    fit(plain, examples(), recipe(ema=0.2), 0, Worker())
    fit(recorded, examples(), recipe(ema=0.2), 0, Worker(), recorder=recorder)
    assert equal(weights(plain), weights(recorded))
    dynamics = recorder.dynamics()
    assert dynamics.correct_EN.shape == (4, 60)
    assert dynamics.divergence_EN is None
    # resumed and two-worker runs are compared to this kind of history: it must hold something
    assert 0.2 < dynamics.correct_EN.mean() < 1


def test_histories_after_resuming_are_bit_equal(tmp_path: Path) -> None:
    straight, halted, resumed = (fresh(Worker()) for _ in range(3))
    fit(network(), examples(), recipe(), 0, Worker(), recorder=straight)
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(KilledError):
        fit(network(), examples(), recipe(), 0, Worker(report=die), checkpoint, halted)
    saved = checkpoint.newest()
    assert saved is not None
    assert saved.size("recorder.open.positions") == (4,)  # the first epoch ends inside a batch
    fit(network(5), examples(), recipe(), 0, Worker(), checkpoint, resumed)
    assert same(resumed.dynamics(), straight.dynamics())


def test_a_last_epoch_that_is_cut_short_is_dropped() -> None:
    recorder = fresh(Worker())
    fit(network(), examples(), recipe(budget={"examples_seen": 160}), 0, Worker(), None, recorder)
    assert len(recorder.dynamics().margin_EN) == 2
