"""Operators with weights: convolutions and linear layers, in integers where the file allows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from ...convolution import Array
from .lowering import Lowering, Real, Tail, quantization_of
from .values import Layer, Quantization, Value, Weights, Window
from .windows import window_of

CLAMPS = ("Relu", "Clip")
LONGEST = 1 << 16  # products in an int8 sum: 2**16 * 2**7 * 2**8 fit 31 bits


@dataclass(frozen=True)
class Quantized:
    """Constant integers less their zero point, and their scale for each output channel."""

    integers: Array
    scale: Array


def conv(low: Lowering, node: onnx.NodeProto) -> Value:
    """Conv, with the normalisation and the clamp after it."""
    weight = low.needed(node, 1)
    if weight.ndim != 4:
        raise ValueError(f"weights of shape {weight.shape}: only images are known")
    groups = int(low.attribute(node, "group", 1))
    window = window_of(low, node, (int(weight.shape[2]), int(weight.shape[3])))
    given = low.real(node.input[0])
    tail = low.tail(node, CLAMPS)
    quantized = _quantized(low, node.input[1], 0)
    if given is not None and tail is not None and quantized is not None:
        given = low.ordered(given)
        return _integers(low, node, tail, given, quantized, window, groups)
    return _floats(low, node, low.floats(node.input[0]), weight, _bias(low, node), window, groups)


def q_linear_conv(low: Lowering, node: onnx.NodeProto) -> Value:
    """QLinearConv: the integers are in the node itself."""
    given = low.ordered(low.taken_for(node.input[0], low.quantization(node)))
    weight, scale, zero = (low.needed(node, index) for index in (3, 4, 5))
    if weight.ndim != 4:
        raise ValueError(f"weights of shape {weight.shape}: only images are known")
    y_zero = low.needed(node, 7)
    name = node.output[0]
    quantization = quantization_of(low.needed(node, 6), y_zero)
    output = Value(name, low.source.shapes[name], y_zero.dtype, quantization)
    bias = low.constant(node, 8)
    window = window_of(low, node, (int(weight.shape[2]), int(weight.shape[3])))
    quantized = Quantized(
        weight.astype(np.int16) - zero.astype(np.int16).reshape(-1, 1, 1, 1),
        np.broadcast_to(scale.ravel(), len(weight)),
    )
    sums = np.zeros(len(weight), np.int64) if bias is None else bias.astype(np.int64)
    layer = Layer(
        *("convolution", ("QLinearConv",), (given,), output, window),
        weights=_weights(given, quantized, sums, output),
        groups=int(low.attribute(node, "group", 1)),
        low=-128,
        high=127,
    )
    return low.add(layer)


def linear(low: Lowering, node: onnx.NodeProto) -> Value:
    """Gemm, and MatMul by a constant with the bias after it: one window at a time."""
    if isinstance(low.known[node.input[1]], np.ndarray) and not isinstance(
        low.known[node.input[0]], np.ndarray
    ):
        return _linear(low, node)
    if node.op_type == "Gemm":
        raise ValueError("its second input must be a constant, and its first must not")
    return _product(low, node)


def _product(low: Lowering, node: onnx.NodeProto) -> Value:
    """MatMul of two values."""
    a, b = (low.floats(name) for name in node.input)
    if not 2 <= len(a.shape) == len(b.shape) <= 3 or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"the product of {a.shape} and {b.shape} is not known")
    return low.add(Layer("product", ("MatMul",), (a, b), low.output(node)))


def _linear(low: Lowering, node: onnx.NodeProto) -> Value:
    if low.attribute(node, "transA", 0):
        raise ValueError("transA is not known")
    alpha = float(low.attribute(node, "alpha", 1.0))
    weight = low.needed(node, 1).astype(np.float32) * np.float32(alpha)
    across = bool(low.attribute(node, "transB", 0))
    if weight.ndim != 2:
        raise ValueError(f"weights of shape {weight.shape}: only two axes are known")
    last, bias = _added(low, node, len(weight) if across else weight.shape[1])
    known = low.known[node.input[0]]
    given = known.value if isinstance(known, Real) else known
    assert isinstance(given, Value)
    if len(given.shape) not in (2, 3):
        raise ValueError(f"an input of shape {given.shape} is not known, only two or three axes")
    window = Window((1, 1))
    tail = low.tail(last, CLAMPS)
    quantized = _quantized(low, node.input[1], 0 if across else 1)
    if isinstance(known, Real) and tail is not None and quantized is not None and alpha == 1.0:
        integers = _as_kernels(quantized.integers, given, across)
        low.take(last)
        quantized = Quantized(integers, quantized.scale)
        return _integers(low, last, tail, given, quantized, window, 1, bias, (node.op_type,))
    if given.flattened is None or isinstance(known, Real):
        given = low.floats(node.input[0])
    low.take(last)
    kernels = _as_kernels(weight, given, across)
    return _floats(low, last, given, kernels, bias, window, 1, (node.op_type,))


def _added(low: Lowering, node: onnx.NodeProto, outputs: int) -> tuple[onnx.NodeProto, Array]:
    """The last node and the bias in float64: Gemm's own, or the Add of a constant after MatMul."""
    if node.op_type == "Gemm":
        bias = low.constant(node, 2)
        beta = float(low.attribute(node, "beta", 1.0))
        if bias is not None and bias.shape not in ((), (1,), (1, 1), (outputs,), (1, outputs)):
            raise ValueError(f"a bias of shape {bias.shape} is not known")
        bias = np.zeros(1) if bias is None else bias.astype(np.float64).ravel() * beta
        return node, np.broadcast_to(bias, outputs)
    following = low.following(node.output[0])
    if following is not None and following.op_type == "Add":
        for name in following.input:
            known = low.known.get(name)
            if not isinstance(known, np.ndarray) or known.dtype != np.float32:
                continue
            if known.shape in ((outputs,), (1, outputs)):
                return following, known.ravel().astype(np.float64)
    return node, np.zeros(outputs)


