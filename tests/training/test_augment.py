import numpy as np
import pytest
import torch

from dp4tl_ray.specs.training import Augmentation
from dp4tl_ray.training.augment import augment, draw_changes


def pixels(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def test_nothing_asked_nothing_changed() -> None:
    x, spec = pixels(), Augmentation()
    assert augment(x, spec, draw_changes(spec, 6, np.random.default_rng(0))) is x


def test_shift_and_flip_match_their_definition() -> None:
    x, spec = pixels(), Augmentation(shift=2, flip=True)
    changes = draw_changes(spec, 6, np.random.default_rng(1))
    y = augment(x, spec, changes)
    assert changes.flip_N.any() and not changes.flip_N.all()
    for i in range(6):
        down, right = changes.shift_N2[i]
        for row in range(8):
            for column in range(8):
                r = min(7, max(0, row - down))
                c = column - right
                c = 7 - c if changes.flip_N[i] else c
                c = min(7, max(0, c))
                assert torch.equal(y[i, :, row, column], x[i, :, r, c])


def test_a_worker_changes_its_rows_as_the_whole_batch_would() -> None:
    x, spec = pixels(), Augmentation(shift=1, flip=True, crop=0.5)
    changes = draw_changes(spec, 6, np.random.default_rng(2))
    part = slice(3, 6)
    whole = augment(x, spec, changes)[part]
    torch.testing.assert_close(augment(x[part], spec, changes.rows(part)), whole)


@pytest.mark.parametrize("crop", [0.08, 0.5, 0.99])
def test_crops_stay_inside_and_keep_their_share(crop: float) -> None:
    changes = draw_changes(Augmentation(crop=crop), 500, np.random.default_rng(3))
    centre, half = changes.crop_N4[:, :2], changes.crop_N4[:, 2:]
    assert (np.abs(centre) + half <= 1 + 1e-9).all()
    area = half.prod(axis=1)
    assert area.min() >= crop - 1e-9 and area.max() <= 1 + 1e-9
    ratio = half[:, 1] / half[:, 0]
    assert ratio.max() <= 4 / 3 + 1e-9 and ratio.min() >= 3 / 4 - 1e-9
