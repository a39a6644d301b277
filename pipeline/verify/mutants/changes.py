"""What is changed alike in every kind of file: constants, and windows with their padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ModelFile:
    """A mutation changes a model at one of its operators, or returns False and changes nothing."""

    mutations: dict[str, Callable[[Any, Any], bool]]
    fresh: Callable[[], Any]
    layers: Callable[[Any], list[tuple[str, Any]]]
    content: Callable[[Any], bytes]


# --- Constants: O x I x rows x columns or O x I, or a bias of O, to a wrong one; None: impossible.


def _typical(values: Array) -> int:
    """Where the middle one of the sizes is: neither a weight that hardly counts nor the largest."""
    order = np.abs(values.astype(np.float64)).argsort(axis=None, kind="stable")
    return int(order[len(order) // 2])


def _one_tap(weight: Array, bits: int) -> Array | None:
    changed, index = weight.copy(), _typical(weight)
    if weight.dtype == np.float32:
        changed.flat[index] *= np.float32(1 + 2.0**-bits)
    elif bits == 10:
        changed.flat[index] += 1 if changed.flat[index] < 127 else -1
    return changed


def _transposed(weight: Array) -> Array | None:
    square = weight.ndim == 4 and weight.shape[2] == weight.shape[3]
    return weight.swapaxes(2, 3) if square else None


def _flipped(weight: Array) -> Array | None:
    return weight[:, :, ::-1, ::-1] if weight.ndim == 4 else None


def _permuted(weight: Array) -> Array | None:
    return weight[[-1, *range(1, len(weight) - 1), 0]] if len(weight) > 1 else None


def _biased(bias: Array) -> Array | None:
    changed, largest = bias.copy(), int(np.abs(bias).argmax())
    step = np.abs(bias[largest]) * np.float32(2.0**-12) or np.float32(2.0**-12)
    changed[largest] += step if bias.dtype == np.float32 else 1
    return changed


# Name to the operator's input that is changed, and how.
CONSTANTS: dict[str, tuple[int, Callable[[Array], Array | None]]] = {
    "one tap": (1, partial(_one_tap, bits=10)),
    "one tap, 2^-20": (1, partial(_one_tap, bits=20)),
    "transposed kernel": (1, _transposed),
    "flipped kernel": (1, _flipped),
    "channel permutation": (1, _permuted),
    "bias": (2, _biased),
}


# --- Windows: pairs of rows and columns; `pads` has a (before, after) for each of the two.


@dataclass(frozen=True)
class Window:
    """What a convolution or pooling is laid over, along rows and columns."""

    size: Array
    out: Array
    reach: Array  # dilation x (kernel - 1) + 1
    stride: Array
    pads: Array

    @property
    def full(self) -> Array:
        """The input that the windows just cover."""
        covered: Array = (self.out - 1) * self.stride + self.reach - self.pads.sum(1)
        return covered

    def with_wrong_strides(self) -> Window:
        """Its `full` is the input that gives the same output."""
        equal = self.stride[0] == self.stride[1]
        stride = np.array([1, self.stride[1]]) if equal else self.stride[::-1]
        return replace(self, stride=stride)


def moved(pads: Array, number: int) -> Array | None:
    """Padding, (before, after) an axis, with 1 of the `number`th padded axis on the other side."""
    padded = np.flatnonzero(pads.any(1))
    if number >= len(padded):
        return None
    changed, axis = pads.copy(), padded[number]
    before, after = pads[axis]
    changed[axis] = (after, before) if before != after else (before - 1, after + 1)
    return changed
