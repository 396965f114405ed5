"""Periodic textures by family, orientation and frequency: the half of the world without strokes.

Shape suffixes: N images, H height, W width.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Family = Literal[
    "grating", "lines", "checker", "dots", "zigzag", "bricks", "rings", "spokes", "spiral"
]


@dataclass(frozen=True)
class Texture:
    """One class of textures: everything else about an image (phase, place) is random."""

    family: Family
    orientation: float
    """Degrees; unused by rings, spokes and spirals, which have a centre instead."""
    frequency: float
    """Periods across the image (rings: across its width; spokes: around its centre)."""
    arms: int = 0
    """Arms of a spiral, negative for left-handed ones."""

    @property
    def name(self) -> str:
        """Return the class's name, unique among textures."""
        match self.family:
            case "rings" | "spokes":
                return f"{self.family} f{self.frequency:g}"
            case "spiral":
                return f"spiral {self.arms:+d} f{self.frequency:g}"
            case _:
                return f"{self.family} {self.orientation:g}deg f{self.frequency:g}"


def _grid(
    family: Family, turn: int, steps: int, frequencies: tuple[float, ...], start: float = 0
) -> list[Texture]:
    """Cross frequencies with orientations that divide the `turn` after which a family repeats."""
    return [
        Texture(family, start + turn * step / steps, frequency)
        for frequency in frequencies
        for step in range(steps)
    ]


SOURCE_TEXTURES: tuple[Texture, ...] = (
    *_grid("grating", 180, 12, (2.0, 3.5, 5.5)),
    *_grid("lines", 180, 10, (2.0, 3.5)),
    *_grid("checker", 90, 6, (1.5, 3.0)),
    *_grid("dots", 90, 5, (2.0, 3.5)),
    *_grid("zigzag", 180, 6, (2.0, 3.5)),
    *_grid("bricks", 180, 6, (2.0, 3.5)),
    *(Texture("rings", 0, frequency) for frequency in (1.5, 2.5, 3.5, 4.5, 5.5)),
    *(Texture("spokes", 0, frequency) for frequency in (3, 4, 6, 8, 10)),
    *(Texture("spiral", 0, f, arms) for f in (2.0, 3.5) for arms in (-3, -2, -1, 1, 2, 3)),
)
# Half-way between the source's orientations, and at other frequencies. Few families, so that a
# fifth of the source's classes can serve them.
HELD_OUT_TEXTURES: tuple[Texture, ...] = (
    *_grid("grating", 180, 12, (2.7, 4.4), start=7.5),
    *(Texture("rings", 0, frequency) for frequency in (2.0, 3.0, 4.0)),
)


def render_textures(
    texture: Texture, num_images: int, image_size: int, rng: np.random.Generator
) -> Floats:
    """Draw one class at random phases, with small errors of orientation and frequency.

    Returns:
        Brightness in [0, 1], (N, H, W).
    """

    def uniform(low: float, high: float) -> Floats:
        return rng.uniform(low, high, (num_images, 1, 1)).astype(np.float32)

    contrast = uniform(0.3, 1)
    axis = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size - 0.5
    row, column = axis[None, :, None], axis[None, None, :]
    angle = np.deg2rad(texture.orientation + uniform(-4, 4))
    scale = np.exp(uniform(-0.06, 0.06))
    phase_u, phase_v = uniform(0, 1), uniform(0, 1)
    match texture.family:
        case "rings" | "spokes" | "spiral":
            row, column = row + uniform(-0.15, 0.15), column + uniform(-0.15, 0.15)
            pattern = _polar(
                texture, scale * np.hypot(row, column), np.arctan2(row, column), phase_u
            )
        case "grating" | "lines" | "checker" | "dots" | "zigzag" | "bricks":
            u = (np.cos(angle) * column + np.sin(angle) * row) * scale * texture.frequency
            v = (np.cos(angle) * row - np.sin(angle) * column) * scale * texture.frequency
            pattern = _planar(texture, u + phase_u, v + phase_v)
        case _:
            assert_never(texture.family)
    return 0.5 + contrast * (pattern - 0.5)


def _polar(texture: Texture, radius: Floats, around: Floats, phase: Floats) -> Floats:
    """Evaluate a texture around a centre; the phase counts in periods."""
    match texture.family:
        case "rings":
            periods = texture.frequency * radius
        case "spokes":
            periods = texture.frequency * around / (2 * np.pi)
        case _:
            periods = texture.frequency * radius + texture.arms * around / (2 * np.pi)
    return _brightness(np.cos(2 * np.pi * (periods + phase)))


def _planar(texture: Texture, u: Floats, v: Floats) -> Floats:
    """Evaluate a texture on the plane; u and v count in periods."""
    wave_u, wave_v = np.cos(2 * np.pi * u), np.cos(2 * np.pi * v)
    match texture.family:
        case "grating":
            return _brightness(wave_u)
        case "lines":  # thin and bright
            return _brightness(3 * wave_u - 1.8)
        case "checker":
            return _brightness(3 * wave_u * wave_v)
        case "dots":
            return _brightness(2 * (wave_u + wave_v) - 1.5)
        case "zigzag":
            bend = np.abs(2 * (v / 2 % 1) - 1)
            return _brightness(2 * np.cos(2 * np.pi * (u + bend)))
        case _:  # bricks: thin courses, and joints that jump by half a brick at every course
            joints = np.cos(2 * np.pi * (v / 2 + np.floor(u) / 2))
            edges = np.cos(2 * np.pi * u)
            return _brightness(np.maximum(3 * edges - 1.5, 3 * joints - 2.0))


def _brightness(signal: npt.NDArray[np.floating]) -> Floats:
    """Map [-1, 1] to [0, 1], clipping what lies outside."""
    clipped: Floats = np.clip(0.5 + 0.5 * signal, 0, 1).astype(np.float32)
    return clipped
