"""The layers in NumPy: what the generated C must compute, integers bit for bit.

Integers are in signed terms, in which a uint8 v is v - 128. Floats are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from ...reference import compute
from .lowering import positions_of
from .values import Array, Layer, Program, Value, Window

OPSET = 20


def evaluate(program: Program, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every layer's value by name, in ONNX's axes: float64, or int64 in signed terms.

    `inputs` are the program's, likewise.
    """
    memory = {value.root: inputs[value.name] for value in program.inputs}
    for layer in program.layers:
        given = [seen(value, memory[value.root]) for value in layer.inputs]
        memory[layer.output.root] = KINDS[layer.kind](layer, *given).reshape(layer.output.shape)
    return memory


def seen(value: Value, array: Array) -> Array:
    """Memory in the shape of one of the values that lie in it."""
    if array.shape == value.shape and not value.storage:
        return array
    root = Value(value.root, array.shape, value.dtype)
    lying = np.empty(array.size, array.dtype)
    lying[positions_of(root)] = array
    return lying[positions_of(value)]


def _node(operator: str, inputs: Sequence[Array | None], **attributes: object) -> Array:
    names = [f"i{number}" if value is not None else "" for number, value in enumerate(inputs)]
    node: onnx.NodeProto = helper.make_node(operator, names, ["y"], **attributes)
    return compute(node, inputs, OPSET)[0]


def _clamped(layer: Layer, values: Array) -> Array:
    return np.clip(values, layer.low, layer.high)


def _requantized(layer: Layer, real: Array) -> Array:
    """Halves to even, the zero point, the clamp; `real` in steps of the output."""
    steps = np.rint(real).astype(np.int64) + layer.output.zero
    low, high = max(layer.low, -128), min(layer.high, 127)
    return np.clip(steps, int(low), int(high))


def _windowed(window: Window) -> dict[str, object]:
    return {
        "kernel_shape": window.kernel,
        "strides": window.stride,
        "dilations": window.dilation,
        "pads": window.pads,
    }


def _convolution(layer: Layer, x: Array) -> Array:
    assert layer.weights is not None and layer.window is not None
    weights, given = layer.weights, layer.inputs[0]
    image = len(layer.output.shape) == 4
    if not image:  # a linear layer: one window a row, its elements as they lie
        x = _as_it_lies(given, x).reshape(-1, weights.array.shape[1], 1, 1)
    x = x.astype(np.float64) - given.zero if not given.is_float else x
    inputs = [x, weights.array.astype(np.float64), weights.bias.astype(np.float64)]
    attributes = _windowed(layer.window)
    sums = _node("Conv", inputs, group=layer.groups, **attributes)
    if layer.pool != (1, 1):
        sums = _node("MaxPool", [sums], kernel_shape=layer.pool, strides=layer.pool)
    if weights.multiplier is None:
        return _clamped(layer, sums)
    product = sums.astype(np.float32) * weights.multiplier.reshape(-1, 1, 1)
    return _requantized(layer, product)


def _as_it_lies(value: Value, array: Array) -> Array:
    """The elements in the order of memory where that is not the order of ONNX."""
    if value.flattened is None:
        return array
    lying = np.empty(array.size, array.dtype)
    lying[positions_of(value).ravel()] = array.ravel()
    return lying


def _max_pool(layer: Layer, x: Array) -> Array:
    assert layer.window is not None
    out = layer.output.shape[2:]
    pooled = _node("MaxPool", [x.astype(np.float64)], **_covering(layer, x.shape[2:], out))
    return pooled.astype(x.dtype)


def _covering(layer: Layer, sizes: tuple[int, ...], out: tuple[int, ...]) -> dict[str, object]:
    """The window's attributes, with ceil_mode where it takes that to give so many windows."""
    assert layer.window is not None
    window = layer.window
    floors = [
        (
            size
            + window.pads[a]
            + window.pads[a + 2]
            - window.dilation[a] * (window.kernel[a] - 1)
            - 1
        )
        // window.stride[a]
        + 1
        for a, size in enumerate(sizes)
    ]
    return _windowed(window) | {"ceil_mode": int(tuple(floors) != tuple(out))}


