"""Whether a probability means what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15

Array = npt.NDArray[Any]


def reliability(chances: Array, labels: Array) -> list[dict[str, Any]]:
    """For each of BINS equal bins of the largest probability: how many images, how sure and how
    often right. `chances` N x classes.
    """
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    rows = []
    for number in range(BINS):
        inside = bins == number
        count = int(inside.sum())
        rows.append(
            {
                "images": count,
                "confidence": float(sure[inside].mean()) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    return rows


def expected_error(chances: Array, labels: Array) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over the bins of
    `reliability`, weighted by their images (Guo et al. 2017, equation 3).
    """
    off = [
        row["images"] * abs(row["confidence"] - row["accuracy"])
        for row in reliability(chances, labels)
        if row["images"]
    ]
    return float(sum(off) / len(labels))
