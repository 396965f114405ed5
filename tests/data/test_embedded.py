"""The embedded world: reproducible, disjoint where it says so, and in no telling order."""

from collections.abc import Callable

import numpy as np
import pytest

from dp4tl_ray.data.embedded import (
    glyphs_and_textures,
    handwritten_digits,
    held_out_letters,
    held_out_textures,
)
from dp4tl_ray.data.glyphs import (
    CHARACTERS,
    HELD_OUT_FONTS,
    SOURCE_FONTS,
    fonts_with,
    render_glyphs,
)
from dp4tl_ray.data.images import LabeledImages
from dp4tl_ray.data.textures import HELD_OUT_TEXTURES, SOURCE_TEXTURES

Build = Callable[[int, int], LabeledImages]


def _source(image_size: int, seed: int) -> LabeledImages:
    return glyphs_and_textures(image_size, images_per_class=2, seed=seed)


def _digits(image_size: int, seed: int) -> LabeledImages:
    return handwritten_digits(image_size)


SEEDED: list[Build] = [_source, held_out_letters, held_out_textures]
TARGETS: list[Build] = [held_out_letters, held_out_textures, _digits]


@pytest.mark.parametrize("image_size", [16, 32])
@pytest.mark.parametrize("build", [_source, *TARGETS])
def test_every_row_has_a_picture_a_class_a_split_and_a_name(build: Build, image_size: int) -> None:
    dataset = build(image_size, 0)
    num_images, num_classes = len(dataset.images), len(dataset.class_names)
    assert dataset.images.dtype == np.uint8
    assert dataset.images.shape == (num_images, image_size, image_size, 1)
    assert dataset.images.std(axis=(1, 2, 3)).min() > 1, "an image is blank"
    assert dataset.labels.dtype == np.int64 and dataset.labels.shape == (num_images,)
    assert np.unique(dataset.labels).tolist() == list(range(num_classes))
    assert dataset.splits.dtype == np.int8 and dataset.splits.shape == (num_images,)
    assert len(set(dataset.ids)) == len(dataset.ids) == num_images
    assert len(set(dataset.class_names)) == num_classes
    assert all(
        name.startswith(f"{dataset.class_names[label]}/")
        for name, label in zip(dataset.ids, dataset.labels, strict=True)
    )


@pytest.mark.parametrize("build", SEEDED)
def test_the_seed_decides_every_byte(build: Build) -> None:
    first, again, other = build(16, 3), build(16, 3), build(16, 4)
    assert first.images.tobytes() == again.images.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.ids == again.ids and first.class_names == again.class_names
    assert first.images.tobytes() != other.images.tobytes()


def test_another_seed_gives_the_same_source_classes_in_another_order() -> None:
    first, other = _source(16, 0), _source(16, 1)
    assert set(first.class_names) == set(other.class_names)
    assert first.class_names != other.class_names


def test_the_order_of_source_classes_mixes_glyphs_and_textures() -> None:
    is_glyph = [name.startswith("glyph ") for name in _source(16, 0).class_names]
    quarter = len(is_glyph) // 4
    for start in range(0, 4 * quarter, quarter):
        assert 0.2 < np.mean(is_glyph[start : start + quarter]) < 0.7


def test_the_source_has_200_classes_of_both_kinds_and_trains_on_all_rows() -> None:
    source = glyphs_and_textures(16, images_per_class=3, seed=0)
    assert len(source.class_names) >= 200
    assert sum(name.startswith("glyph ") for name in source.class_names) == len(CHARACTERS) == 92
    assert len(source.rows("train")) == len(source.images)
    assert np.bincount(source.labels).tolist() == [3] * len(source.class_names)


def test_letters_are_in_fonts_that_the_source_never_uses() -> None:
    assert len(HELD_OUT_FONTS) == 3
    assert not set(HELD_OUT_FONTS) & set(SOURCE_FONTS)


def test_fonts_come_with_matplotlib_and_draw_every_character() -> None:
    for font in SOURCE_FONTS + HELD_OUT_FONTS:
        for character in CHARACTERS:
            if fonts_with(character, (font,)):
                ink = render_glyphs(character, (font,), 1, 16, np.random.default_rng(0))
                assert 0.005 < ink.mean() < 0.8, (font, character)


def test_every_target_texture_has_a_frequency_that_its_family_never_has_in_the_source() -> None:
    seen = {(texture.family, texture.frequency) for texture in SOURCE_TEXTURES}
    for texture in HELD_OUT_TEXTURES:
        assert (texture.family, texture.frequency) not in seen


def test_oriented_target_textures_lie_between_the_source_orientations() -> None:
    for held_out in HELD_OUT_TEXTURES:
        if held_out.family in ("rings", "spokes", "spiral"):
            continue
        seen = {t.orientation for t in SOURCE_TEXTURES if t.family == held_out.family}
        assert min(abs(held_out.orientation - angle) for angle in seen) >= 3


@pytest.mark.parametrize("build", TARGETS)
def test_no_picture_is_in_two_splits(build: Build) -> None:
    dataset = build(16, 0)
    seen = [
        {image.tobytes() for image in dataset.images[dataset.rows(split)]}
        for split in ("train", "val", "test")
    ]
    assert all(seen)
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


@pytest.mark.parametrize("build", [held_out_letters, held_out_textures])
def test_rendered_targets_have_pools_for_few_shot_draws(build: Build) -> None:
    dataset = build(16, 0)
    for split in (0, 1):
        assert np.bincount(dataset.labels[dataset.splits == split]).min() >= 60
    assert len(dataset.rows("test")) >= 1000


def test_digits_are_split_in_contiguous_blocks_that_cover_all() -> None:
    digits = handwritten_digits(16)
    assert len(digits.images) == 1797
    assert (np.diff(digits.splits) >= 0).all()
    assert len(digits.rows("test")) >= 1000
    for split in (0, 1):
        assert np.bincount(digits.labels[digits.splits == split], minlength=10).min() >= 20


def test_an_unknown_image_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="16, 32"):
        handwritten_digits(8)
