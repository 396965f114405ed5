"""Deformed renderings of characters in the fonts that matplotlib ships: strokes, no download.

Shape suffixes: N images, H height, W width.
"""

import string
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Floats = npt.NDArray[np.floating]

SOURCE_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
    "cmti10",
)
HELD_OUT_FONTS = ("DejaVuSerif-BoldItalic", "STIXGeneralBolIta", "cmtt10")

CHARACTERS = string.ascii_letters + string.digits + '!"#$%&()*+,-./:;<=>?@[\\]^_{|}~'

_CANVAS = 96
_FONT_SIZE = 60
_CAPITAL_HEIGHT = 44.0  # of DejaVu Sans at _FONT_SIZE, in canvas pixels
_SUPERSAMPLING = 2
_STROKES = (-3, 0, 2, 4, 8)  # outline added (or, negative, the filter that thins), in pixels
_EVEN_FONTS = ("DejaVu", "cmss")  # their thin strokes survive thinning; hairlines would vanish


def fonts_with(character: str, fonts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fonts that draw the character; Computer Modern has other signs at punctuation."""
    if character.isalnum():
        return fonts
    return tuple(font for font in fonts if not font.startswith("cm"))


def render_glyphs(
    character: str,
    fonts: tuple[str, ...],
    num_images: int,
    image_size: int,
    rng: np.random.Generator,
) -> Floats:
    """Draw one character in random fonts, stroke widths and deformations.

    Returns:
        Ink in [0, 1], (N, H, W): 1 inside the stroke.
    """
    usable = fonts_with(character, fonts)
    font_N = rng.integers(len(usable), size=num_images)
    stroke_N = rng.integers(len(_STROKES), size=num_images)
    canvases = np.stack(
        [
            _draw(character, usable[font], _STROKES[stroke])
            for font, stroke in zip(font_N, stroke_N, strict=True)
        ]
    )
    y_NHW, x_NHW = _deformed_grid(canvases, image_size * _SUPERSAMPLING, rng)
    fine_NHW = _sample_bilinear(canvases, y_NHW, x_NHW)
    blocks = fine_NHW.reshape(num_images, image_size, _SUPERSAMPLING, image_size, _SUPERSAMPLING)
    ink_NHW: Floats = blocks.mean(axis=(2, 4))
    return ink_NHW


@lru_cache(maxsize=64)
def _font(name: str) -> ImageFont.FreeTypeFont:
    import matplotlib  # takes long to import: not for a mere plan

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), _FONT_SIZE
    )


def _draw(character: str, font_name: str, stroke: int) -> Floats:
    """Draw one undeformed character, centred by its box, so that position says nothing."""
    font = _font(font_name)
    left, top, right, bottom = font.getbbox(character)
    corner = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    ImageDraw.Draw(canvas).text(
        corner, character, fill=255, font=font, stroke_width=max(stroke, 0) / 2
    )
    if stroke < 0 and font_name.startswith(_EVEN_FONTS):
        canvas = canvas.filter(ImageFilter.MinFilter(-stroke))
    return np.asarray(canvas, dtype=np.float32) / 255


def _deformed_grid(
    canvases: Floats, resolution: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Say which canvas point every output point shows: a random affine map, then a slow wave."""
    num_images = len(canvases)

    def uniform(low: float, high: float) -> Floats:
        return rng.uniform(low, high, (num_images, 1, 1)).astype(np.float32)

    axis = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution - 0.5
    v, u = axis[None, :, None], axis[None, None, :]
    angle, shear = uniform(-0.25, 0.25), uniform(-0.3, 0.3)
    height = uniform(0.65, 1.0)  # of a capital, as a part of the image
    width = height * np.exp(uniform(-0.3, 0.3))
    shifted_u, shifted_v = u + uniform(-0.08, 0.08), v + uniform(-0.08, 0.08)
    x = np.cos(angle) * shifted_u - np.sin(angle) * shifted_v
    y = np.sin(angle) * shifted_u + np.cos(angle) * shifted_v
    x = x + shear * y
    x = x + uniform(0, 0.07) * _wave(u, v, num_images, rng)
    y = y + uniform(0, 0.07) * _wave(u, v, num_images, rng)
    # A wide character (W, @) is squeezed until it fits.
    ink_N = canvases.max(axis=1) > 0.5
    extent = ink_N.sum(axis=1, dtype=np.float32)[:, None, None] / _CAPITAL_HEIGHT
    width = np.minimum(width, 0.98 / np.maximum(extent, 0.1))
    centre = (_CANVAS - 1) / 2
    return y / height * _CAPITAL_HEIGHT + centre, x / width * _CAPITAL_HEIGHT + centre


def _wave(u: Floats, v: Floats, num_images: int, rng: np.random.Generator) -> Floats:
    """Return a smooth displacement of about one period per image, in [-1, 1], (N, H, W)."""
    direction, cycles, phase = (
        rng.uniform(low, high, (num_images, 1, 1)).astype(np.float32)
        for low, high in ((0, 2 * np.pi), (0.7, 1.6), (0, 2 * np.pi))
    )
    along = np.cos(direction) * u + np.sin(direction) * v
    wave: Floats = np.sin(2 * np.pi * cycles * along + phase).astype(np.float32)
    return wave


def _sample_bilinear(canvases: Floats, y_NHW: Floats, x_NHW: Floats) -> Floats:
    """Read the canvases between their pixels; points off the canvas read its empty border."""
    y = np.clip(y_NHW, 0, _CANVAS - 1.001)
    x = np.clip(x_NHW, 0, _CANVAS - 1.001)
    top, left = y.astype(np.intp), x.astype(np.intp)
    down, right = y - top, x - left
    start = np.arange(len(canvases), dtype=np.intp)[:, None, None] * _CANVAS**2
    corner = start + top * _CANVAS + left
    flat = canvases.reshape(-1)
    upper = flat[corner] * (1 - right) + flat[corner + 1] * right
    lower = flat[corner + _CANVAS] * (1 - right) + flat[corner + _CANVAS + 1] * right
    sampled: Floats = (upper * (1 - down) + lower * down).astype(np.float32)
    return sampled
