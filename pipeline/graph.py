"""A network as a frozen list of layers read from ONNX, with the formulas of the lecture.

Output size, parameters, multiply-accumulates and receptive field are computed here from kernel,
stride, padding and dilation. Quantize and dequantize nodes are looked through, so the int8 file of
a network describes itself like the fp32 one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BadInput, Missing, first_line

Shape = tuple[int, ...]
Pair = tuple[int, int]
PASSED_THROUGH = {"QuantizeLinear", "DequantizeLinear", "Identity", "Cast"}


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """floor((n + p - d(k - 1) - 1) / s) + 1, with `padding` p the sum of both sides."""
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def output_size_between(size: int, kernel: int, stride: int, pads: Pair, dilation: int) -> int:
    """`output_size` with the padding before and after given apart."""
    return output_size(size, kernel, stride, sum(pads), dilation)


def pooled_up_size(size: int, kernel: int, stride: int, pads: Pair, dilation: int) -> int:
    """The size with ceil instead of floor (ceil_mode), as PyTorch and ONNX Runtime have it.

    A last window that would begin beyond the input and the padding before it is left out.
    """
    rounded_up = output_size(size, kernel, stride, sum(pads) + stride - 1, dilation)
    return rounded_up - ((rounded_up - 1) * stride >= size + pads[0])


def same_padding(kernel: int) -> Pair:
    """(before, after) that keep the size at stride 1: k - 1 in all, the odd one before."""
    return kernel // 2, (kernel - 1) // 2


@dataclass(frozen=True)
class Field:
    """The receptive field along one axis: how many inputs a value sees, and how far apart its
    neighbours are.
    """

    size: int = 1
    jump: int = 1

    def through(self, kernel: int, stride: int, dilation: int = 1) -> Field:
        """Size r + (k - 1) d j and jump j s: each layer widens the field by its kernel's reach."""
        return Field(self.size + (kernel - 1) * dilation * self.jump, self.jump * stride)


@dataclass(frozen=True)
class Layer:
    """One operation. Shapes are without the batch; `field` is (rows, columns)."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    output: str
    output_shape: Shape
    kernel: Pair | None
    stride: Pair | None
    padding: tuple[int, int, int, int] | None  # top, left, bottom, right
    dilation: Pair | None
    groups: int
    parameters: int
    macs: int
    field: tuple[Field, Field]


@dataclass(frozen=True)
class Graph:
    """All layers in the file's order, and the shape of the input, C x H x W."""

    input_shape: Shape
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Trained numbers in all."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.layers)


@dataclass(frozen=True)
class _Value:
    shape: Shape
    field: tuple[Field, Field]


@dataclass(frozen=True)
class _Node:
    """An ONNX node with what shape rules ask for."""

    operator: str
    attributes: dict[str, Any]
    inputs: tuple[_Value, ...]
    constants: tuple[np.ndarray[Any, Any], ...]

    def pair(self, name: str, default: int = 1) -> Pair:
        first, second = self.attributes.get(name, (default, default))
        return int(first), int(second)


@dataclass(frozen=True)
class _Result:
    shape: Shape
    field: tuple[Field, Field]
    kernel: Pair | None = None
    stride: Pair | None = None
    padding: tuple[int, int, int, int] | None = None
    dilation: Pair | None = None
    groups: int = 1
    macs: int = 0


