"""What generated C consists of: values that lie in one arena, and layers that compute them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
IMAGE_AXES = 4  # values of so many axes are stored N x H x W x C, all others as they are


@dataclass(frozen=True)
class Quantization:
    """real = scale * (integer - zero_point); the integers are those of the value's plain type."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True)
class Value:
    """One value. `shape` is ONNX's, batch included; `dtype` float32, int8 or uint8.

    `storage` names the value whose memory this one is, seen in another shape. `flattened` is
    (C, H, W) where elements were C x H x W and lie H x W x C.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    quantization: Quantization | None = None
    storage: str = ""
    flattened: tuple[int, int, int] | None = None

    @property
    def root(self) -> str:
        """The name of the memory."""
        return self.storage or self.name

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether elements are float32, else bytes."""
        return bool(self.dtype == np.float32)

    @property
    def zero(self) -> int:
        """The zero point in signed terms, in which uint8 v is v - 128; 0 for a float."""
        if self.quantization is None:
            return -128 if self.dtype == np.uint8 else 0
        return self.quantization.zero_point - (128 if self.dtype == np.uint8 else 0)

    @property
    def scale(self) -> np.float32:
        """The scale of a quantized value."""
        assert self.quantization is not None
        return self.quantization.scale


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an image. `pads` are top, left, bottom, right."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Weights:
    """Of a convolution: `array` O x I x h x w, `bias` O. float32 both, or integers: then
    `multiplier` is s_x s_w / s_y in float32 for each output channel.
    """

    array: Array
    bias: Array
    multiplier: Array | None = None


@dataclass(frozen=True)
class Layer:
    """`output` from `inputs`. `kind` names the template that writes it.

    `operators` are ONNX's. `low` and `high` clamp the result: integers in signed terms, zero point
    included, or reals. `pool` is the window of a max pooling over a convolution's output.
    `settings` has what one kind alone needs.
    """

    kind: str
    operators: tuple[str, ...]
    inputs: tuple[Value, ...]
    output: Value
    window: Window | None = None
    weights: Weights | None = None
    groups: int = 1
    low: float = -math.inf
    high: float = math.inf
    pool: tuple[int, int] = (1, 1)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Layers in the order in which they run; `opset` is that of the file they come from."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    layers: tuple[Layer, ...]
    opset: int


def stored_shape(shape: Shape) -> Shape:
    """A shape with its axes in the order of memory."""
    if len(shape) != IMAGE_AXES:
        return shape
    batch, channels, height, width = shape
    return batch, height, width, channels


def stored(array: Array) -> Array:
    """An array of ONNX's axes with its axes in the order of memory."""
    return array.transpose(0, 2, 3, 1) if array.ndim == IMAGE_AXES else array


def plain(array: Array) -> Array:
    """Back from the order of memory."""
    return array.transpose(0, 3, 1, 2) if array.ndim == IMAGE_AXES else array
