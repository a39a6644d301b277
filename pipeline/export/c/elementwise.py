"""Operators on each element by itself, and those along an axis: Concat, Softmax, normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from ...reference import compute
from .lowering import Lowering, Real
from .values import Array, Layer, Value
from .weighted import CLAMPS, clamped, ends_of, normalisation

# Of one variable: an int8 layer of any of them, one after the other, is a table of 256 results.
UNARY = ("Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid", "Tanh")


def unary(low: Lowering, node: onnx.NodeProto) -> Value:
    """A table for integers, a loop for floats."""
    given = low.real(node.input[0])
    tail = low.tail(node, UNARY)
    if given is not None and tail is not None:
        low.take(*tail.between, tail.quantize)
        made = _table(low, low.ordered(given), [node, *tail.between], low.quantized(tail.quantize))
        low.known[made.name] = made
        return made
    value = low.floats(node.input[0])
    settings = {}
    bottom, top = ends_of(low, node) if node.op_type in CLAMPS else (-math.inf, math.inf)
    if node.op_type == "LeakyRelu":
        settings["alpha"] = np.float32(low.attribute(node, "alpha", 0.01))
    kind = "clip" if node.op_type in CLAMPS else "unary"
    return low.add(
        Layer(
            *(kind, (node.op_type,), (value,), low.output(node)),
            low=min(bottom, top),  # where min is beyond max, ONNX has all of it max
            high=top,
            settings=settings,
        )
    )


def _table(low: Lowering, given: Value, nodes: Sequence[onnx.NodeProto], output: Value) -> Value:
    """The nodes, one after the other, on every integer that there is."""
    integers = np.arange(256).astype(np.uint8).view(np.int8).astype(np.float64)
    values = (integers - given.zero) * float(given.scale)
    for node in nodes:
        rest = [low.constant(node, index) for index in range(1, len(node.input))]
        rest = [None if r is None else r.astype(np.float64) for r in rest]
        values = compute(node, [values, *rest], low.source.opset)[0]
    steps = np.clip(np.rint(values / float(output.scale)) + output.zero, -128, 127)
    operators = tuple(node.op_type for node in nodes) or ("QuantizeLinear",)
    settings = {"table": steps.astype(np.int8)}
    return low.add(Layer("lookup", operators, (given,), output, settings=settings))


def quantize(low: Lowering, node: onnx.NodeProto) -> Value:
    """No code where the integers are there already, a table where they are others."""
    output = low.quantized(node)
    given = low.real(node.input[0])
    if given is None:
        value = low.floats(node.input[0])
        return low.add(Layer("quantize", ("QuantizeLinear",), (value,), output))
    if (given.dtype, given.quantization) == (output.dtype, output.quantization):
        return low.rename(given, node)
    return _table(low, low.ordered(given), [], output)


def dequantize(low: Lowering, node: onnx.NodeProto) -> Real:
    """No code: the integers are remembered."""
    if low.source.dtypes[node.output[0]] != np.float32:
        raise ValueError(f"{low.source.dtypes[node.output[0]]} is not known, only float32")
    return Real(low.taken_for(node.input[0], low.quantization(node)))


def binary(low: Lowering, node: onnx.NodeProto) -> Value:
    """Add, Sub and Mul, in integers where both are dequantized and the result quantized."""
    reals = [low.real(name) for name in node.input]
    tail = low.tail(node, CLAMPS)
    if tail is not None and all(reals):
        output = low.quantized(tail.quantize)
        ends = clamped(low, tail.between, output)
        low.take(*tail.between, tail.quantize)
        given = tuple(low.ordered(value) for value in reals if value is not None)
        operators = (node.op_type, *(n.op_type for n in tail.between))
        made = low.add(Layer("binary", operators, given, output, low=ends[0], high=ends[1]))
        low.known[made.name] = made
        return made
    inputs: list[Value] = []
    settings: dict[str, Array] = {}
    for side, name in zip("ab", node.input, strict=True):
        known = low.known[name]
        if isinstance(known, np.ndarray):
            if known.dtype != np.float32:
                raise ValueError(f"a constant of {known.dtype} is not known, only float32")
            settings[side] = known
        else:
            inputs.append(low.floats(name))
    output = low.output(node)
    return low.add(Layer("binary", (node.op_type,), tuple(inputs), output, settings=settings))


def batch_normalization(low: Lowering, node: onnx.NodeProto) -> Value:
    """One that no layer before it could take in."""
    value = low.floats(node.input[0])
    scale, shift = (part.astype(np.float32) for part in normalisation(low, node))
    if len(value.shape) not in (2, 4):
        raise ValueError(f"a value of shape {value.shape} is not known, only two or four axes")
    settings = {"scale": scale, "shift": shift}
    return low.add(
        Layer("normalise", ("BatchNormalization",), (value,), low.output(node), settings=settings)
    )


def concat(low: Lowering, node: onnx.NodeProto) -> Value | Real:
    """Concat: of integers where all of them are to have one scale."""
    given = [low.real(name) for name in node.input]
    tail = low.tail(node, ())
    shape = low.source.shapes[node.output[0]]
    axis = int(low.attribute(node, "axis")) % len(shape)
    if tail is not None and all(given):
        output = low.quantized(tail.quantize)
        low.take(tail.quantize)
        values = []
        for number, value in enumerate(low.ordered(v) for v in given if v is not None):
            if (value.dtype, value.quantization) != (output.dtype, output.quantization):
                name = f"{output.name} part {number}"
                part = Value(name, value.shape, output.dtype, output.quantization)
                value = _table(low, value, [], part)
            values.append(value)
    else:
        output = low.output(node)
        values = [low.floats(name) for name in node.input]
    settings = {"axis": axis}
    made = low.add(Layer("concat", ("Concat",), tuple(values), output, settings=settings))
    low.known[made.name] = made
    return made


def softmax(low: Lowering, node: onnx.NodeProto) -> Value:
    """Softmax along one axis, as ONNX has it since opset 13."""
    if low.source.opset < 13:
        raise ValueError(f"its definition at opset {low.source.opset} is not known, only from 13")
    shape = low.source.shapes[node.input[0]]
    settings = {"axis": int(low.attribute(node, "axis", -1)) % len(shape)}
    given = low.real(node.input[0])
    tail = low.tail(node, ())
    if given is not None and tail is not None:
        low.take(tail.quantize)
        value, output = low.ordered(given), low.quantized(tail.quantize)
    else:
        value, output = low.floats(node.input[0]), low.output(node)
    made = low.add(Layer("softmax", ("Softmax",), (value,), output, settings=settings))
    low.known[made.name] = made
    return made
