"""Layers whose inputs a runtime quantizes by itself, as LiteRT's do where only weights are int8.

A convolution or linear layer with float32 values and int8 weights makes int8 of each image's input
x before it multiplies. Its built-in kernels take steps of max |x| / 127, symmetric; XNNPACK takes
(max(x, 0) - min(x, 0)) / 255, and a zero point. Rounded to the nearest step a value is off by a
half of it, whichever it is, and the layer by at most the sum of |W| over what is off: the bound of
such a layer, beside what float32 is off by in every other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .bounds import Bounded

# Of a step; float32 divides by it, and may just miss a half: 127 of them by 2 roundings each.
HALF = 0.5 + 254 * 2.0**-24


def stepped(x: Bounded) -> Bounded:
    """An input as such a layer takes it: real N x ..., each image with a step of its own."""
    axes = tuple(range(1, x.value.ndim))

    def off(error: npt.NDArray[Any]) -> npt.NDArray[Any]:
        low = np.minimum((x.value - error).min(axis=axes, keepdims=True), 0)
        high = np.maximum((x.value + error).max(axis=axes, keepdims=True), 0)
        step = np.maximum(np.maximum(-low, high) / 127, (high - low) / 255)
        return error + HALF * step

    return x._replace(error=off(x.error), likely=off(x.likely))
