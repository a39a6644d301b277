"""How sure an accuracy is."""

from __future__ import annotations

import math

NORMAL = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson(right: int, of: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927), good for few images and near 100 %."""
    share, square = right / of, NORMAL**2
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = NORMAL / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)
