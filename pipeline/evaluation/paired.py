"""Two classifiers on the same images: how sure it is that one is better than the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Paired:
    """Images that only the one and only the other decides rightly. `p` is McNemar's test: how
    likely a split as uneven as this is, were both equally good.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Paired:
    """Of bool N: which images each decides rightly. Two-sided (McNemar 1947): exact, by
    the binomial, up to 1000 images that one alone decides rightly.
    """
    one, other = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    of = one + other
    if of > 1000:  # 2**of is soon beyond a float
        return Paired(one, other, _normal(one, other))
    tail = sum(math.comb(of, k) for k in range(min(one, other) + 1))
    return Paired(one, other, min(1.0, 2 * tail / 2**of))


def _normal(one: int, other: int) -> float:
    """For many images the binomial is a normal distribution, with Edwards' correction of 1948."""
    z = max(0, abs(one - other) - 1) / math.sqrt(one + other)
    return math.erfc(z / math.sqrt(2))
