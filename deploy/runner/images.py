"""From a picture file to the pixels a network was trained on. Training uses these same functions.

All arithmetic on pixels is in exact integers, so a picture gives the same bytes on every machine.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BadInput, Missing

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 64_000_000  # a 64-megapixel photo; beyond it, a file is a decompression bomb
PART = 1_000_000  # pixels whose float64 are there at a time: a Pi Zero 2 W has 512 MB for all
_PNM_HEADER = re.compile(rb"\s+(?:#[^\n]*\n\s*)*")


class _TooLarge(ValueError):
    """More pixels than are read."""

    def __init__(self, most: int, *size: int) -> None:
        super().__init__(f"{' x '.join(map(str, size))}, and {most:,} pixels are the most")


def decode(content: bytes, name: str, most: int = MAX_PIXELS) -> Pixels:
    """The picture in `content` as uint8 height x width x channels, with 1 or 3 channels.

    PGM, PPM and .npy need nothing; every other format is read by Pillow when it is installed.
    Raises BadInput naming `name` when it is no picture or has more than `most` pixels, Missing when
    Pillow would be needed.
    """
    if not content:
        raise BadInput(f"{name}: the file is empty", "give a PNG, JPEG, PGM, PPM or .npy picture")
    decoder: Callable[[bytes, int], Pixels]
    if content.startswith(b"\x93NUMPY"):
        decoder = _decode_npy
    elif content[:2] in (b"P2", b"P3", b"P5", b"P6"):
        decoder = _decode_pnm
    else:
        decoder = _decode_with_pillow
    try:
        picture = decoder(content, most)
    except ImportError as error:
        raise Missing(
            f"{name}: this picture format needs Pillow, which is not installed",
            "run 'pip install pillow', or give a PGM, PPM or .npy picture",
        ) from error
    except _TooLarge as error:
        raise BadInput(f"{name} is too large: {error}", "make it smaller") from error
    except Exception as error:  # decoders raise whatever the broken bytes led them to
        raise BadInput(
            f"{name}: not a picture that can be read ({error})",
            "give a PNG, JPEG, PGM, PPM or .npy picture",
        ) from error
    if picture.size == 0:
        raise BadInput(f"{name}: the picture has no pixels ({picture.shape})")
    return picture


def _decode_npy(content: bytes, most: int) -> Pixels:
    array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype != np.uint8:
        raise ValueError(f"values must be uint8 and are {array.dtype}")
    if array.size > 3 * most:
        raise _TooLarge(most, *array.shape)
    return _with_channels(array)


def _with_channels(array: Pixels) -> Pixels:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(f"expected height x width or height x width x 1 or 3, found {array.shape}")
    return array


def _decode_pnm(content: bytes, most: int) -> Pixels:
    """Netpbm: P2 and P3 are text, P5 and P6 binary; P2 and P5 grey, P3 and P6 colour."""
    fields: list[int] = []
    position = 2
    while len(fields) < 3:
        space = _PNM_HEADER.match(content, position)
        number = re.compile(rb"\d+").match(content, space.end()) if space else None
        if number is None:
            raise ValueError("broken PNM header")
        fields.append(int(number.group()))
        position = number.end()
    width, height, maximum = fields
    if not 0 < maximum < 256:
        raise ValueError(f"maximum value {maximum}; 1 to 255 is read")
    if width * height > most:
        raise _TooLarge(most, width, height)
    channels = 3 if content[1:2] in b"36" else 1
    count = width * height * channels
    if content[1:2] in b"23":
        values = np.array(content[position:].split()[:count], dtype=np.int64)
    else:
        values = np.frombuffer(content, np.uint8, offset=position + 1).astype(np.int64)[:count]
    if values.size != count:
        raise ValueError(f"truncated: expected {count} values, found {values.size}")
    if values.size and (values.min() < 0 or values.max() > maximum):
        raise ValueError(f"a value exceeds the stated maximum {maximum}")
    scaled = (values * 255 + maximum // 2) // maximum
    return scaled.astype(np.uint8).reshape(height, width, channels)


def _decode_with_pillow(content: bytes, most: int) -> Pixels:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        found = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise ValueError("neither PNG, JPEG nor another format that Pillow knows") from error
    with found as opened:
        if opened.width * opened.height > most:
            raise _TooLarge(most, opened.width, opened.height)
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):  # 16 bits a sample
            wide = np.asarray(picture, dtype=np.int64)
            return _with_channels((wide >> 8).astype(np.uint8))
        if (
            picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
        ):  # what is transparent shows the paper: white
            paper = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")
        mode = "L" if picture.mode in ("1", "L") else "RGB"
        return _with_channels(np.asarray(picture.convert(mode), dtype=np.uint8))


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Resample uint8 height x width x channels by a triangle filter, antialiased when shrinking.

    Each output is floor((sum of weight * pixel + total/2) / total) with whole-number weights:
    with `length` pixels becoming `size`, weight(i, j) = max(0, 2 max(length, size) -
    |(2j + 1) size - (2i + 1) length|). Rows first, then columns, rounded to uint8 between.
    """
    rows = _resample(image.transpose(1, 2, 0), height)  # the resampled axis stands last
    columns = _resample(rows.transpose(2, 1, 0), width)
    return columns.transpose(0, 2, 1)