def _as_kernels(weight: Array, given: Value, across: bool) -> Array:
    """O x K, or K x O, as O x K x 1 x 1, in the order in which the input lies in memory."""
    rows = weight if across else weight.T
    if given.flattened is not None:
        channels, height, width = given.flattened
        rows = rows.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(rows.reshape(len(rows), -1, 1, 1))


def _bias(low: Lowering, node: onnx.NodeProto) -> Array:
    bias = low.constant(node, 2)
    outputs = len(low.needed(node, 1))
    return np.zeros(outputs) if bias is None else bias.astype(np.float64)


def _quantized(low: Lowering, name: str, axis: int) -> Quantized | None:
    """The int8 integers behind constant weights; None where they are floats or cannot be known."""
    node = low.source.dequantized.get(name)
    if node is None or low.attribute(node, "block_size", 0):
        return None
    integers, scale, zero = low.needed(node, 0), low.needed(node, 1), low.constant(node, 2)
    if integers.dtype not in (np.int8, np.uint8) or scale.dtype != np.float32:
        return None
    if scale.size > 1 and low.attribute(node, "axis", 1) % integers.ndim != axis:
        return None
    shape = [-1 if a == axis else 1 for a in range(integers.ndim)]
    zeros = np.zeros(1, np.int16) if zero is None else zero.astype(np.int16)
    outputs = integers.shape[axis]
    return Quantized(
        integers.astype(np.int16) - zeros.reshape(shape if zeros.size > 1 else [1]),
        np.broadcast_to(scale.ravel(), outputs),
    )


def _integers(
    low: Lowering,
    node: onnx.NodeProto,
    tail: Tail,
    given: Value,
    quantized: Quantized,
    window: Window,
    groups: int,
    bias: Array | None = None,
    operators: tuple[str, ...] = ("Conv",),
) -> Value:
    """An int8 layer: sums of integers, requantized by one float32 product."""
    output = low.quantized(tail.quantize)
    sums = _bias_sums(low, node, given, quantized, bias)
    weights = _weights(given, quantized, sums, output)
    ends = clamped(low, tail.between, output)
    low.take(*tail.between, tail.quantize)
    operators += tuple(n.op_type for n in tail.between)
    made = low.add(
        Layer(
            *("convolution", operators, (given,), output, window, weights, groups),
            low=ends[0],
            high=ends[1],
        )
    )
    low.known[made.name] = made
    return made


