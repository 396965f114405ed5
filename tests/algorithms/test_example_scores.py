from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from dp4tl_ray.algorithms import example_scores
from dp4tl_ray.algorithms.example_scores import (
    el2n_scores,
    grand_last_layer_scores,
    uncertainty_scores,
)

N, D, C = 30, 6, 8
MEASURES: list[Any] = ["entropy", "margin", "least_confidence"]


def logits(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 2, (N, C)).astype(np.float32)


def features(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (N, D)).astype(np.float32)


LABELS = np.arange(N) % C


def probabilities(logits_NC: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    p: npt.NDArray[np.float64] = torch.softmax(torch.from_numpy(logits_NC).double(), 1).numpy()
    return p


def test_el2n_is_the_gradient_norm_in_the_logits() -> None:
    norms = []
    for row, label in zip(torch.from_numpy(logits(0)).double(), LABELS.tolist(), strict=True):
        row.requires_grad_(True)
        F.cross_entropy(row, torch.tensor(label)).backward()  # type: ignore[no-untyped-call]
        assert row.grad is not None
        norms.append(float(row.grad.norm()))
    np.testing.assert_allclose(el2n_scores(logits(0), LABELS), norms, rtol=1e-6)


def test_el2n_tells_confident_examples_apart() -> None:
    z = np.array([[20, 0], [25, 0], [30, 0], [0, 30]], np.float32)
    expected = np.sqrt(2) / (1 + np.exp([20.0, 25.0, 30.0, -30.0]))
    np.testing.assert_allclose(el2n_scores(z, np.zeros(4, np.int64)), expected, rtol=1e-6)


def test_grand_of_the_last_layer_matches_a_loop_of_autograd() -> None:
    h_ND, weight_CD = torch.from_numpy(features(1)), torch.from_numpy(features(2)[:C])
    bias_C = torch.linspace(-1, 1, C)
    weight_CD.requires_grad_(True)
    bias_C.requires_grad_(True)
    norms = []
    for h_D, label in zip(h_ND, LABELS.tolist(), strict=True):
        loss = F.cross_entropy(F.linear(h_D, weight_CD, bias_C), torch.tensor(label))
        gradients = torch.autograd.grad(loss, [weight_CD, bias_C])
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
    z_NC = F.linear(h_ND, weight_CD, bias_C).detach().numpy()
    scores = grand_last_layer_scores(z_NC, h_ND.numpy(), LABELS)
    np.testing.assert_allclose(scores, norms, rtol=1e-4, atol=1e-6)


def test_entropy_matches_scipy() -> None:
    expected = scipy.stats.entropy(probabilities(logits(3)), axis=1)
    np.testing.assert_allclose(uncertainty_scores(logits(3), "entropy"), expected, rtol=1e-5)


def test_margin_and_least_confidence_match_a_sort() -> None:
    for row, margin, least in zip(
        probabilities(logits(4)).tolist(),
        uncertainty_scores(logits(4), "margin"),
        uncertainty_scores(logits(4), "least_confidence"),
        strict=True,
    ):
        first, second, *_ = sorted(row, reverse=True)
        assert margin == pytest.approx(second - first, rel=1e-5)
        assert least == pytest.approx(1 - first, rel=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_uniform_prediction_is_the_most_uncertain(measure: Any) -> None:
    z = logits(5)
    z[7] = 1.5
    best = {"entropy": np.log(C), "margin": 0.0, "least_confidence": 1 - 1 / C}
    scores = uncertainty_scores(z, measure)
    assert scores.argmax() == 7
    assert scores[7] == pytest.approx(best[measure], rel=1e-6)


SCORES: dict[str, Any] = {
    "el2n": lambda z, h, y: el2n_scores(z, y),
    "grand": grand_last_layer_scores,
    **{m: lambda z, h, y, m=m: uncertainty_scores(z, m) for m in MEASURES},
}


@pytest.mark.parametrize("name", SCORES)
def test_halves_memory_maps_chunks_and_order_change_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, h = logits(6).astype(np.float16), features(6).astype(np.float16)
    whole = SCORES[name](z.astype(np.float32), h.astype(np.float32), LABELS)
    mapped = []
    for key, array in (("z", z), ("h", h)):
        np.save(tmp_path / f"{key}.npy", array)
        mapped.append(np.load(tmp_path / f"{key}.npy", mmap_mode="r"))
    monkeypatch.setattr(example_scores, "CACHE_BYTES", 7 * 8 * C)
    assert (SCORES[name](*mapped, LABELS) == whole).all()
    order = np.random.default_rng(0).permutation(N)
    assert (SCORES[name](z[order], h[order], LABELS[order]) == whole[order]).all()


@pytest.mark.parametrize("name", SCORES)
def test_scores_ignore_a_shift_and_leave_the_logits_alone(name: str) -> None:
    z = logits(7)
    before = z.copy()
    scores = SCORES[name](z, features(7), LABELS)
    assert (z == before).all()
    np.testing.assert_allclose(SCORES[name](z + 500, features(7), LABELS), scores, rtol=1e-3)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="29 labels, but logits of 30 examples"):
        el2n_scores(logits(0), LABELS[:-1])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 8\), got 1 to 8"):
        el2n_scores(logits(0), LABELS + 1)
    with pytest.raises(ValueError, match="29 features, but logits of 30 examples"):
        grand_last_layer_scores(logits(0), features(0)[:-1], LABELS)
    with pytest.raises(ValueError, match="2 classes or more, got 1"):
        uncertainty_scores(logits(0)[:, :1], "margin")
