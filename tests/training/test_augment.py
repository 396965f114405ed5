from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from dp4tl_ray.specs.self_supervised import MOCO_V2_VIEW
from dp4tl_ray.specs.training import Augmentation
from dp4tl_ray.training import augment as module
from dp4tl_ray.training.augment import Changes, augment, draw_changes
from dp4tl_ray.training.color import Rows

MOVED = Augmentation(shift=2, flip=True, crop=0.5)


def pixels(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def cropped(n: int, top: int, left: int, height: int, width: int) -> Changes:
    """Return the crop of a box of pixels, from images of 8 x 8."""
    centre = [(2 * top + height) / 8 - 1, (2 * left + width) / 8 - 1]
    box = np.tile([*centre, height / 8, width / 8], (n, 1))
    return Changes(np.zeros((n, 2), np.int64), np.zeros(n, np.bool_), box, None)


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


@pytest.mark.parametrize("box", [(0, 0, 8, 8), (2, 1, 4, 6), (3, 5, 2, 3), (6, 0, 1, 1)])
def test_a_crop_is_the_cropped_image_enlarged(box: tuple[int, int, int, int]) -> None:
    top, left, height, width = box
    x = pixels()
    inside = x[:, :, top : top + height, left : left + width]
    enlarged = F.interpolate(inside, (8, 8), mode="bilinear", align_corners=False)
    y = augment(x, Augmentation(crop=0.01), cropped(6, *box))
    torch.testing.assert_close(y, enlarged, atol=1e-5, rtol=0)


def test_shift_and_flip_come_before_the_crop() -> None:
    x, changes = pixels(), draw_changes(MOVED, 6, np.random.default_rng(1))
    assert changes.flip_N.any() and not changes.flip_N.all()
    moved = augment(x, Augmentation(shift=2, flip=True), replace(changes, crop_N4=None))
    still = replace(
        changes, shift_N2=np.zeros_like(changes.shift_N2), flip_N=np.zeros_like(changes.flip_N)
    )
    one_by_one = augment(moved, Augmentation(crop=0.5), still)
    torch.testing.assert_close(augment(x, MOVED, changes), one_by_one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", [MOVED, MOCO_V2_VIEW])
@pytest.mark.parametrize("part", [slice(3, 6), np.array([5, 0, 3])])
def test_a_worker_changes_its_rows_as_the_whole_batch_would(spec: Augmentation, part: Rows) -> None:
    x = pixels()
    changes = draw_changes(spec, 6, np.random.default_rng(2))
    whole = augment(x, spec, changes)[part]
    torch.testing.assert_close(augment(x[part], spec, changes.rows(part)), whole)


@pytest.mark.parametrize("crop", [0.08, 0.5, 0.99])
def test_crops_stay_inside_and_keep_their_share(crop: float) -> None:
    changes = draw_changes(Augmentation(crop=crop), 500, np.random.default_rng(3))
    assert changes.crop_N4 is not None
    centre, half = changes.crop_N4[:, :2], changes.crop_N4[:, 2:]
    assert (np.abs(centre) + half <= 1 + 1e-9).all()
    area = half.prod(axis=1)
    assert area.min() >= crop - 1e-9 and area.max() <= 1 + 1e-9
    ratio = half[:, 1] / half[:, 0]
    assert ratio.max() <= 4 / 3 + 1e-9 and ratio.min() >= 3 / 4 - 1e-9


@pytest.mark.parametrize("crop", [0.08, 0.5, 0.9])
@pytest.mark.parametrize(("height", "width"), [(400, 400), (300, 500), (600, 400), (300, 1200)])
def test_crops_are_distributed_as_torchvisions(crop: float, height: int, width: int) -> None:
    n = 4000
    torch.manual_seed(0)
    image, bounds = torch.empty(3, height, width), ([crop, 1.0], [3 / 4, 4 / 3])
    theirs = np.array([RandomResizedCrop.get_params(image, *bounds) for _ in range(n)], float)
    aspect, rng = np.full(n, width / height), np.random.default_rng(0)
    crops = draw_changes(Augmentation(crop=crop), n, rng, aspect).crop_N4
    assert crops is not None
    size = np.array([height, width])
    half = crops[:, 2:] * size
    ours = np.concatenate([(1 + crops[:, :2]) * size / 2 - half / 2, half], axis=1).round()
    measured = [
        {"top": top, "left": left, "area": high * wide, "ratio": wide / high}
        for top, left, high, wide in (ours.T, theirs.T)
    ]
    for name in measured[0]:
        assert ks_2samp(measured[0][name], measured[1][name]).pvalue > 1e-3, name


def test_colors_are_drawn_after_all_else_and_only_if_asked_for() -> None:
    plain, colored, reference = (np.random.default_rng(4) for _ in range(3))
    one = draw_changes(MOVED, 5, plain)
    two = draw_changes(MOVED.model_copy(update={"hue": 0.1}), 5, colored)
    assert one.colors is None and two.colors is not None
    for name in ("shift_N2", "flip_N", "crop_N4"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    reference.integers(-2, 3, size=(5, 2))
    reference.random(5 + 50 + 50 + 10)
    assert plain.random() == reference.random() != colored.random()


@pytest.mark.parametrize("crop", [0.2, 1.0])
def test_the_images_given_stay_as_they_are(crop: float) -> None:
    x = pixels()
    before = x.clone()
    spec = MOCO_V2_VIEW.model_copy(update={"crop": crop, "flip": False})
    y = augment(x, spec, draw_changes(spec, 6, np.random.default_rng(5)))
    assert torch.equal(x, before) and not torch.equal(x, y)


def test_images_are_changed_alike_however_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pixels(7)
    changes = draw_changes(MOCO_V2_VIEW, 7, np.random.default_rng(6))
    together = augment(x, MOCO_V2_VIEW, changes)
    monkeypatch.setattr(module, "BYTES_AT_A_TIME", 2 * 4 * x[0].numel())
    torch.testing.assert_close(augment(x, MOCO_V2_VIEW, changes), together)
