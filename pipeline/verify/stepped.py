"""Layers whose inputs a runtime quantizes by itself, as LiteRT's do where only weights are int8.

A convolution or linear layer with float32 values and int8 weights makes int8 of each image's input
x before it multiplies, in one of these ways:

- symmetric, as TFLite's own linear layers: the step is max |x| / 127, and zero is 0;
- asymmetric, as its convolutions and XNNPACK: the step is (max(x, 0) - min(x, 0)) / 255, and zero
  the integer that puts both ends nearest to -128 and 127;
- the same for every pixel by itself, over its channels, as XNNPACK's 1 x 1 convolutions.

Which one it is, is found out: one of them must reproduce every element, up to float32's roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .bounds import Bounded, U

Array = npt.NDArray[Any]
HALF = 0.5 + 256 * U  # of a step: float32 makes a quotient of up to 255, and may just miss a half
ROUNDINGS = 4  # of an input's share in the result: its step, the step's reciprocal, both scales


def stepped(x: Bounded) -> Bounded:
    """An input with all that it may be off by, in either way. Real N x ..., N images."""

    def off(error: Array) -> Array:
        low, high = _ends(x.value - error, x.value + error)
        step = np.maximum(np.maximum(-low, high) / 127, (high - low) / 255)
        return np.asarray(error + HALF * step)

    return x._replace(error=off(x.error), likely=off(x.likely))


def symmetric(x: Array) -> Bounded:
    """Zero is 0, and the farther end -127 or 127."""
    low, high = _ends(x, x)
    step = np.maximum(-low, high) / 127
    return _in_steps(x, np.where(step > 0, step, 1), np.zeros_like(step), -127)


def asymmetric(x: Array) -> Bounded:
    """Both ends are as near to -128 and 127 as a whole zero lets them."""
    return _asymmetric(x, _ends(x, x))


def each_pixel(x: Array) -> Bounded:
    """N x C x H x W, asymmetric, each pixel with a step of its own."""
    return _asymmetric(x, _ends(x, x, (1,)))


def _asymmetric(x: Array, ends: tuple[Array, Array]) -> Bounded:
    low, high = ends
    step = np.where(high > low, (high - low) / 255, 1)
    down, up = -128 + low / step, 127 + high / step
    zero = np.rint(
        np.clip(np.where(down + up <= 0, -128 - low / step, 127 - high / step), -128, 127)
    )
    return _in_steps(x, step, zero, -128)


def ways_of(x: Array) -> dict[str, Callable[[Array], Bounded]]:
    """The ways that there are for inputs of this shape, by name."""
    ways: dict[str, Callable[[Array], Bounded]]
    ways = {"symmetric": symmetric, "asymmetric": asymmetric}
    return ways | {"asymmetric each pixel": each_pixel} if x.ndim == 4 else ways


def _ends(low: Array, high: Array, axes: tuple[int, ...] | None = None) -> tuple[Array, Array]:
    """Over these axes, by default those of an image, with zero between them; the axes stay."""
    axes = axes or tuple(range(1, low.ndim))
    least, most = low.min(axis=axes, keepdims=True), high.max(axis=axes, keepdims=True)
    return np.minimum(least, 0), np.maximum(most, 0)


def _in_steps(x: Array, step: Array, zero: Array, least: int) -> Bounded:
    """At a half, as near as float32 can tell, either neighbour is right."""
    exact = x / step
    nearest = np.rint(exact)
    value = (np.clip(nearest + zero, least, 127) - zero) * step
    at_half = np.abs(exact - nearest) > 1 - HALF
    error = ROUNDINGS * U * np.abs(value) + step * at_half
    return Bounded(value, error, error, np.abs(value))