def _bias_sums(
    low: Lowering, node: onnx.NodeProto, given: Value, quantized: Quantized, bias: Array | None
) -> Array:
    """The bias in steps of s_x s_w: the file's own integers where it has such, else the nearest."""
    steps = given.scale.astype(np.float64) * quantized.scale.astype(np.float64)
    name = node.input[2] if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else ""
    dequantize = low.source.dequantized.get(name)
    if dequantize is not None and low.attribute(node, "beta", 1.0) == 1.0:
        integers, zero = low.needed(dequantize, 0), low.constant(dequantize, 2)
        scale = low.needed(dequantize, 1).astype(np.float64).ravel()
        whole = integers.dtype == np.int32 and (zero is None or not zero.any())
        if whole and np.allclose(scale, steps, 1e-6, 0):
            return np.broadcast_to(integers.ravel().astype(np.int64), steps.shape)
    values = bias if bias is not None else _bias(low, node)
    return np.rint(values / steps).astype(np.int64)


def _weights(given: Value, quantized: Quantized, sums: Array, output: Value) -> Weights:
    """Raises ValueError where a sum may be beyond 32 bits."""
    products = quantized.integers[0].size
    largest = np.abs(sums).max(initial=0) + 256 * np.abs(
        quantized.integers.astype(np.int64)
    ).reshape(len(quantized.integers), -1).sum(1).max(initial=0)
    if products > LONGEST or largest >= 2**31:
        raise ValueError(f"sums of {products} products may be beyond 32 bits")
    multiplier = np.float32(given.scale) * quantized.scale.astype(np.float32) / output.scale
    return Weights(quantized.integers, sums, multiplier.astype(np.float32))


def clamped(low: Lowering, clamps: Sequence[onnx.NodeProto], output: Value) -> tuple[float, float]:
    """What clamps before a quantization mean for its integers, in signed terms."""
    lowest, highest = -128.0, 127.0
    for node in clamps:
        ends = ends_of(low, node)
        bottom, top = (float(np.rint(end / float(output.scale))) + output.zero for end in ends)
        lowest, highest = (min(max(end, bottom), top) for end in (lowest, highest))
    return max(-128.0, min(lowest, 127.0)), max(-128.0, min(highest, 127.0))


def ends_of(low: Lowering, node: onnx.NodeProto) -> tuple[float, float]:
    """The real ends of a Relu or Clip."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    ends = [low.constant(node, index) for index in (1, 2)]
    bottom, top = (-math.inf, math.inf)
    if ends[0] is not None:
        bottom = float(ends[0].item())
    if ends[1] is not None:
        top = float(ends[1].item())
    return bottom, top


def _floats(
    low: Lowering,
    node: onnx.NodeProto,
    given: Value,
    weight: Array,
    bias: Array,
    window: Window,
    groups: int,
    operators: tuple[str, ...] = ("Conv",),
) -> Value:
    """A float32 layer, with the normalisation and the clamps after it merged in."""
    output = low.output(node)
    weight, bias = weight.astype(np.float64), np.asarray(bias, np.float64)
    bottom, top = -math.inf, math.inf
    following = low.following(node.output[0])
    while following is not None:
        normal = following.op_type == "BatchNormalization" and len(output.shape) in (2, 4)
        if normal and (bottom, top) == (-math.inf, math.inf):
            scale, shift = normalisation(low, following)
            if len(scale) != len(weight):
                break
            weight, bias = weight * scale.reshape(-1, 1, 1, 1), bias * scale + shift
        elif following.op_type in CLAMPS:
            ends = ends_of(low, following)
            bottom, top = (min(max(end, ends[0]), ends[1]) for end in (bottom, top))
        else:
            break
        low.take(following)
        operators += (following.op_type,)
        output = replace(output, name=following.output[0])
        following = low.following(following.output[0])
    weights = Weights(weight.astype(np.float32), bias.astype(np.float32))
    layer = Layer("convolution", operators, (given,), output, window, weights, groups)
    made = low.add(replace(layer, low=bottom, high=top))
    low.known[made.name] = made
    return made


def normalisation(low: Lowering, node: onnx.NodeProto) -> tuple[Array, Array]:
    """A BatchNormalization as scale and shift of each channel, float64 both."""
    if low.attribute(node, "training_mode", 0):
        raise ValueError("training_mode is not known")
    scale, shift, mean, variance = (low.needed(node, i).astype(np.float64) for i in range(1, 5))
    epsilon = float(low.attribute(node, "epsilon", 1e-5))
    ratio = scale / np.sqrt(variance + epsilon)
    return ratio, shift - mean * ratio


__all__ = ["Quantization", "clamped", "conv", "ends_of", "linear", "normalisation", "q_linear_conv"]