def _resample(values: Pixels, size: int) -> Pixels:
    length = values.shape[-1]
    if length == size:
        return values
    out, into = np.arange(size)[:, None], np.arange(length)[None, :]
    distance = np.abs((2 * into + 1) * size - (2 * out + 1) * length)
    weights = np.maximum(0, 2 * max(length, size) - distance)
    total = weights.sum(axis=1)
    resampled = np.empty((*values.shape[:-1], size), np.uint8)
    rows = 1 + PART * len(values) // values.size
    for start in range(0, len(values), rows):
        part = values[start : start + rows].astype(np.float64)
        # Sums stay below 2**53, so float64 matrix products of these integers are exact, and fast.
        sums = (part @ weights.T.astype(np.float64)).astype(np.int64)
        resampled[start : start + rows] = (sums + total // 2) // total
    return resampled


def grey(image: Pixels) -> Pixels:
    """ITU-R BT.601 luma in integers, height x width x 1."""
    if image.shape[2] == 1:
        return image
    luma = np.full(image.shape[:2], 500, np.uint32)
    for channel, weight in enumerate((299, 587, 114)):
        luma += weight * image[:, :, channel].astype(np.uint32)
    luma //= 1000
    return luma.astype(np.uint8)[:, :, None]


def prepare(image: Pixels, input_shape: tuple[int, int, int], preparation: str) -> Pixels:
    """uint8 height x width x channels of any size to the network's uint8 C x H x W."""
    channels, height, width = input_shape
    image = grey(image) if channels == 1 else np.repeat(image, 3 // image.shape[2], axis=2)
    if preparation == "glyph":
        image = np.concatenate(
            [glyph(image[:, :, c], height, width)[:, :, None] for c in range(channels)], axis=2
        )
    else:
        image = resize(image, height, width)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def glyph(image: Pixels, height: int, width: int) -> Pixels:
    """Bright ink on black, height x width, as MNIST was made (LeCun et al. 1998, section III.A).

    A picture that already has this size and a black border is taken as it is. Otherwise the border
    tells the paper: its median is subtracted, together with its noise; ink is what differs, made
    bright and stretched to 255. The ink's bounding box is scaled to 20/28 of the smaller side,
    keeping its proportions, and its centre of mass is put in the middle.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(np.int64)
    paper = int(np.median(border))
    if image.shape == (height, width) and paper == 0:
        return image
    noise = 4 * int(np.median(np.abs(border - paper)))  # the median: ink may touch the border
    difference = image.astype(np.int16) - paper
    if -difference.min() > difference.max():  # darker than the paper
        difference = -difference
    ink = np.maximum(0, difference - noise)
    canvas = np.zeros((height, width), np.uint8)
    if ink.max() == 0:
        return canvas
    ink = ink.astype(np.int32) * 255 // ink.max()
    rows, columns = np.nonzero((ink >= 64).any(axis=1))[0], np.nonzero((ink >= 64).any(axis=0))[0]
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box, longest = min(height, width) * 20 // 28, max(ink.shape)
    size = [max(1, (side * box + longest // 2) // longest) for side in ink.shape]
    ink = resize(ink.astype(np.uint8)[:, :, None], *size)[:, :, 0].astype(np.int64)
    mass = int(ink.sum())
    if mass == 0:  # specks too small to survive the scaling
        return canvas
    corner = []
    for axis, side in enumerate((height, width)):
        moment = int((ink.sum(axis=1 - axis) * np.arange(size[axis])).sum())
        # side/2 - (moment/mass + 1/2), rounded: the centre of mass lands in the middle
        start = ((side - 1) * mass - 2 * moment + mass) // (2 * mass)
        corner.append(min(max(start, 0), side - size[axis]))
    canvas[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = ink
    return canvas
