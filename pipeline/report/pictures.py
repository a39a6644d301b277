"""The report's pictures of pixels: test images, filters, and what layers make of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.runner.images import grey

from ..evaluation.challenges import CHALLENGES, SEVERITIES, apply
from .drawing import as_grey, picture, png, sheet
from .observations import Observations

CHANNELS = 16  # of a layer that are shown
ROW = 16  # values of a flat layer in a row of its picture


@dataclass(frozen=True)
class Pixels:
    """A picture: its data URI, what it shows in words, and its size in the page."""

    source: str
    alternative: str
    width: int
    height: int


def pixels(array: npt.NDArray[np.uint8], alternative: str, scale: int) -> Pixels:
    """H x W or H x W x 3, each pixel `scale` wide in the page."""
    height, width = array.shape[:2]
    return Pixels(png(array), alternative, width * scale, height * scale)


def image_of(seen: Observations, index: int, alternative: str) -> Pixels:
    """One test image, some 84 pixels wide."""
    image = picture(seen.dataset.test.images[index].numpy())
    return pixels(image, alternative, max(1, 84 // image.shape[1]))


def filters(weights: dict[str, npt.NDArray[Any]]) -> Pixels | None:
    """The kernels of the first convolution, each of its input channels apart: grey is zero."""
    kernels = next((value for value in weights.values() if value.ndim == 4), None)
    if kernels is None or max(kernels.shape[2:]) < 2:
        return None
    tiles = kernels.reshape(-1, *kernels.shape[2:])[:64]
    most = float(np.abs(tiles).max())
    columns = min(len(tiles), 8)
    grey = as_grey(tiles, -most, most)
    words = f"{len(kernels)} kernels of {kernels.shape[2]}x{kernels.shape[3]}"
    return pixels(page := sheet(grey, columns), words, _scale(page))


def layer_maps(seen: Observations) -> list[tuple[str, dict[str, Pixels]]]:
    """For each layer the example's values in each precision, black to white over both alike."""
    found = []
    for layer in seen.maps["fp32"]:
        values = {name: maps[layer] for name, maps in seen.maps.items() if layer in maps}
        low = min(float(value.min()) for value in values.values())
        high = max(float(value.max()) for value in values.values())
        pictures = {}
        for name, value in values.items():
            shown = _tiles(value)
            words = f"{layer} in {name}: {' x '.join(str(n) for n in value.shape)} values"
            page = sheet(as_grey(shown, low, high), min(len(shown), 8))
            pictures[name] = pixels(page, words, _scale(page))
        found.append((layer, pictures))
    return found


def _scale(page: npt.NDArray[np.uint8]) -> int:
    """So many page pixels a pixel that the picture is some 340 wide at most."""
    return max(1, min(12, 340 // int(page.shape[1])))


def _tiles(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """N x H x W: some channels, or a flat value in rows, what is lacking in the last one zero."""
    if value.ndim == 3 and value.shape[1:] != (1, 1):
        return value[:CHANNELS]
    flat = value.ravel()
    width = min(ROW, flat.size)
    padded = np.zeros(-(-flat.size // width) * width, flat.dtype)
    padded[: flat.size] = flat
    return padded.reshape(1, -1, width)


def challenge_examples(seen: Observations) -> list[tuple[str, Pixels]]:
    """For each challenge one test image at every severity, the unchanged one first."""
    image = seen.dataset.test.images[seen.example : seen.example + 1]
    found = []
    for challenge in CHALLENGES.values():
        changed = [apply(challenge, n, image, 0)[0].numpy() for n in range(SEVERITIES + 1)]
        tiles = np.stack([grey(one.transpose(1, 2, 0))[:, :, 0] for one in changed])
        page = sheet(tiles, len(changed), gap=2)
        words = f"one test image under {challenge.name}, severity 0 to {SEVERITIES}"
        found.append((challenge.name, pixels(page, words, _scale(page))))
    return found


def answered(
    seen: Observations, entries: Sequence[dict[str, Any]]
) -> list[tuple[Pixels, dict[str, Any]]]:
    """Test images with an answer each, as `facts.answer_of` has it."""
    return [
        (
            image_of(seen, entry["index"], f"test image {entry['index']}, a {entry['label']}"),
            entry,
        )
        for entry in entries
    ]
