"""What every operator gets, and the dtypes that are computed with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..convolution import Array

# ONNX's names of the dtypes that are computed with; float64 stands for the exact number as well.
DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "bool": np.dtype(np.bool_),
    **{
        f"{kind}{bits}": np.dtype(f"{kind}{bits}")
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
}
Ints = Sequence[int]


@dataclass(frozen=True)
class Call:
    """A node's inputs, None where one is left out; how many outputs it asks for; its opset."""

    inputs: tuple[Array | None, ...]
    outputs: int
    opset: int

    def __getitem__(self, index: int) -> Array:
        """A required input."""
        value = self.inputs[index]
        if value is None:
            raise ValueError(f"input {index} is left out")
        return value

    def optional(self, index: int) -> Array | None:
        """An input, or None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None


Operator = Callable[..., list[Array]]


def dtype_of(to: int) -> np.dtype[Any]:
    """The dtype of one of TensorProto's numbers. Raises ValueError for one not computed with."""
    name = onnx.TensorProto.DataType.Name(to)
    if name.lower() not in DTYPES:
        raise ValueError(f"dtype {name} is not supported")
    return DTYPES[name.lower()]


def per_channel(values: Array, channels: int) -> Array:
    """C values, ready to meet N x C x H x W. Raises ValueError for another number of them."""
    if values.shape != (channels,):
        raise ValueError(f"shape {values.shape}, expected one value for each of {channels}")
    return values.reshape(-1, 1, 1)
