"""TFLite's fixed-point arithmetic: a multiplier as an integer and a shift, and its product."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def half_away(real: Array) -> Array:
    """The nearest integer, halves away from zero."""
    rounded: Array = np.trunc(real + np.copysign(0.5, real))
    return rounded


def fixed_point(multiplier: Array) -> tuple[Array, Array]:
    """(mantissa, shift): multiplier = mantissa 2**(shift - 31), mantissa in [2**30, 2**31).

    As TFLite's QuantizeMultiplier (tensorflow/lite/kernels/internal/quantization_util.cc).
    """
    fraction, shift = np.frexp(multiplier)
    mantissa = half_away(fraction * 2.0**31).astype(np.int64)
    overflown = mantissa == 2**31
    return np.where(overflown, mantissa // 2, mantissa), np.where(overflown, shift + 1, shift)


def doubled(accumulator: Array, mantissa: Array, shift: Array) -> Array:
    """Gemmlowp's product of int64 integers and a fixed-point multiplier: see `double_round`."""
    left, right = np.maximum(shift, 0).astype(np.int64), np.maximum(-shift, 0).astype(np.int64)
    product = (accumulator << left) * mantissa
    nudge = np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = truncated(product + nudge, 31)
    mask = (np.int64(1) << right) - 1
    threshold = (mask >> 1) + (high < 0)
    rounded: Array = (high >> right) + ((high & mask) > threshold)
    return rounded


def truncated(value: Array, bits: int) -> Array:
    """Division by 2**bits as C does it: towards zero."""
    return np.where(value >= 0, value >> bits, -(-value >> bits))
