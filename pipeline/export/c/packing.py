"""Weights in the order in which the kernels of deploy/c read them; see convolution.h there."""

from __future__ import annotations

import numpy as np

from .values import Array, Layer, Value

BLOCK = 16  # output channels
LANES = 4  # what the last block is a multiple of
GROUP = 4  # bytes whose products are added up in one lane
NARROW = 8  # pixels in a row, from which lanes along it pay


def kernel_of(layer: Layer) -> str:
    """Which kernel computes a convolution: channels, lanes, depthwise or plain."""
    assert layer.window is not None and layer.weights is not None
    array, given = layer.weights.array, layer.inputs[0]
    integers = layer.weights.multiplier is not None
    outputs, inputs = array.shape[:2]
    if integers and (array.min() < -127 or array.max() > 127):
        return "plain"
    if layer.groups > 1:
        alike = layer.groups == outputs and inputs == 1
        return "depthwise" if alike and _channels(given) == outputs else "plain"
    unit = layer.window.stride[1] == layer.window.dilation[1] == 1
    wide = len(layer.output.shape) == 4 and layer.output.shape[3] * layer.pool[1] >= NARROW
    return "lanes" if inputs == 1 and unit and wide and layer.pool[1] <= 2 else "channels"


def _channels(value: Value) -> int:
    return value.shape[1] if len(value.shape) == 4 else value.shape[-1]


def packed(layer: Layer, kernel: str) -> Array:
    """Weights, flat, as `kernel` takes them: int8, int16 (plain) or float32."""
    assert layer.weights is not None and layer.window is not None
    array = layer.weights.array.transpose(0, 2, 3, 1)  # O x h x w x I, as the input lies
    integers = layer.weights.multiplier is not None
    if kernel == "plain":
        return array.ravel().astype(np.int16 if integers else np.float32)
    if kernel == "depthwise":
        taps = array[:, :, :, 0].transpose(1, 2, 0)
        return _padded(taps, 2, BLOCK).ravel().astype(np.int8 if integers else np.float32)
    if kernel == "lanes":
        rows = array[:, :, :, 0]
        if not integers:
            return rows.ravel()
        groups = _padded(_padded(rows, 2, GROUP), 0, LANES).astype(np.int8)
        groups = groups.reshape(len(groups), rows.shape[1], -1, GROUP)
        return groups.transpose(1, 2, 0, 3).ravel()
    outputs, height, width, _ = array.shape
    runs = height if layer.window.dilation[1] == 1 else height * width
    array = array.reshape(outputs, runs, -1)
    if integers:
        array = _padded(array, 2, GROUP).astype(np.int8)
        array = array.reshape(outputs, -1, GROUP)
    else:
        array = array.reshape(outputs, -1, 1)
    return np.concatenate(
        [
            _padded(array[start : start + BLOCK], 0, LANES).transpose(1, 0, 2).ravel()
            for start in range(0, outputs, BLOCK)
        ]
    )


def lanes(values: Array, kernel: str) -> Array:
    """One value for each output channel, with as many zeros after them as the kernel reads."""
    multiple = {"plain": 1, "lanes": 1, "channels": BLOCK, "depthwise": BLOCK}[kernel]
    return _padded(values, 0, multiple)


def _padded(array: Array, axis: int, multiple: int) -> Array:
    """Zeros at the end of an axis, up to a multiple."""
    missing = -array.shape[axis] % multiple
    around = [(0, missing if a == axis else 0) for a in range(array.ndim)]
    return np.pad(array, around)