def read_graph(path: Path) -> Graph:
    """Read the layer graph of an ONNX file. Raises Missing or BadInput, by name, for what it does
    not know.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise Missing(f"{path}: no such file")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise BadInput(f"{path}: not a valid ONNX model ({first_line(error)})") from error
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in constants]
    dims = given[0].type.tensor_type.shape.dim if len(given) == 1 else ()
    shape = tuple(int(d.dim_value) for d in dims[1:])
    if len(shape) != 3 or min(shape) < 1:
        raise BadInput(f"{path}: expected one input of N x C x H x W, found {shape or 'none'}")
    values = {given[0].name: _Value(shape, (Field(), Field()))}
    layers = []
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node, attributes, path)
        elif node.op_type in PASSED_THROUGH or (node.op_type == "Sum" and len(node.input) == 1):
            known: dict[str, Any] = values if node.input[0] in values else constants
            known[node.output[0]] = known[node.input[0]]
        else:
            layers.append(_layer(node, attributes, values, constants, shape, path))
            values[node.output[0]] = _Value(layers[-1].output_shape, layers[-1].field)
    return Graph(shape, tuple(layers))


def _constant(node: Any, attributes: dict[str, Any], path: Path) -> np.ndarray[Any, Any]:
    import onnx

    (kind, value), *_ = attributes.items()
    if kind == "value":
        return np.asarray(onnx.numpy_helper.to_array(value))
    if kind in ("value_int", "value_ints", "value_float", "value_floats"):
        return np.asarray(value)
    raise BadInput(f"{path}: Constant ({node.name}) holds {kind}, only numbers are known")


def _layer(
    node: Any,
    attributes: dict[str, Any],
    values: dict[str, _Value],
    constants: dict[str, np.ndarray[Any, Any]],
    input_shape: Shape,
    path: Path,
) -> Layer:
    if node.op_type not in RULES:
        raise BadInput(
            f"{path}: unknown operator {node.op_type} ({node.name})",
            f"known are {', '.join(sorted(RULES))}",
        )
    inputs = tuple(values[name] for name in node.input if name in values)
    held = tuple(constants[name] for name in node.input if name in constants)
    if not inputs:
        raise BadInput(f"{path}: {node.op_type} ({node.name}) works on constants only")
    try:
        result = RULES[node.op_type](_Node(node.op_type, attributes, inputs, held))
    except (IndexError, KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise BadInput(f"{path}: {node.op_type} ({node.name}): {error}") from error
    # A layer that looks at everything cannot see more than the whole image.
    field = tuple(
        Field(min(f.size, size), f.jump)
        for f, size in zip(result.field, input_shape[1:], strict=True)
    )
    if node.op_type == "BatchNormalization":
        held = held[:2]  # scale and shift; mean and variance are measured, not trained
    trained = node.op_type not in {"Reshape", "Clip", "ReduceMean"}
    return Layer(
        node.output[0],
        node.op_type,
        tuple(name for name in node.input if name in values),
        node.output[0],
        result.shape,
        result.kernel,
        result.stride,
        result.padding,
        result.dilation,
        result.groups,
        sum(constant.size for constant in held) if trained else 0,
        result.macs,
        (field[0], field[1]),
    )


def _window(node: _Node, kernel: Pair, channels: int) -> _Result:
    """What convolution and pooling have in common."""
    if node.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError(f"auto_pad {node.attributes['auto_pad'].decode()} is not supported")
    stride, dilation = node.pair("strides"), node.pair("dilations")
    top, left, bottom, right = (int(p) for p in node.attributes.get("pads", (0, 0, 0, 0)))
    rule = pooled_up_size if node.attributes.get("ceil_mode", 0) else output_size_between
    sizes = [
        rule(size, k, s, pads, d)
        for size, k, s, pads, d in zip(
            node.inputs[0].shape[1:],
            kernel,
            stride,
            ((top, bottom), (left, right)),
            dilation,
            strict=True,
        )
    ]
    if min(sizes) < 1:
        raise ValueError(f"kernel {kernel} is larger than its padded input")
    field = tuple(
        f.through(k, s, d)
        for f, k, s, d in zip(node.inputs[0].field, kernel, stride, dilation, strict=True)
    )
    return _Result(
        (channels, *sizes),
        (field[0], field[1]),
        kernel,
        stride,
        (top, left, bottom, right),
        dilation,
    )


def _conv(node: _Node) -> _Result:
    weight = node.constants[0]
    if weight.ndim != 4:
        raise ValueError(f"weights of shape {weight.shape}, expected 4 axes")
    window = _window(node, (int(weight.shape[2]), int(weight.shape[3])), int(weight.shape[0]))
    positions = window.shape[1] * window.shape[2]
    groups = int(node.attributes.get("group", 1))
    return _Result(
        window.shape,
        window.field,
        window.kernel,
        window.stride,
        window.padding,
        window.dilation,
        groups,
        positions * int(weight.size),
    )


def _pool(node: _Node) -> _Result:
    return _window(node, node.pair("kernel_shape"), node.inputs[0].shape[0])


def _everything(node: _Node) -> tuple[Field, Field]:
    """The field of a value that sees all of its input's positions."""
    value = node.inputs[0]
    if len(value.shape) < 3:
        return value.field
    rows, columns = (
        f.through(size, 1) for f, size in zip(value.field, value.shape[1:], strict=True)
    )
    return rows, columns


