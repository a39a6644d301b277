"""What the template of each kind of layer needs to know, beside the layer and its places."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .layout import Place
from .packing import kernel_of, lanes, packed
from .values import Array, Layer, stored, stored_shape

SLACK = 64  # bytes after weights that kernels may read, too
FUNCTIONS = {  # of one variable, in deploy/c
    "HardSwish": "hard_swish_float",
    "LeakyRelu": "leaky_relu_float",
    "Sigmoid": "sigmoid_float",
    "Tanh": "tanh_float",
}


class Keeper(Protocol):
    """Keeps constant arrays, and gives each a symbol."""

    def constant(self, name: str, index: int, array: Array, slack: int = 0) -> str:
        """An array, with `slack` bytes of zeros after it."""

    def biases(self, index: int, signed: Array, unsigned: Array) -> str:
        """A bias for signed and for unsigned bytes."""


def _convolution(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    assert layer.weights is not None and layer.window is not None
    weights, window, given = layer.weights, layer.window, places[0]
    kernel, image = kernel_of(layer), len(layer.output.shape) == 4
    channels, inputs, *_ = weights.array.shape
    rows = 1 if image else math.prod(layer.output.shape[:-1])
    if image:
        pixel, row, batch = given.memory[3], given.row, layer.output.shape[0]
        height = layer.output.shape[2] * layer.pool[0]
        width = layer.output.shape[3] * layer.pool[1]
        out_row = output.row
    else:
        pixel, row, batch, height, width, out_row = inputs, inputs, 1, 1, rows, channels * rows
    slack = SLACK if kernel in ("channels", "lanes") else 0
    details: dict[str, Any] = {
        "kernel": kernel,
        "geometry": {
            "in_channels": inputs,
            "pixel": pixel,
            "row": row,
            "kernel_height": window.kernel[0],
            "kernel_width": window.kernel[1],
            "stride_y": window.stride[0],
            "stride_x": window.stride[1],
            "dilation_y": window.dilation[0],
            "dilation_x": window.dilation[1],
            "groups": layer.groups,
            "height": height,
            "width": width,
            "channels": channels,
            "pool_height": layer.pool[0],
            "pool_width": layer.pool[1],
            "out_pixel": channels,
            "out_row": out_row,
        },
        "batch": batch,
        "first": given.first(window.pads[0], window.pads[1]) if image else given.begin,
        "weights": keep.constant("weights", index, packed(layer, kernel), slack),
    }
    if weights.multiplier is None:
        bias = keep.constant("bias", index, lanes(weights.bias, kernel))
        return details | {"bias": bias}
    folded = weights.array.reshape(channels, -1).sum(1, dtype=np.int64)
    zero = layer.inputs[0].zero
    signed, unsigned = (weights.bias - (zero + flip) * folded for flip in (0, 128))
    bias = keep.biases(index, lanes(signed, kernel), lanes(unsigned, kernel))
    scale = keep.constant("scale", index, lanes(weights.multiplier, kernel))
    return details | {"bias": bias, "scale": scale}


def _pooling(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    assert layer.window is not None
    window, given = layer.window, places[0]
    _, channels, height, width = layer.inputs[0].shape
    image = len(layer.output.shape) == 4
    out = layer.output.shape[2:] if image else (1, 1)
    details: dict[str, Any] = {
        "geometry": {
            "channels": channels,
            "height": height,
            "width": width,
            "row": given.row,
            "kernel_height": window.kernel[0],
            "kernel_width": window.kernel[1],
            "stride_y": window.stride[0],
            "stride_x": window.stride[1],
            "dilation_y": window.dilation[0],
            "dilation_x": window.dilation[1],
            "top": window.pads[0],
            "left": window.pads[1],
            "out_height": out[0],
            "out_width": out[1],
            "out_row": output.row if image else channels,
            "count_padding": int(layer.settings.get("count_padding", False)),
            "bottom": window.pads[2],
            "right": window.pads[3],
        },
        "batch": layer.inputs[0].shape[0],
        "out_image": output.image if image else channels,
    }
    if layer.kind == "average pool" and not layer.output.is_float:
        details["ratio"] = layer.inputs[0].scale / layer.output.scale
    return details


def _nothing(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    return {}


def _lookup(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    table = layer.settings["table"].view(np.uint8)
    return {"table": keep.constant("table", index, table)}


def _unary(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    return {"function": FUNCTIONS[layer.operators[0]], "alpha": layer.settings.get("alpha")}


def _binary(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    shape, given = layer.output.shape, iter(places)
    operands: list[tuple[Place | None, str | None, tuple[int, ...]]] = []
    for side in "ab":
        constant = layer.settings.get(side)
        if constant is None:
            place = next(given)
            operands.append((place, None, _broadcast(place.value.shape, place.strides, shape)))
        else:
            steps = [math.prod(constant.shape[a + 1 :]) for a in range(constant.ndim)]
            symbol = keep.constant(f"constant_{side}", index, constant)
            operands.append((None, symbol, _broadcast(constant.shape, tuple(steps), shape)))
    strides = [operands[0][2], operands[1][2], output.strides]
    if strides[0] == strides[1] == strides[2] and layer.output.size:  # all lie alike: one row
        shape, strides = (layer.output.size,), [(1,)] * 3
    scalar = not shape
    return {
        "operands": operands,
        "shape": (1,) if scalar else shape,
        "strides": [(1,)] * 3 if scalar else strides,
        "operation": layer.operators[0].upper(),
    }


def _broadcast(
    shape: tuple[int, ...], strides: tuple[int, ...], out: tuple[int, ...]
) -> tuple[int, ...]:
    """Strides along the axes of `out`: none where one element stands for all."""
    missing = len(out) - len(shape)
    own = [
        0 if size == 1 and out[missing + axis] != 1 else stride
        for axis, (size, stride) in enumerate(zip(shape, strides, strict=True))
    ]
    return (*[0] * missing, *own)


def _normalise(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    names = ("scale", "shift")
    kept = {name: keep.constant(name, index, layer.settings[name]) for name in names}
    return kept | {"channels": layer.settings["scale"].size}


def _gather(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    positions = np.ascontiguousarray(stored(layer.settings["positions"])).ravel()
    small = positions.max(initial=0) < 2**15
    return {
        "table": keep.constant(
            "positions", index, positions.astype(np.int16 if small else np.int32)
        ),
        "padded": bool((positions < 0).any()),
    }


def _concat(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    axis, rank = layer.settings["axis"], len(layer.output.shape)
    along = {0: 0, 1: 3, 2: 1, 3: 2}[axis] if rank == 4 else axis
    chunks = [math.prod(stored_shape(value.shape)[along:]) for value in layer.inputs]
    before = [sum(chunks[:number]) for number in range(len(chunks))]
    outer = math.prod(stored_shape(layer.output.shape)[:along])
    return {"parts": list(zip(places, chunks, before, strict=True)), "outer": outer}


def _softmax(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    axis, rank = layer.settings["axis"], len(layer.output.shape)
    along = {0: 0, 1: 3, 2: 1, 3: 2}[axis] if rank == 4 else axis
    memory = stored_shape(layer.output.shape)
    outer, inner = math.prod(memory[:along]), math.prod(memory[along + 1 :])
    return {"outer": outer, "size": memory[along], "inner": inner}


def _product(
    keep: Keeper, index: int, layer: Layer, places: list[Place], output: Place
) -> dict[str, Any]:
    *batch, rows, terms = layer.inputs[0].shape
    columns = layer.inputs[1].shape[-1]
    return {"batch": math.prod(batch), "rows": rows, "terms": terms, "columns": columns}


Details = Callable[[Keeper, int, Layer, list[Place], Place], dict[str, Any]]
KINDS: dict[str, Details] = {
    "average pool": _pooling,
    "binary": _binary,
    "clip": _nothing,
    "concat": _concat,
    "convolution": _convolution,
    "dequantize": _nothing,
    "gather": _gather,
    "lookup": _lookup,
    "max pool": _pooling,
    "normalise": _normalise,
    "product": _product,
    "quantize": _nothing,
    "softmax": _softmax,
    "unary": _unary,
}
