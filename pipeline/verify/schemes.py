"""The named schemes by which runtimes round: sums times a multiplier, and real numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .fixed_point import doubled, fixed_point, half_away
from .int16 import short_product

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Multiplier:
    """s_x s_w / s_y for each output channel, shaped to be broadcast over accumulators: `exact` in
    float64, and `single` as runtimes compute it, in float32 from left to right.
    """

    exact: Array
    single: Array

    @classmethod
    def of(cls, x: Array, w: Array, y: float) -> Multiplier:
        """From the scales, which are float32 values, of input, weights (C or 1) and output."""
        single = np.asarray(x, np.float32) * np.asarray(w, np.float32) / np.float32(y)
        return cls(np.asarray(x, np.float64) * np.asarray(w, np.float64) / y, single)

    def reshape(self, shape: tuple[int, ...]) -> Multiplier:
        """Both reshaped."""
        return Multiplier(self.exact.reshape(shape), self.single.reshape(shape))


def half_even(real: Array) -> Array:
    """The nearest integer, halves to the even one."""
    return np.rint(real)


def half_up(real: Array) -> Array:
    """The nearest integer, halves to the larger one."""
    return np.floor(real + 0.5)


def float_half_even(accumulator: Array, multiplier: Multiplier) -> Array:
    """XNNPACK and ONNX Runtime: in float32, halves to even."""
    return half_even(_float_product(accumulator, multiplier))


def float_round_away(accumulator: Array, multiplier: Multiplier) -> Array:
    """In float32, halves away from zero: CMSIS-NN and older TFLite kernels (LiteRT#8567)."""
    return half_away(_float_product(accumulator, multiplier))


def double_precision(accumulator: Array, multiplier: Multiplier) -> Array:
    """In float64, halves away from zero: LiteRT's reference kernel of FULLY_CONNECTED, the only one
    for int16. In int8 a fixed point of 31 bits does not tell it from `single_round` but where a sum
    is a half.
    """
    return half_away(accumulator * multiplier.exact)


def _float_product(accumulator: Array, multiplier: Multiplier) -> Array:
    product: Array = accumulator.astype(np.float32) * multiplier.single
    return product


def single_round(accumulator: Array, multiplier: Multiplier) -> Array:
    """Ruy and TFLite built for single rounding: in 64 bits, halves up, once."""
    mantissa, shift = fixed_point(multiplier.exact)
    product = accumulator.astype(np.int64) * mantissa
    total = 31 - shift.astype(np.int64)
    rounded: Array = (product + (np.int64(1) << (total - 1))) >> total
    return rounded


def double_round(accumulator: Array, multiplier: Multiplier) -> Array:
    """gemmlowp: the upper half of the doubled product is rounded, and then the shifted result.

    SaturatingRoundingDoublingHighMul and RoundingDivideByPOT of gemmlowp/fixedpoint/fixedpoint.h:
    the first rounds halves up, the second away from zero.
    """
    return doubled(accumulator.astype(np.int64), *fixed_point(multiplier.exact))


def double_round_up(accumulator: Array, multiplier: Multiplier) -> Array:
    """Ruy on x86: as gemmlowp, but the shifted result is rounded halves up.

    Found by LiteRT 2.3.0's built-in kernels on AVX-512: they alone give -2 for -2.50001.
    """
    mantissa, shift = fixed_point(multiplier.exact)
    left, right = np.maximum(shift, 0).astype(np.int64), np.maximum(-shift, 0).astype(np.int64)
    high = ((accumulator.astype(np.int64) << left) * mantissa + (1 << 30)) >> 31
    rounded: Array = (high + ((np.int64(1) << right) >> 1)) >> right
    return rounded


def double_round_by_eights(accumulator: Array, multiplier: Multiplier) -> Array:
    """Built-in depthwise kernels on x86, N x C x H x W: eight channels at a time as
    `double_round_up`, what is left of them as `double_round`.

    Found by LiteRT 2.3.0 with 12, 13 and 20 channels.
    """
    channels = accumulator.shape[1]
    eights = (np.arange(channels) < channels // 8 * 8).reshape(-1, 1, 1)
    up, away = (scheme(accumulator, multiplier) for scheme in (double_round_up, double_round))
    return np.where(eights, up, away)


def integer_mean(total: Array, count: int, ratio: float) -> Array:
    """TFLite's integer MEAN: `total` of `count` integers, `ratio` of input to output scale.

    The multiplier ratio / count is truncated and the product double-rounded
    (MeanImpl of tensorflow/lite/kernels/internal/reference/integer_ops/mean.h).
    """
    mantissa, shift = (int(part) for part in fixed_point(np.array(ratio)))
    bits = min(int(count).bit_length() - 1, 32, 31 + shift)
    scaled = np.array((mantissa << bits) // count)
    return doubled(total.astype(np.int64), scaled, np.array(shift - bits))


def short_multiplier(accumulator: Array, multiplier: Multiplier) -> Array:
    """tflite-runtime's int16 kernels, and LiteRT's of convolutions. See `int16`."""
    return short_product(accumulator.astype(np.int64), *fixed_point(multiplier.exact))


REQUANTIZATIONS: dict[str, Callable[[Array, Multiplier], Array]] = {
    "float half even": float_half_even,
    "single round": single_round,
    "double round": double_round,
    "double round up": double_round_up,
    "float round away": float_round_away,
    "float64 round away": double_precision,
}
# By the dtype of the values; sums of int16 do not fit into the 32 bits of the others.
REQUANTIZATIONS_OF: dict[str, dict[str, Callable[[Array, Multiplier], Array]]] = {
    "int8": REQUANTIZATIONS,
    "int16": {
        "float64 round away": double_precision,
        "multiplier of 16 bits": short_multiplier,
    },
}
ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "half even": half_even,
    "half away": half_away,
    "half up": half_up,
}
INTEGER_AWAY = "integer half away"  # of the mean of integers, their zero point included
INTEGER_MEAN = "integer mean"
FLOAT32 = "float32 arithmetic"  # within its bound
EXACT = "exact"  # nothing to round
