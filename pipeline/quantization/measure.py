"""How good an int8 program is: by the labels, and by how near it is to the float program."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from ..data import Split
from ..program import accuracy, run

OnStep = Callable[[str], None]  # called with what is being done, and how far it is


def sqnr(wanted: Tensor, found: Tensor) -> float:
    """Signal to quantization noise of `found` in dB, infinite without noise: 10 log10(S / N)."""
    noise = float((found - wanted).double().square().sum())
    signal = float(wanted.double().square().sum())
    return 10 * math.log10(signal / noise) if noise and signal else math.inf


def measured(int8: fx.GraphModule, wanted: Tensor, data: Split) -> dict[str, Any]:
    """Accuracy on the images, answers other than the float program's, and the outputs' SQNR."""
    scores = run(int8, data.images)[0]
    ratio = sqnr(wanted, scores)
    return {
        "accuracy": accuracy(scores, data.labels),
        "flips": int((scores.argmax(1) != wanted.argmax(1)).sum()),
        "sqnr_db": ratio if math.isfinite(ratio) else None,
    }


def rank(tried: dict[str, Any]) -> tuple[float, float]:
    """The best has the largest: validation accuracy, then nearness to the float program."""
    ratio = tried["sqnr_db"]
    return tried["accuracy"], math.inf if ratio is None else ratio
