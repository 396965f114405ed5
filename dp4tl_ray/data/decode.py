"""What a picture's file holds -> pixels of the size that is asked for.

JPEG is decoded by libjpeg-turbo, to the same pixels as by Pillow in half to two thirds of the time
(colours that are read as grey differ by rounding); everything else by Pillow. All of it releases
the interpreter's lock, so that threads decode side by side.
"""

import io

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from dp4tl_ray.data.images import Pixels

JPEG_START = b"\xff\xd8\xff"


class DecodeError(Exception):
    """A picture does not decode; the message says why."""


def decoded(content: bytes | Pixels, channels: int) -> Pixels:
    """Return the pixels of a picture, (height, width, channels).

    Args:
        content: What its file holds, or pixels: (height, width), or with 1 or 3 channels.
        channels: 1 for grey values, 3 for RGB.

    Raises:
        DecodeError: It is no picture, or damaged.
    """
    if isinstance(content, np.ndarray):
        return _with_channels(content, channels)
    plain = plain_jpeg(content, channels)
    return _by_pillow(content, channels) if plain is None else plain


def plain_jpeg(content: bytes, channels: int) -> Pixels | None:
    """Decode a JPEG that is grey or in the usual colour space, and without a flaw; None of others.

    What has a flaw, such as bytes too many, may still be a picture to Pillow.
    """
    if not content.startswith(JPEG_START):
        return None
    try:
        if simplejpeg.decode_jpeg_header(content)[2] not in ("YCbCr", "Gray"):
            return None
        return decode_jpeg(content, channels)
    except ValueError:
        return None


def _by_pillow(content: bytes, channels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(content)) as file:
            picture = _in_bytes(file).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:  # whose message is the address of the bytes
        raise DecodeError("does not decode: it is no picture that Pillow knows") from None
    except Exception as error:  # decoders raise what they like
        raise DecodeError(f"does not decode: {error}") from error
    return np.array(picture, np.uint8).reshape(picture.height, picture.width, channels)


def _in_bytes(picture: Image.Image) -> Image.Image:
    """Bring 16 bits per value to 8, which Pillow would cut off at 255."""
    if picture.mode == "F":
        raise ValueError("its pixels are floats")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture, np.int64)
    return Image.fromarray((values.clip(0, 2**16 - 1) >> 8).astype(np.uint8))


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise DecodeError(f"has pixels {pixels.dtype} of shape {pixels.shape}; uint8 is needed")
    if pixels.shape[2] == channels:
        return pixels
    mode = "L" if channels == 1 else "RGB"
    changed = np.asarray(Image.fromarray(pixels.squeeze(2) if channels == 3 else pixels)
                         .convert(mode), np.uint8)  # fmt: skip
    return changed.reshape(*pixels.shape[:2], channels)


def decode_jpeg(content: bytes | memoryview, channels: int) -> Pixels:
    """Decode a JPEG to (height, width, channels)."""
    pixels: Pixels = simplejpeg.decode_jpeg(content, "GRAY" if channels == 1 else "RGB")
    return pixels


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode pixels, (height, width, channels)."""
    space = "GRAY" if pixels.shape[2] == 1 else "RGB"
    content: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality, space, "420" if space == "RGB" else "Gray"
    )
    return content


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize a picture, bilinear, smoothed where it becomes smaller."""
    if pixels.shape[:2] == (height, width):
        return pixels
    # torch warns of what it could write to, and must not
    writable = pixels if pixels.flags.writeable else pixels.copy()
    planes = torch.from_numpy(writable).permute(2, 0, 1)[None]
    smaller = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(smaller[0].permute(1, 2, 0).numpy())


def shorter_side(pixels: Pixels, size: int) -> Pixels:
    """Resize a picture so that its shorter side becomes `size` pixels."""
    scale = size / min(pixels.shape[:2])
    height, width = (max(size, round(side * scale)) for side in pixels.shape[:2])
    return resized(pixels, height, width)


def square(pixels: Pixels, size: int) -> Pixels:
    """Bring the shorter side to `size` pixels and keep the middle, (size, size, channels)."""
    picture = shorter_side(pixels, size)
    top, left = ((side - size) // 2 for side in picture.shape[:2])
    return picture[top : top + size, left : left + size]
