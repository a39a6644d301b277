"""What TFLite's int16 kernels compute otherwise than those of int8: a multiplier of 16 bits,
sigmoid and tanh by a table, and sums and products in integers.

Written down from tensorflow/lite/kernels: activations.cc, add.cc and mul.cc, where parameters are
prepared; internal/common.cc, MultiplyByQuantizedMultiplier of int64; and logistic.h, tanh.h, add.h
and mul.h of internal/reference/integer_ops. XNNPACK takes no int16: in LiteRT and tflite-runtime
these kernels run, whatever is asked for; only ADD has a built-in one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .fixed_point import doubled, fixed_point

Array = npt.NDArray[Any]  # of int64
Inputs = Sequence[Array]
Scales = Sequence[float]

# The kernels' table is sigmoid(i / 24) in steps of 2^-16, which some entries exceed by one step, so
# that what is between entries is nearer. Which, can be read off TANH: fed 128 i of scale 2 / 12288,
# it returns entry i less 2^15.
ONE_MORE = (
    *(4, 8, 12, 14, 15, 16, 17, 19, 20, 21, 22, 25, 27, 28, 29, 30, 31, 33, 34, 35, 37, 39, 40, 41),
    *(43, 44, 45, 46, 49, 50, 54, 62, 63, 64, 66, 82, 86, 93, 100, 103, 112, 116, 135, 255),
)
TABLE = np.rint(65536 / (1 + np.exp(-np.arange(256) / 24))).astype(np.int64)
TABLE[list(ONE_MORE)] += 1
PER_UNIT = 3 * 4096  # in how many parts 1 is divided before the table is looked up


def short_product(accumulator: Array, mantissa: Array, shift: Array) -> Array:
    """An int64 sum times mantissa 2**(shift - 31), of which 16 bits are kept; halves up, once."""
    reduced = np.where(mantissa < 0x7FFF0000, (mantissa + (1 << 15)) >> 16, 0x7FFF)
    total = 15 - shift.astype(np.int64)
    return np.asarray((accumulator * reduced + (np.int64(1) << (total - 1))) >> total)


def _looked_up(x: Array, scale: float, bits: int) -> tuple[Array, Array]:
    """The table between its entries, in steps of 2**-(16 + bits): sigmoid of |x| scale, if `bits`
    is 9, of twice that if 8; and x in parts, for its sign.
    """
    multiplier, shift = float(np.float32(scale)) * PER_UNIT, 0
    while multiplier <= 32767 / 2 and shift <= 30:
        multiplier, shift = 2 * multiplier, shift + 1
    parts = x * int(multiplier)
    if shift:
        parts = (parts + (1 << (shift - 1))) >> shift
    size = np.abs(parts)
    entry = np.minimum(size >> bits, 254)
    below, above = TABLE[entry], TABLE[entry + 1]
    return (below << bits) + (size & ((1 << bits) - 1)) * (above - below), parts


def sigmoid(inputs: Inputs, scales: Scales, _: float) -> Array:
    """In steps of 2**-15."""
    found, parts = _looked_up(inputs[0], scales[0], 9)
    found = np.where(np.abs(parts) >> 9 >= 255, 0x7FFF << 10, found)
    found = np.where(parts >= 0, found + (1 << 9), (1 << 25) - found + (1 << 9) - 1)
    return np.asarray(found >> 10)


def tanh(inputs: Inputs, scales: Scales, _: float) -> Array:
    """In steps of 2**-15: 2 sigmoid(2 x) - 1."""
    found, parts = _looked_up(inputs[0], scales[0], 8)
    found = np.where(np.abs(parts) >> 8 >= 255, 0xFFFF << 8, found)
    found = np.where(parts >= 0, found - (1 << 23), (1 << 23) - found - 1)
    return np.asarray((found + (1 << 7)) >> 8)


def add(
    inputs: Inputs, scales: Scales, scale: float, sign: int = 1, at_once: bool = False
) -> Array:
    """Both terms are brought to twice the larger scale, with 15 bits more, and so is their sum.

    `at_once` is how the built-in kernel of ADD does it with AVX2: the shift by 15 bits is part of
    the multiplier's, so that a term is rounded once.
    """
    twice = 2 * max(scales)
    before, bits = (0, 15) if at_once else (15, 0)
    one, other = (_times(x << before, s / twice, bits) for x, s in zip(inputs, scales, strict=True))
    return _times(one + sign * other, twice / (2**15 * scale))


def multiply(inputs: Inputs, scales: Scales, scale: float) -> Array:
    """The product of the integers, times that of their scales by the result's, a float32."""
    factor = np.float32(scales[0]) * np.float32(scales[1]) / np.float32(scale)
    return _times(inputs[0] * inputs[1], float(factor))


def _times(x: Array, factor: float, bits: int = 0) -> Array:
    mantissa, shift = fixed_point(np.array(factor))
    return doubled(x, mantissa, shift + bits)


# By ONNX operator the schemes that there are, by name. A kernel takes the integers and scales of
# its inputs, and the scale of its result.
KERNELS: dict[str, dict[str, Callable[[Inputs, Scales, float], Array]]] = {
    "Sigmoid": {"sigmoid table": sigmoid},
    "Tanh": {"tanh table": tanh},
    "Add": {"integer sum": add, "integer sum at once": partial(add, at_once=True)},
    "Sub": {"integer sum": partial(add, sign=-1)},
    "Mul": {"integer product": multiply},
}
