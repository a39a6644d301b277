"""Windows: where a kernel moves, with the padding that ONNX's auto_pad stands for; and pooling."""

from __future__ import annotations

import numpy as np
import onnx

from .lowering import Lowering, Real
from .values import Layer, Value, Window


def window_of(low: Lowering, node: onnx.NodeProto, kernel: tuple[int, int]) -> Window:
    """The window of a Conv or a pooling over an image."""
    shape, out = low.source.shapes[node.input[0]], low.source.shapes[node.output[0]]
    if len(shape) != 4:
        raise ValueError(f"an input of shape {shape}: only images are known")
    stride = _pair(low, node, "strides")
    dilation = _pair(low, node, "dilations")
    pads = tuple(int(p) for p in low.attribute(node, "pads", (0, 0, 0, 0)))
    auto = low.attribute(node, "auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for axis in range(2):
            reach = dilation[axis] * (kernel[axis] - 1) + 1
            needed = max(0, (out[axis + 2] - 1) * stride[axis] + reach - shape[axis + 2])
            half = needed // 2 if auto == "SAME_UPPER" else needed - needed // 2
            before.append(half)
            after.append(needed - half)
        pads = (*before, *after)
    elif auto == "VALID":
        pads = (0, 0, 0, 0)
    if len(pads) != 4 or min(pads) < 0:
        raise ValueError(f"pads {pads} are not known")
    return Window(kernel, stride, dilation, (pads[0], pads[1], pads[2], pads[3]))


def _pair(low: Lowering, node: onnx.NodeProto, name: str) -> tuple[int, int]:
    first, second = low.attribute(node, name, (1, 1))
    return int(first), int(second)


def max_pool(low: Lowering, node: onnx.NodeProto) -> Value | Real:
    """MaxPool: of integers as of the reals that they stand for."""
    if len(low.source.shapes[node.input[0]]) != 4:
        raise ValueError("only images are known")
    kernel = _pair(low, node, "kernel_shape")
    window = window_of(low, node, kernel)
    known = low.known[node.input[0]]
    if isinstance(known, Real) or (isinstance(known, Value) and not known.is_float):
        value = low.ordered(known.value if isinstance(known, Real) else known)
        shape = low.source.shapes[node.output[0]]
        output = Value(node.output[0], shape, value.dtype, value.quantization)
        made = low.add(Layer("max pool", ("MaxPool",), (value,), output, window))
        return Real(made) if isinstance(known, Real) else made
    value = low.floats(node.input[0])
    return low.add(Layer("max pool", ("MaxPool",), (value,), low.output(node), window))


def average_pool(low: Lowering, node: onnx.NodeProto) -> Value:
    """AveragePool, GlobalAveragePool and ReduceMean over an image."""
    shape = low.source.shapes[node.input[0]]
    if len(shape) != 4:
        raise ValueError("only images are known")
    counted = bool(low.attribute(node, "count_include_pad", 0))
    if node.op_type == "AveragePool":
        window = window_of(low, node, _pair(low, node, "kernel_shape"))
    else:
        _check_mean(low, node)
        window = Window((shape[2], shape[3]))
    given = low.real(node.input[0])
    tail = low.tail(node, ())
    settings = {"count_padding": counted}
    if given is not None and tail is not None:
        given = low.ordered(given)
        low.take(tail.quantize)
        output = low.quantized(tail.quantize)
        made = Layer("average pool", (node.op_type,), (given,), output, window, settings=settings)
        low.known[output.name] = low.add(made)
        return output
    value = low.floats(node.input[0])
    output = low.output(node)
    made = Layer("average pool", (node.op_type,), (value,), output, window, settings=settings)
    return low.add(made)


def _check_mean(low: Lowering, node: onnx.NodeProto) -> None:
    """Raises ValueError for a mean over other axes than those of an image."""
    if node.op_type == "GlobalAveragePool":
        return
    axes = low.constant(node, 1) if len(node.input) > 1 else low.attribute(node, "axes")
    found = sorted(int(axis) % 4 for axis in np.ravel(axes)) if axes is not None else None
    if found != [2, 3]:
        raise ValueError(f"the mean over axes {found} is not known, only over (2, 3)")