def _linear(node: _Node) -> _Result:
    weight = node.constants[0]
    outputs = weight.shape[0] if node.attributes.get("transB", 0) else weight.shape[1]
    value = node.inputs[0]
    return _Result((*value.shape[:-1], int(outputs)), value.field, macs=int(weight.size))


def _global(node: _Node) -> _Result:
    return _Result((node.inputs[0].shape[0], 1, 1), _everything(node))


def _mean(node: _Node) -> _Result:
    shape = node.inputs[0].shape
    axes = node.attributes.get("axes", node.constants[0] if node.constants else ())
    reduced = sorted(int(axis) % (len(shape) + 1) for axis in axes)
    if reduced not in ([2, 3], [1]):
        raise ValueError(f"the mean over axes {reduced} is not supported, only (2, 3) and (1)")
    kept = [1 if axis in reduced else size for axis, size in enumerate(shape, start=1)]
    if not node.attributes.get("keepdims", 1):
        kept = [size for axis, size in enumerate(shape, start=1) if axis not in reduced]
    field = _everything(node) if reduced == [2, 3] else node.inputs[0].field
    return _Result(tuple(kept), field)


def _flatten(node: _Node) -> _Result:
    if node.attributes.get("axis", 1) != 1:
        raise ValueError(f"axis {node.attributes['axis']} is not supported, only 1")
    return _Result((int(np.prod(node.inputs[0].shape)),), _everything(node))


def _reshape(node: _Node) -> _Result:
    if not node.constants:
        raise ValueError("the target shape is not a constant")
    shape = node.inputs[0].shape
    target = [int(size) for size in node.constants[0]][1:]  # without the batch
    if not node.attributes.get("allowzero", 0):  # a 0 keeps the size that stands there
        target = [size or shape[axis] for axis, size in enumerate(target)]
    elements = int(np.prod(shape))
    if -1 in target:
        target[target.index(-1)] = elements // -int(np.prod(target))
    return _Result(tuple(target), _everything(node))


def _elementwise(node: _Node) -> _Result:
    held = [constant.shape[1:] for constant in node.constants if constant.ndim > 3]
    shape = np.broadcast_shapes(*(value.shape for value in node.inputs), *held)
    rows, columns = (
        Field(max(v.field[a].size for v in node.inputs), max(v.field[a].jump for v in node.inputs))
        for a in range(2)
    )
    return _Result(tuple(shape), (rows, columns))


def _concat(node: _Node) -> _Result:
    if node.attributes["axis"] != 1:
        raise ValueError(f"axis {node.attributes['axis']} is not supported, only channels")
    result = _elementwise(node)
    channels = sum(value.shape[0] for value in node.inputs)
    return _Result((channels, *node.inputs[0].shape[1:]), result.field)


RULES: dict[str, Callable[[_Node], _Result]] = {
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global,
    "ReduceMean": _mean,
    "Gemm": _linear,
    "MatMul": _linear,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Concat": _concat,
    **dict.fromkeys(
        (
            "Relu",
            "Sigmoid",
            "Tanh",
            "Softmax",
            "LogSoftmax",
            "LeakyRelu",
            "HardSwish",
            "Clip",
            "Elu",
            "Gelu",
            "HardSigmoid",
            "Add",
            "Sub",
            "Mul",
            "Div",
            "BatchNormalization",
        ),
        _elementwise,
    ),
}
