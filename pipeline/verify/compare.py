"""How far a runtime's numbers are from the program's, accumulated over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.runner.contract import Quantization
from deploy.runner.scores import steps

GRID = 1e-3  # steps; a dequantized integer is off its step by some roundings of 2**-24


@dataclass(frozen=True)
class Worst:
    """The element that differs most: its index (image first), and both values."""

    position: tuple[int, ...]
    expected: float
    found: float


@dataclass(frozen=True)
class Difference:
    """`largest` is the largest absolute difference, in steps for int8; `magnitude` the largest
    absolute expected value. `problem` is set where the numbers cannot be compared at all.
    """

    elements: int = 0
    equal: int = 0
    largest: float = 0.0
    magnitude: float = 0.0
    worst: Worst | None = None
    problem: str | None = None

    def __add__(self, other: Difference) -> Difference:
        """Both batches together; positions in the second count on from the first."""
        return Difference(
            self.elements + other.elements,
            self.equal + other.equal,
            max(self.largest, other.largest),
            max(self.magnitude, other.magnitude),
            other.worst if other.largest > self.largest else self.worst,
            self.problem or other.problem,
        )

    @property
    def equal_part(self) -> float:
        """The part of the elements that are equal; 0 where nothing was compared."""
        return self.equal / self.elements if self.elements else 0.0

    @property
    def relative(self) -> float:
        """The largest difference as a part of the largest expected value."""
        return self.largest / max(self.magnitude, float(np.finfo(np.float32).tiny))

    def within(self, limit: float, *, relative: bool) -> bool:
        """Compared, and within the limit. Nothing compared is never within."""
        size = self.relative if relative else self.largest
        return self.problem is None and self.elements > 0 and size <= limit


def compare(
    found: npt.NDArray[Any],
    expected: npt.NDArray[np.float32],
    quantization: Quantization | None,
    first_image: int = 0,
) -> Difference:
    """Compare one batch; with `quantization`, as the integers that both sides stand for.

    A wrong shape or dtype, a NaN or an infinity is a `problem`, never a number.
    """
    if found.shape != expected.shape:
        return Difference(problem=f"shape {found.shape}, expected {expected.shape}")
    allowed = (np.float32,) if quantization is None else (np.float32, np.int8)
    if found.dtype not in allowed:
        return Difference(problem=f"dtype {found.dtype}, expected {allowed[-1].__name__}")
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return Difference(problem="NaN or infinity")
    if quantization is None:
        left, right = found.astype(np.float64), expected.astype(np.float64)
    else:
        left, right = (steps(side, quantization).astype(np.float64) for side in (found, expected))
        if found.dtype == np.float32:
            offset = found / np.float64(quantization.scale) + quantization.zero_point - left
            if np.abs(offset).max(initial=0.0) > GRID:
                return Difference(problem="values between the int8 steps: not quantized")
    difference = np.abs(left - right)
    largest = float(difference.max(initial=0.0))
    worst = None
    if largest > 0:
        index = np.unravel_index(int(difference.argmax()), difference.shape)
        position = (first_image + int(index[0]), *(int(i) for i in index[1:]))
        worst = Worst(position, float(right[index]), float(left[index]))
    return Difference(
        difference.size,
        int((difference == 0).sum()),
        largest,
        float(np.abs(right).max(initial=0.0)),
        worst,
    )