def _average_pool(layer: Layer, x: Array) -> Array:
    assert layer.window is not None
    given = layer.inputs[0]
    out = layer.output.shape[2:] if len(layer.output.shape) == 4 else (1, 1)
    attributes = _covering(layer, x.shape[2:], out)
    attributes["count_include_pad"] = int(layer.settings["count_padding"])
    if given.is_float:
        return _node("AveragePool", [x], **attributes)
    real = x.astype(np.float64) - given.zero
    mean = _node("AveragePool", [real], **attributes)
    counts = _counts(layer, x.shape[2:], out)
    ratio = np.float32(given.scale) / np.float32(layer.output.scale)
    total = np.rint(mean * counts).astype(np.float32)
    return _requantized(layer, total * (ratio / counts.astype(np.float32)))


def _counts(layer: Layer, sizes: tuple[int, ...], out: tuple[int, ...]) -> Array:
    """How many elements the mean at each position is of, H x W."""
    assert layer.window is not None
    window, along = layer.window, []
    for axis, (size, count) in enumerate(zip(sizes, out, strict=True)):
        before, after = (window.pads[axis], window.pads[axis + 2])
        if not layer.settings["count_padding"]:
            first, last = 0, size
        else:
            first, last = -before, size + after
        starts = np.arange(count)[:, None] * window.stride[axis] - before
        seen = starts + np.arange(window.kernel[axis]) * window.dilation[axis]
        along.append(((first <= seen) & (seen < last)).sum(1))
    return np.asarray(np.outer(*along), np.float64)


def _lookup(layer: Layer, x: Array) -> Array:
    return np.asarray(layer.settings["table"][x.astype(np.int8).view(np.uint8)], np.int64)


def _quantize(layer: Layer, x: Array) -> Array:
    return _requantized(layer, x.astype(np.float32) / layer.output.scale)


def _dequantize(layer: Layer, x: Array) -> Array:
    given = layer.inputs[0]
    return (x.astype(np.float64) - given.zero) * float(given.scale)


def _clip(layer: Layer, x: Array) -> Array:
    return _clamped(layer, x)


def _unary(layer: Layer, x: Array) -> Array:
    alpha = {"alpha": float(layer.settings["alpha"])} if "alpha" in layer.settings else {}
    return _node(layer.operators[0], [x], **alpha)


def _binary(layer: Layer, *given: Array) -> Array:
    arrays = list(given)
    if layer.output.is_float:
        for side, array in sorted(layer.settings.items()):
            arrays.insert("ab".index(side), array.astype(np.float64))
        return _node(layer.operators[0], list(arrays))
    reals = [
        (x - value.zero).astype(np.float32) * value.scale
        for x, value in zip(arrays, layer.inputs, strict=True)
    ]
    return _requantized(layer, _node(layer.operators[0], list(reals)) / layer.output.scale)


def _normalise(layer: Layer, x: Array) -> Array:
    shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
    scale, shift = (layer.settings[n].astype(np.float64).reshape(shape) for n in ("scale", "shift"))
    return np.asarray(x * scale + shift)


def _gather(layer: Layer, x: Array) -> Array:
    value = layer.inputs[0]
    lying = np.empty(x.size, x.dtype)
    lying[positions_of(value)] = x
    positions = layer.settings["positions"]
    zero = float(layer.settings["fill"]) if value.is_float else value.zero
    return np.where(positions < 0, np.asarray(zero, x.dtype), lying[np.maximum(positions, 0)])


def _concat(layer: Layer, *given: Array) -> Array:
    return np.concatenate(given, layer.settings["axis"])


def _softmax(layer: Layer, x: Array) -> Array:
    given = layer.inputs[0]
    real = x if given.is_float else (x.astype(np.float64) - given.zero) * float(given.scale)
    shares = _node("Softmax", [real], axis=layer.settings["axis"])
    return shares if given.is_float else _requantized(layer, shares / float(layer.output.scale))


def _product(layer: Layer, a: Array, b: Array) -> Array:
    return np.asarray(a @ b)


KINDS: dict[str, Callable[..., Array]] = {
    "average pool": _average_pool,
    "binary": _binary,
    "clip": _clip,
    "concat": _concat,
    "convolution": _convolution,
    "dequantize": _dequantize,
    "gather": _gather,
    "lookup": _lookup,
    "max pool": _max_pool,
    "normalise": _normalise,
    "product": _product,
    "quantize": _quantize,
    "softmax": _softmax,
    "unary": _unary,
}
