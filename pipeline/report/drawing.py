"""From matplotlib and NumPy to what stands in a page: SVG in the page's colours, and PNG."""

from __future__ import annotations

import base64
import html
import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

INK = "#010203"  # stands for the page's text colour until the page is there
# Okabe and Ito's palette, which tells apart for all eyes, on light and on dark.
BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
GREY = "#888888"
OF_PRECISION = {"fp32": BLUE, "int8": ORANGE, "fp16": GREEN, "dynamic": PINK, "int16x8": SKY}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it is found, read aloud and printed sharp
    "svg.hashsalt": "report",  # the same picture is the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches; draw on it inside `with rc_context(STYLE)`, as `drawn` does."""
    return Figure(figsize=(width, height))


def styled() -> Any:
    """The report's matplotlib settings, as a context."""
    return rc_context(STYLE)  # type: ignore[arg-type]  # its keys are literals


def svg(drawing: Figure, alternative: str) -> Markup:
    """Inline SVG whose text and lines have the colour of the page's text.

    `alternative` says in words what is to be seen.
    """
    file = io.StringIO()
    with styled():
        drawing.savefig(
            file, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", text)
    # As wide as it was drawn, or as there is room.
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', text)
    assert width is not None
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    label = html.escape(alternative, quote=True)
    start = f'<svg role="img" aria-label="{label}" style="max-width:{float(width[1]):.0f}pt"'
    return Markup(text.replace("<svg", start, 1).replace(INK, "currentColor"))


def png(pixels: npt.NDArray[np.uint8]) -> str:
    """A data URI of uint8 H x W or H x W x 3 pixels, as small as PNG makes it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def picture(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """C x H x W as `png` takes it: grey, or the first three channels as colours."""
    return image[0] if len(image) < 3 else np.ascontiguousarray(image[:3].transpose(1, 2, 0))


def as_grey(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Black at `low`, white at `high`."""
    part = (values - low) / (high - low) if high > low else np.zeros(values.shape)
    return np.asarray(np.rint(255 * np.clip(part, 0, 1)), np.uint8)


def sheet(tiles: npt.NDArray[np.uint8], columns: int, gap: int = 1) -> npt.NDArray[np.uint8]:
    """N x H x W tiles in rows of `columns`, mid-grey between them."""
    count, height, width = tiles.shape
    rows = -(-count // columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), 128, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        page[top : top + height, left : left + width] = tile
    return page
