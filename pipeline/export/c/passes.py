"""What a general runtime cannot do: the shape of everything is known before it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from .layout import Margins
from .lowering import positions_of
from .values import Layer, Program, Value, Window

# What computes or reads images row by row, and so may leave room around them.
BY_ROWS = {"convolution", "max pool", "average pool"}
WIDEST = 3  # pooling that a convolution takes in: POOL_MOST of deploy/c


def merge_pooling(program: Program) -> Program:
    """Max pooling after a convolution is done on its sums, before they are requantized.

    Requantization never reverses an order, so the result is the same, with fewer of them.
    """
    uses = Counter(value.root for layer in program.layers for value in layer.inputs)
    uses.update(value.root for value in program.outputs)
    layers: list[Layer] = []
    for layer in program.layers:
        before = next((made for made in layers if made.output in layer.inputs), None)
        if before is None or uses[before.output.root] > 1 or not _poolable(before, layer):
            layers.append(layer)
            continue
        assert layer.window is not None
        operators = (*before.operators, *layer.operators)
        layers[layers.index(before)] = replace(
            before, operators=operators, output=layer.output, pool=layer.window.kernel
        )
    return replace(program, layers=tuple(layers))


def _poolable(convolution: Layer, pooling: Layer) -> bool:
    """Whether windows of the pooling lie side by side, and all of them whole."""
    if (convolution.kind, pooling.kind) != ("convolution", "max pool"):
        return False
    assert pooling.window is not None
    if convolution.pool != (1, 1) or len(convolution.output.shape) != 4:
        return False
    if pooling.window.kernel[1] > WIDEST:
        return False
    window, sides = (
        pooling.window,
        zip(pooling.window.kernel, pooling.output.shape[2:], strict=True),
    )
    whole = all(
        kernel * out <= size
        for (kernel, out), size in zip(sides, convolution.output.shape[2:], strict=True)
    )
    plain = Window(window.kernel, window.kernel)
    return window == plain and whole and convolution.output.dtype == pooling.output.dtype


def give_margins(program: Program) -> tuple[Program, dict[str, Margins]]:
    """Room around an image for the windows of the convolutions that read it, by storage.

    Where another kind of layer makes or reads the value, or it is seen in another shape, it is
    copied into a larger one first.
    """
    blocked = {v.root for layer in program.layers for v in layer.inputs if v.storage}
    blocked |= {v.root for v in program.outputs}
    for layer in program.layers:
        for value in layer.inputs:
            if not _is_image(layer, value):
                blocked.add(value.root)
        if layer.kind not in BY_ROWS or len(layer.output.shape) != 4:
            blocked.add(layer.output.root)
    margins: dict[str, Margins] = {}
    layers: list[Layer] = []
    for layer in program.layers:
        window = layer.window
        if layer.kind != "convolution" or window is None or not any(window.pads):
            layers.append(layer)
            continue
        given = layer.inputs[0]
        if given.root in blocked:
            layers.append(_padding(given, window, f"{layer.output.name} padded"))
            inside = replace(window, pads=(0, 0, 0, 0))
            layers.append(replace(layer, inputs=(layers[-1].output,), window=inside))
            continue
        top, left, bottom, right = (
            max(sides)
            for sides in zip(margins.get(given.root, (0, 0, 0, 0)), window.pads, strict=True)
        )
        margins[given.root] = (top, left, bottom, right)
        layers.append(layer)
    return replace(program, layers=tuple(layers)), margins


def _is_image(layer: Layer, value: Value) -> bool:
    return layer.kind in BY_ROWS and len(value.shape) == 4 and not value.storage


def _padding(given: Value, window: Window, name: str) -> Layer:
    """A copy of a convolution's input with zeros around it."""
    top, left, bottom, right = window.pads
    around = ((0, 0), (0, 0), (top, bottom), (left, right))
    positions = np.pad(positions_of(given), around, constant_values=-1)
    output = Value(name, positions.shape, given.dtype, given.quantization)
    return Layer(
        "gather",
        ("Pad",),
        (given,),
        output,
        settings={"positions": positions, "fill": np.float32(0)},
    )
