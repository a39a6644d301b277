"""Constants, casts, and the way to integers and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from ..convolution import Array
from .call import Call, Ints, dtype_of

QUANTIZED = {"int8", "uint8", "int16", "uint16"}


def constant(
    call: Call,
    *,
    value: Array | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Ints | None = None,
) -> list[Array]:
    """One value: a tensor, or numbers as float32 or int64."""
    given = [np.asarray(v, np.float32) for v in (value_float, value_floats) if v is not None]
    given += [np.asarray(v, np.int64) for v in (value_int, value_ints) if v is not None]
    given += [value] if value is not None else []
    if len(given) != 1:
        raise ValueError(f"{len(given)} values, expected one")
    return given


def constant_of_shape(call: Call, *, value: Array | None = None) -> list[Array]:
    """A tensor of one value, by default float32 zeros."""
    fill = np.zeros(1, np.float32) if value is None else value
    if fill.size != 1:
        raise ValueError(f"value of shape {fill.shape}, expected one element")
    return [np.full(call[0].tolist(), fill.item(), fill.dtype)]


def _cast_to(x: Array, dtype: np.dtype[Any]) -> list[Array]:
    """float64 stands for the exact number: as `float` it stays what it is, unrounded."""
    if x.dtype.kind == "f" and dtype.kind in "iu":
        whole = np.trunc(x.astype(np.float64))
        limits = np.iinfo(dtype)
        # The limit itself may not be a float64; the power of two after it is.
        if not ((whole >= limits.min) & (whole < float(limits.max + 1))).all():
            raise ValueError(f"values that {dtype} cannot hold: their cast is not defined")
    if x.dtype == np.float64 and dtype.kind == "f":
        return [x if dtype.itemsize > 2 else x.astype(dtype).astype(np.float64)]
    return [x.astype(dtype)]


def cast(call: Call, *, to: int, saturate: int = 1, round_mode: str = "up") -> list[Array]:
    """`saturate` and `round_mode` have a meaning for 8-bit floats only, which are refused."""
    return _cast_to(call[0], dtype_of(to))


def cast_like(call: Call, *, saturate: int = 1, round_mode: str = "up") -> list[Array]:
    """Cast to the dtype of the second input."""
    return _cast_to(call[0], call[1].dtype)


def saturated(values: Array, dtype: np.dtype[Any]) -> Array:
    """Whole numbers as integers, the nearest there is. Raises ValueError for a NaN."""
    if np.isnan(values).any():
        raise ValueError("NaN is no integer")
    limits = np.iinfo(dtype)
    return np.clip(values, limits.min, limits.max).astype(dtype)


def _spread(values: Array, x: Array, axis: int, block_size: int) -> Array:
    """A scale or zero point, ready to meet `x`: for all of it, one per index of an axis, or one
    per block of `block_size` indices.
    """
    if values.ndim == 0 or values.shape == x.shape == (1,):
        return values
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} of a tensor of rank {x.ndim}")
    axis %= x.ndim
    size = x.shape[axis]
    if not block_size and values.shape == (size,):
        return values.reshape([size if a == axis else 1 for a in range(x.ndim)])
    blocks = (
        tuple(-(-n // block_size) if a == axis else n for a, n in enumerate(x.shape))
        if block_size > 0
        else None
    )
    if values.shape != blocks:
        raise ValueError(f"scale or zero point of shape {values.shape} for {x.shape}, axis {axis}")
    return values.repeat(block_size, axis).take(np.arange(size), axis)


def _same_type(to: int, scale: Array, attribute: str) -> None:
    """No second precision: it must be the scale's, or be `float` where float64 stands for it."""
    exact = scale.dtype == np.float64 and to == onnx.TensorProto.FLOAT
    if to and not exact and dtype_of(to) != scale.dtype:
        raise ValueError(f"{attribute} {dtype_of(to)} with a scale of {scale.dtype}")


def quantize_linear(
    call: Call,
    *,
    axis: int,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> list[Array]:
    """saturate(round(x / y_scale) + y_zero_point), halves to even; divided in the scale's dtype.

    The attribute `saturate` has a meaning for 8-bit floats only, which are refused.
    """
    x, scale, zero = call[0], call[1], call.optional(2)
    _same_type(precision, scale, "precision")
    dtype = zero.dtype if zero is not None else dtype_of(output_dtype or onnx.TensorProto.UINT8)
    if (output_dtype and dtype_of(output_dtype) != dtype) or dtype.name not in QUANTIZED:
        raise ValueError(f"output_dtype {output_dtype} and a zero point of {dtype}")
    if scale.dtype.kind != "f":
        raise ValueError(f"a scale of {scale.dtype} is not supported")
    y = np.rint(x.astype(scale.dtype) / _spread(scale, x, axis, block_size))
    return [saturated(y + _zero_point(zero, scale, x, axis, block_size), dtype)]


def dequantize_linear(
    call: Call, *, axis: int, block_size: int = 0, output_dtype: int = 0
) -> list[Array]:
    """(x - x_zero_point) * x_scale, in the scale's dtype."""
    x, scale, zero = call[0], call[1], call.optional(2)
    _same_type(output_dtype, scale, "output_dtype")
    if x.dtype == np.int32 and zero is not None and zero.any():
        raise ValueError("int32 with a zero point other than 0")
    steps = x.astype(np.float64) - _zero_point(zero, scale, x, axis, block_size)
    return [steps.astype(scale.dtype) * _spread(scale, x, axis, block_size)]


def _zero_point(zero: Array | None, scale: Array, x: Array, axis: int, block_size: int) -> Array:
    """In float64: a sum in float16 would round it away."""
    if zero is None:
        return np.zeros(())
    if zero.shape != scale.shape:
        raise ValueError(f"zero point of shape {zero.shape}, scale of shape {scale.shape}")
    return _spread(zero, x, axis, block_size).astype(np.float64)
