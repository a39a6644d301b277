"""Matrices, normalisation, reduction, and what is computed element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from ..convolution import Array
from .call import Call, Ints, Operator, per_channel


def gemm(call: Call, *, alpha: float, beta: float, transA: int, transB: int) -> list[Array]:  # noqa: N803
    """Computes alpha A B + beta C, A and B transposed if asked, C broadcast."""
    a, b, c = call[0], call[1], call.optional(2)
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"matrices of shapes {a.shape} and {b.shape}")
    if a.dtype.kind != "f" and (alpha, beta) != (1, 1):
        raise ValueError("alpha or beta on integers is not supported")
    y = (a.T if transA else a) @ (b.T if transB else b)
    if alpha != 1:
        y = y * alpha
    if c is None:
        return [y]
    return [y + np.broadcast_to(c if beta == 1 else c * beta, y.shape)]


def batch_normalization(
    call: Call, *, epsilon: float, momentum: float, training_mode: int = 0
) -> list[Array]:
    """With measured mean and variance; `momentum` has a meaning in training only."""
    if training_mode:
        raise ValueError("training_mode is not supported")
    x = call[0]
    if x.ndim < 2:
        raise ValueError(f"input of shape {x.shape} has no channels")
    channels = (1, x.shape[1], *(1,) * (x.ndim - 2))
    scale, shift, mean, variance = (
        per_channel(call[i], x.shape[1]).reshape(channels) for i in range(1, 5)
    )
    return [((x - mean) / np.sqrt(variance + epsilon) * scale + shift).astype(x.dtype)]


def softmax(call: Call, *, axis: int) -> list[Array]:
    """Softmax: exp(x) / sum exp(x) along an axis."""
    powers = np.exp(call[0] - call[0].max(axis, keepdims=True))  # shifted: nothing overflows
    return [powers / powers.sum(axis, keepdims=True)]


def log_softmax(call: Call, *, axis: int) -> list[Array]:
    """The logarithm of softmax: x - log sum exp(x) along an axis."""
    shifted = call[0] - call[0].max(axis, keepdims=True)
    return [shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))]


def reduction(function: Callable[..., Array]) -> Operator:
    """`axes` is an attribute in the older definitions and an input in the newer."""

    def operator(
        call: Call, *, keepdims: int, noop_with_empty_axes: int = 0, axes: Ints = ()
    ) -> list[Array]:
        x, given = call[0], call.optional(1)
        chosen = tuple(int(a) for a in (axes if given is None else given))
        if not chosen and noop_with_empty_axes:
            return [x]
        return [function(x, axis=chosen or None, dtype=x.dtype, keepdims=bool(keepdims))]

    return operator


def mean(x: Array, **options: Any) -> Array:
    """Floats only: the standard does not say how a mean of integers is rounded."""
    if x.dtype.kind != "f":
        raise ValueError(f"the mean of {x.dtype} has no rounding in the standard")
    if not x.size:
        raise ValueError("the mean of nothing")
    return np.asarray(x.mean(**options))


def largest(x: Array, *, dtype: np.dtype[Any], **options: Any) -> Array:
    """The largest element; of none at all, the smallest number there is."""
    lowest = {"f": -np.inf, "b": False}
    initial = lowest[dtype.kind] if dtype.kind in lowest else np.iinfo(dtype).min
    return np.asarray(x.max(initial=initial, **options), dtype)


def elementwise(function: Callable[..., Array]) -> Operator:
    """One to many inputs, broadcast as NumPy does; integers wrap around."""

    def operator(call: Call) -> list[Array]:
        return [np.asarray(function(*(call[i] for i in range(len(call.inputs)))))]

    return operator


def every(function: Callable[[Array, Array], Array]) -> Operator:
    """Any number of inputs, taken together from left to right."""

    def operator(call: Call) -> list[Array]:
        return [reduce(function, (call[i] for i in range(len(call.inputs))))]

    return operator


def divide(a: Array, b: Array) -> Array:
    """Integers are truncated towards zero (Div, opset 14)."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not b.all():
        raise ValueError("an integer divided by zero")
    return np.asarray(a // b + ((a % b != 0) & ((a < 0) != (b < 0))).astype(a.dtype))


def power(x: Array, exponent: Array) -> Array:
    """Computes x ** exponent in the dtype of x; an integer's only where the result is one."""
    if x.dtype.kind != "f" and (exponent.dtype.kind == "f" or (exponent < 0).any()):
        raise ValueError(f"{x.dtype} to the power of {exponent.dtype} may not be an integer")
    return np.asarray(np.power(x, exponent.astype(x.dtype)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    small = np.exp(-np.abs(x))  # at most 1, whichever the sign: nothing overflows
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small))


def leaky_relu(call: Call, *, alpha: float) -> list[Array]:
    """Computes alpha x below zero, x above."""
    return [np.where(call[0] < 0, alpha * call[0], call[0])]


def elu(call: Call, *, alpha: float) -> list[Array]:
    """Computes alpha (exp(x) - 1) below zero, x above."""
    return [np.where(call[0] < 0, alpha * np.expm1(np.minimum(call[0], 0)), call[0])]


def hard_sigmoid(call: Call, *, alpha: float, beta: float) -> list[Array]:
    """Computes alpha x + beta, kept between 0 and 1."""
    return [np.clip(alpha * call[0] + beta, 0, 1)]


def hard_swish(x: Array) -> Array:
    """Computes x HardSigmoid(x) with alpha 1/6 and beta 0.5."""
    return x * np.clip(x / 6 + 0.5, 0, 1)


def erf(x: Array) -> Array:
    """2 / sqrt(pi) times the integral of exp(-t**2) from 0 to x."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), x.dtype)


def gelu(call: Call, *, approximate: str) -> list[Array]:
    """Half x (1 + erf(x / sqrt(2))), with erfc because that sum cancels below zero."""
    x = call[0]
    if approximate == "tanh":
        return [0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))]
    if approximate != "none":
        raise ValueError(f"approximate {approximate} is not supported")
    tail = np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2))
    return [(0.5 * x * tail).astype(x.dtype)]


def clip(call: Call) -> list[Array]:
    """Computes min(max, max(min, x)); the bounds are scalars."""
    y = call[0]
    for index, function in ((1, np.maximum), (2, np.minimum)):
        bound = call.optional(index)
        if bound is not None:
            if bound.shape != ():
                raise ValueError(f"bound of shape {bound.shape}, expected a scalar")
            y = function(y, bound)
    return [y]


def dropout(call: Call, *, seed: int = 0) -> list[Array]:
    """Inference: everything passes. `seed` and the ratio have a meaning in training only."""
    if (training := call.optional(2)) is not None and training.any():
        raise ValueError("training_mode is not supported")
    return [call[0], np.ones(call[0].shape, np.bool_)]
