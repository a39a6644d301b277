"""Wrong copies of a model file, each wrong in one way: what verification must not let pass.

Whatever a mutation does, every value of the original file is in the mutant: in ONNX under its name,
in TFLite under its tensor number, in the same shape. So layers that are found in the original can
be looked at in the mutant. Where an operator alone would give another shape, its input is cropped
or padded at the end first.
"""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from onnx import helper, numpy_helper

from ..errors import BadInput

Array = npt.NDArray[Any]

MUTATIONS = {
    "one tap": "one weight: x (1 + 2**-10), or 1 step",
    "one tap, 2^-20": "one float weight x (1 + 2**-20)",
    "transposed kernel": "rows and columns of a square kernel exchanged",
    "flipped kernel": "convolution where cross-correlation is meant",
    "channel permutation": "the weights of two output channels exchanged, not their biases",
    "bias": "one bias: 2**-12 of the largest, or 1 step",
    "weight scale x1.01": "the scale of one channel's weights",
    "NCHW/NHWC swap": "values taken in the order of the other layout",
    "swapped pad sides": "one row of padding on the other side",
    "shifted padding": "one column of padding on the other side",
    "swapped stride axes": "strides exchanged; (s, s) becomes (1, s)",
    "pooling divisor": "average pooling divides by one element too many",
    "ceil_mode": "the last windows are cut off, or those that ceil_mode adds are missing",
    "count_include_pad": "padding counted or not; without any, zeros for the last row and column",
    "max for average": "the other pooling",
    "average for max": "the other pooling",
    "dropped activation": "a ReLU, sigmoid or tanh that passes its input",
    "zero point": "a layer's result quantized with a zero point that is off by 1",
    "scale x1.01": "a layer's result quantized with a scale that is off by 1 %",
    "saturating": "an accumulator of 16 bits that saturates",
}


@dataclass(frozen=True)
class Mutant:
    """`layer` is an ONNX value or the number and kind of a TFLite operator."""

    name: str
    layer: str
    content: bytes


@dataclass(frozen=True)
class _File:
    """A mutation changes a model at one of its operators, or returns False and changes nothing."""

    mutations: dict[str, Callable[[Any, Any], bool]]
    fresh: Callable[[], Any]
    layers: Callable[[Any], list[tuple[str, Any]]]
    content: Callable[[Any], bytes]


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutation of an .onnx or .tflite file, at every operator where it is possible.

    The same file gives the same mutants. The contract goes along. Raises BadInput.
    """
    if path.suffix not in FILES:
        raise BadInput(
            f"{path}: no mutations are known for this kind of file", "give .onnx/.tflite"
        )
    file = FILES[path.suffix](path)
    model = file.fresh()
    for name in MUTATIONS:
        for number in range(len(file.layers(model))):
            layer, node = file.layers(model)[number]
            if name in file.mutations and file.mutations[name](model, node):
                yield Mutant(name, layer, file.content(model))
                model = file.fresh()


# --- Constants: O x I x rows x columns or O x I, or a bias of O, to a wrong one; None: impossible.


def _typical(values: Array) -> int:
    """Where the middle one of the sizes is: neither a weight that hardly counts nor the largest."""
    order = np.abs(values.astype(np.float64)).argsort(axis=None, kind="stable")
    return int(order[len(order) // 2])


def _one_tap(weight: Array, bits: int) -> Array | None:
    changed, index = weight.copy(), _typical(weight)
    if weight.dtype == np.float32:
        changed.flat[index] *= np.float32(1 + 2.0**-bits)
    elif bits == 10:
        changed.flat[index] += 1 if changed.flat[index] < 127 else -1
    return changed


def _transposed(weight: Array) -> Array | None:
    square = weight.ndim == 4 and weight.shape[2] == weight.shape[3]
    return weight.swapaxes(2, 3) if square else None


def _flipped(weight: Array) -> Array | None:
    return weight[:, :, ::-1, ::-1] if weight.ndim == 4 else None


def _permuted(weight: Array) -> Array | None:
    return weight[[-1, *range(1, len(weight) - 1), 0]] if len(weight) > 1 else None


def _biased(bias: Array) -> Array | None:
    changed, largest = bias.copy(), int(np.abs(bias).argmax())
    step = np.abs(bias[largest]) * np.float32(2.0**-12) or np.float32(2.0**-12)
    changed[largest] += step if bias.dtype == np.float32 else 1
    return changed


# Name to the operator's input that is changed, and how.
CONSTANTS: dict[str, tuple[int, Callable[[Array], Array | None]]] = {
    "one tap": (1, partial(_one_tap, bits=10)),
    "one tap, 2^-20": (1, partial(_one_tap, bits=20)),
    "transposed kernel": (1, _transposed),
    "flipped kernel": (1, _flipped),
    "channel permutation": (1, _permuted),
    "bias": (2, _biased),
}


# --- Windows: pairs of rows and columns; `pads` has a (before, after) for each of the two.


@dataclass(frozen=True)
class _Window:
    size: Array
    out: Array
    reach: Array  # dilation x (kernel - 1) + 1
    stride: Array
    pads: Array

    @property
    def full(self) -> Array:
        """The input that the windows just cover."""
        covered: Array = (self.out - 1) * self.stride + self.reach - self.pads.sum(1)
        return covered

    def with_wrong_strides(self) -> _Window:
        """Its `full` is the input that gives the same output."""
        equal = self.stride[0] == self.stride[1]
        stride = np.array([1, self.stride[1]]) if equal else self.stride[::-1]
        return replace(self, stride=stride)


def _moved(pads: Array, number: int) -> Array | None:
    """Padding, (before, after) an axis, with 1 of the `number`th padded axis on the other side."""
    padded = np.flatnonzero(pads.any(1))
    if number >= len(padded):
        return None
    changed, axis = pads.copy(), padded[number]
    before, after = pads[axis]
    changed[axis] = (after, before) if before != after else (before - 1, after + 1)
    return changed


# --- ONNX


LINEAR = {"Gemm", "MatMul"}
POOLS = {"MaxPool", "AveragePool"}
ACTIVATIONS = {"Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Elu", "Gelu"}
MAX_FOR = {
    "AveragePool": "MaxPool",
    "GlobalAveragePool": "GlobalMaxPool",
    "ReduceMean": "ReduceMax",
}
AVERAGE_FOR = {"MaxPool": "AveragePool", "GlobalMaxPool": "GlobalAveragePool"}
OF_ONE_POOLING = {"storage_order", "dilations", "count_include_pad"}


def _attribute(node: Any, name: str, default: Any = None) -> Any:
    found = (helper.get_attribute_value(a) for a in node.attribute if a.name == name)
    return next(found, default)


def _set(node: Any, **values: Any) -> None:
    kept = [a for a in node.attribute if a.name not in values]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())


def _initializer(model: Any, name: str) -> Array | None:
    found = (i for i in model.graph.initializer if i.name == name)
    return next((np.array(numpy_helper.to_array(i)) for i in found), None)


def _add(model: Any, name: str, value: Array) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _put(model: Any, node: Any, position: int, value: Array) -> None:
    """Give this node, and no other that shares the constant, another value."""
    name = node.input[position]
    node.input[position] = _add(model, f"{name}_mutant", np.asarray(value, order="C"))
    if not any(name in other.input for other in model.graph.node):
        model.graph.initializer.remove(next(i for i in model.graph.initializer if i.name == name))


def _producer(model: Any, name: str) -> Any:
    return next((node for node in model.graph.node if name in node.output), None)


def _holder(model: Any, node: Any, position: int) -> tuple[Any, int]:
    """The node and input where a constant enters: this one, or its dequantization."""
    name = node.input[position] if position < len(node.input) else ""
    before = _producer(model, name) if name else None
    if before is not None and before.op_type == "DequantizeLinear":
        return before, 0
    return node, position


def _held(model: Any, node: Any, position: int) -> Array | None:
    holder, place = _holder(model, node, position)
    return _initializer(model, holder.input[place]) if place < len(holder.input) else None


def _columns(node: Any) -> bool:
    """Whether the weights stand as I x O."""
    return node.op_type in LINEAR and not _attribute(node, "transB", 0)


def _onnx_constant(
    model: Any, node: Any, position: int, change: Callable[[Array], Array | None]
) -> bool:
    if node.op_type not in {"Conv", *LINEAR}:
        return False
    value = _held(model, node, position)
    if value is None:
        return False
    value = value.T if _columns(node) else value
    changed = change(value)
    if changed is None or np.array_equal(changed, value):
        return False
    _put(model, *_holder(model, node, position), changed.T if _columns(node) else changed)
    return True


def _onnx_weight_scale(model: Any, node: Any) -> bool:
    holder, _ = _holder(model, node, 1)
    if node.op_type not in {"Conv", *LINEAR} or holder is node:
        return False
    scale = _initializer(model, holder.input[1])
    if scale is None:
        return False
    scale.flat[0] *= np.float32(1.01)
    _put(model, holder, 1, scale)
    return True


def _onnx_result(model: Any, node: Any, position: int) -> bool:
    """Quantize with another scale (1) or zero point (2); what dequantizes keeps the right one."""
    if node.op_type != "QuantizeLinear" or position >= len(node.input):
        return False
    value = _initializer(model, node.input[position])
    if value is None or value.size != 1:
        return False
    step = 1 if position == 2 and value < np.iinfo(value.dtype).max else -1
    changed = value * np.float32(1.01) if position == 1 else value + step
    _put(model, node, position, np.asarray(changed, value.dtype))
    return True


def _onnx_layout(model: Any, node: Any) -> bool:
    if node.op_type not in LINEAR:
        return False
    before = _producer(model, node.input[0])
    while before is not None and before.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        before = _producer(model, before.input[0])
    if before is None or before.op_type not in {"Reshape", "Flatten"}:
        return False
    shape = _shapes(model).get(before.input[0], ())[1:]
    if len(shape) != 3:
        return False
    order = np.arange(np.prod(shape)).reshape(shape).transpose(1, 2, 0).ravel()
    return _onnx_constant(model, node, 1, lambda weight: weight[:, order.argsort()])


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }


def _onnx_window(model: Any, node: Any) -> _Window | None:
    if node.op_type not in {"Conv", *POOLS}:
        return None
    if _attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
        return None
    shapes = _shapes(model)
    if any(len(shapes.get(name, ())) != 4 for name in (node.input[0], node.output[0])):
        return None
    weight = _held(model, node, 1) if node.op_type == "Conv" else None
    kernel = _attribute(node, "kernel_shape") if weight is None else weight.shape[2:]
    dilation = np.array(_attribute(node, "dilations", [1, 1]))
    return _Window(
        np.array(shapes[node.input[0]][2:]),
        np.array(shapes[node.output[0]][2:]),
        dilation * (np.array(kernel) - 1) + 1,
        np.array(_attribute(node, "strides", [1, 1])),
        np.array(_attribute(node, "pads", [0] * 4)).reshape(2, 2).T,
    )


def _onnx_insert(model: Any, node: Any, after: bool, kind: str, constant: Array) -> None:
    """Put an operator with a constant before a node, or after it under the node's own name."""
    side = node.output if after else node.input
    name, other = side[0], f"{side[0]}_{kind}"
    while _producer(model, other) is not None:
        other += "_"
    held = _add(model, f"{other}_constant", constant)
    side[0] = other
    ends = (other, name) if after else (name, other)
    place = list(model.graph.node).index(node) + after
    model.graph.node.insert(place, helper.make_node(kind, [ends[0], held], [ends[1]]))


def _onnx_grow(model: Any, node: Any, grow: Array, after: bool = False) -> None:
    """Pad a node's input (or result) at the end of rows and columns; crop where it is negative."""
    if grow.any():
        pads = np.array([0] * 6 + [int(n) for n in grow], np.int64)
        _onnx_insert(model, node, after, "Pad", pads)


def _onnx_pads(model: Any, node: Any, number: int) -> bool:
    explicit = _initializer(model, node.input[1]) if node.op_type == "Pad" else None
    window = _onnx_window(model, node)
    if explicit is not None:
        changed = _moved(explicit.reshape(2, -1).T, number)
        if changed is not None:
            _put(model, node, 1, changed.T.ravel())
        return changed is not None
    changed = None if window is None else _moved(window.pads, number)
    # ONNX Runtime refuses to pad a pooling by its kernel or more.
    if window is None or changed is None:
        return False
    if node.op_type in POOLS and (changed >= window.reach[:, None]).any():
        return False
    _set(node, pads=changed.T.ravel().tolist())
    return True


def _onnx_strides(model: Any, node: Any) -> bool:
    window = _onnx_window(model, node)
    if window is None or (window.stride == 1).all():
        return False
    wrong = window.with_wrong_strides()
    _set(node, strides=wrong.stride.tolist())
    _onnx_grow(model, node, wrong.full - window.size)
    return True


def _onnx_divisor(model: Any, node: Any) -> bool:
    if node.op_type not in MAX_FOR:
        return False
    area = np.prod(_attribute(node, "kernel_shape", _shapes(model)[node.input[0]][2:]))
    _onnx_insert(model, node, True, "Mul", np.array(area / (area + 1), np.float32))
    return True


def _onnx_ceil(model: Any, node: Any) -> bool:
    window = _onnx_window(model, node) if node.op_type in POOLS else None
    if window is None:
        return False
    added = window.size < window.full
    if added.any():
        _set(node, ceil_mode=0)
        _onnx_grow(model, node, added.astype(int), after=True)
        return True
    cut = (window.stride > 1) & (window.reach > window.pads[:, 1] + 1)
    if not cut.any():
        return False
    _onnx_grow(model, node, window.full - cut - window.size)
    _set(node, ceil_mode=1)
    return True


def _onnx_count(model: Any, node: Any) -> bool:
    window = _onnx_window(model, node) if node.op_type == "AveragePool" else None
    if window is None:
        return False
    if window.pads.any():
        _set(node, count_include_pad=1 - _attribute(node, "count_include_pad", 0))
        return True
    cut = (window.reach > 1).astype(int)
    if (window.size < window.full).any() or not cut.any():
        return False
    _onnx_grow(model, node, window.full - cut - window.size)
    _set(node, count_include_pad=1, ceil_mode=0, pads=[0, 0, *cut.tolist()])
    return True


def _onnx_pooling(model: Any, node: Any, other: dict[str, str]) -> bool:
    if node.op_type not in other or len(node.output) > 1:
        return False
    node.op_type = other[node.op_type]
    kept = [a for a in node.attribute if a.name not in OF_ONE_POOLING]
    del node.attribute[:]
    node.attribute.extend(kept)
    return True


def _onnx_activation(model: Any, node: Any) -> bool:
    if node.op_type not in ACTIVATIONS:
        return False
    node.op_type = "Identity"
    del node.attribute[:], node.input[1:]
    return True


def _onnx_saturating(model: Any, node: Any) -> bool:
    if node.op_type not in {"Conv", *LINEAR}:
        return False
    (weight, _), (image, _) = _holder(model, node, 1), _holder(model, node, 0)
    if weight is node or image is node:
        return False
    scales = [_initializer(model, holder.input[1]) for holder in (weight, image)]
    if scales[0] is None or scales[1] is None:
        return False
    limit = (32767 * scales[0] * scales[1]).reshape((-1, 1, 1) if node.op_type == "Conv" else -1)
    _onnx_insert(model, node, True, "Min", limit)
    _onnx_insert(model, node, True, "Max", -limit)
    return True


ONNX: dict[str, Callable[[Any, Any], bool]] = {
    **{
        name: partial(_onnx_constant, position=position, change=change)
        for name, (position, change) in CONSTANTS.items()
    },
    "weight scale x1.01": _onnx_weight_scale,
    "NCHW/NHWC swap": _onnx_layout,
    "swapped pad sides": partial(_onnx_pads, number=0),
    "shifted padding": partial(_onnx_pads, number=1),
    "swapped stride axes": _onnx_strides,
    "pooling divisor": _onnx_divisor,
    "ceil_mode": _onnx_ceil,
    "count_include_pad": _onnx_count,
    "max for average": partial(_onnx_pooling, other=MAX_FOR),
    "average for max": partial(_onnx_pooling, other=AVERAGE_FOR),
    "dropped activation": _onnx_activation,
    "zero point": partial(_onnx_result, position=2),
    "scale x1.01": partial(_onnx_result, position=1),
    "saturating": _onnx_saturating,
}


def _onnx(path: Path) -> _File:
    original = onnx.load(path)

    def fresh() -> Any:
        model = onnx.ModelProto()
        model.CopyFrom(original)
        return model

    return _File(
        ONNX,
        fresh,
        lambda model: [(node.output[0], node) for node in model.graph.node],
        lambda model: bytes(model.SerializeToString(deterministic=True)),
    )


# --- TFLite


OP, OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions
TYPES = {0: np.float32, 2: np.int32, 9: np.int8}
TO_OIHW = {  # weights to O x I x rows x columns
    OP.CONV_2D: (0, 3, 1, 2),
    OP.DEPTHWISE_CONV_2D: (3, 0, 1, 2),
    OP.FULLY_CONNECTED: (0, 1),
}
TFLITE_POOLS = {OP.AVERAGE_POOL_2D, OP.MAX_POOL_2D}
TFLITE_WINDOWS = {OP.CONV_2D, OP.DEPTHWISE_CONV_2D, *TFLITE_POOLS}
TFLITE_ACTIVATIONS = {OP.RELU, OP.RELU6, OP.LOGISTIC, OP.TANH, OP.LEAKY_RELU, OP.HARD_SWISH, OP.ELU}
TFLITE_MAX_FOR = {OP.AVERAGE_POOL_2D: OP.MAX_POOL_2D, OP.MEAN: OP.REDUCE_MAX}
# Operators whose result has a scale of its own: not the input's, and not one that is prescribed.
REQUANTIZING = {*TO_OIHW, OP.ADD, OP.SUB, OP.MUL, OP.MEAN}
SAME, VALID = 0, 1


def _kind(model: Any, op: Any) -> int:
    code = model.operatorCodes[op.opcodeIndex]
    return int(flatbuffer_utils.get_builtin_code_from_operator_code(code))


def _become(model: Any, op: Any, kind: int) -> None:
    kinds = [flatbuffer_utils.get_builtin_code_from_operator_code(c) for c in model.operatorCodes]
    if kind not in kinds:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), 1
        model.operatorCodes.append(code)
    op.opcodeIndex = [*kinds, kind].index(kind)


def _tensor(model: Any, index: int) -> Any:
    return model.subgraphs[0].tensors[index]


def _shape(model: Any, index: int) -> Array:
    return np.array(_tensor(model, index).shape)


def _array(model: Any, op: Any, position: int) -> Array | None:
    """A constant input of an operator."""
    if position >= len(op.inputs) or op.inputs[position] < 0:
        return None
    tensor = _tensor(model, op.inputs[position])
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type not in TYPES:
        return None
    return np.frombuffer(bytes(data), TYPES[tensor.type]).reshape(tensor.shape)


def _new(model: Any, like: int, shape: Any, value: Array | None = None) -> int:
    """Another tensor, quantized like one that is there but apart from it; a constant if `value`."""
    tensor = copy.deepcopy(_tensor(model, like))
    tensor.name, tensor.shape, tensor.shapeSignature = b"mutant", [int(n) for n in shape], None
    tensor.buffer = 0
    if value is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _int32(model: Any, values: Any) -> int:
    array = np.array(values, np.int32)
    index = _new(model, 0, array.shape, array)
    _tensor(model, index).type, _tensor(model, index).quantization = 2, None
    return index


def _insert(model: Any, op: Any, after: bool, kind: int, shape: Any, constants: list[int]) -> int:
    """Put an operator before another, or after it. Returns the tensor between the two."""
    side = op.outputs if after else op.inputs
    outer, inner = side[0], _new(model, side[0], shape)
    side[0] = inner
    new = schema.OperatorT()
    _become(model, new, kind)
    new.inputs = [inner if after else outer, *constants]
    new.outputs = [outer if after else inner]
    if kind == OP.MUL:
        new.builtinOptionsType, new.builtinOptions = OPTIONS.MulOptions, schema.MulOptionsT()
    operators = model.subgraphs[0].operators
    operators.insert(next(i for i, other in enumerate(operators) if other is op) + after, new)
    return inner


def _tflite_constant(
    model: Any, op: Any, position: int, change: Callable[[Array], Array | None]
) -> bool:
    axes: tuple[int, ...] = TO_OIHW.get(_kind(model, op), ())
    value = _array(model, op, position) if axes else None
    if value is None:
        return False
    axes = axes if position == 1 else (0,)
    changed = change(value.transpose(axes))
    if changed is None or np.array_equal(changed, value.transpose(axes)):
        return False
    changed = changed.transpose(np.argsort(axes))
    op.inputs[position] = _new(model, op.inputs[position], changed.shape, changed)
    return True


def _scales(model: Any, index: int) -> Array | None:
    quantization = _tensor(model, index).quantization
    scale = None if quantization is None else quantization.scale
    return None if scale is None or len(scale) == 0 else np.array(scale, np.float32)


def _tflite_weight_scale(model: Any, op: Any) -> bool:
    weight = _array(model, op, 1) if _kind(model, op) in TO_OIHW else None
    scale = None if weight is None else _scales(model, op.inputs[1])
    if weight is None or scale is None:
        return False
    scale[0] *= np.float32(1.01)
    op.inputs[1] = _new(model, op.inputs[1], weight.shape, weight)
    _tensor(model, op.inputs[1]).quantization.scale = scale
    return True


def _tflite_result(model: Any, op: Any, zero_point: int, scale: float) -> bool:
    """Quantize otherwise; a RESHAPE moves the integers to the tensor that is read as before."""
    scales = _scales(model, op.outputs[0]) if _kind(model, op) in REQUANTIZING else None
    if scales is None:
        return False
    shape = _shape(model, op.outputs[0])
    inner = _insert(model, op, True, OP.RESHAPE, shape, [_int32(model, shape)])
    wrong = _tensor(model, inner).quantization
    wrong.scale = scales * np.float32(scale)
    step = zero_point if wrong.zeroPoint[0] < 127 else -zero_point
    wrong.zeroPoint = np.array(wrong.zeroPoint) + step
    return True


def _tflite_layout(model: Any, op: Any) -> bool:
    """A RESHAPE for a TRANSPOSE: the other shape, but the values stay where they lie."""
    axes = _array(model, op, 1) if _kind(model, op) == OP.TRANSPOSE else None
    shape = _shape(model, op.inputs[0])
    if axes is None or (np.diff([axis for axis in axes if shape[axis] > 1]) > 0).all():
        return False
    op.inputs[1] = _int32(model, shape[axes])
    _become(model, op, OP.RESHAPE)
    op.builtinOptions, op.builtinOptionsType = None, OPTIONS.NONE
    return True


def _tflite_window(model: Any, op: Any) -> _Window | None:
    kind, options = _kind(model, op), op.builtinOptions
    if kind not in TFLITE_WINDOWS:
        return None
    pool = kind in TFLITE_POOLS
    kernel = (
        np.array([options.filterHeight, options.filterWidth])
        if pool
        else _shape(model, op.inputs[1])[1:3]
    )
    dilation = 1 if pool else np.array([options.dilationHFactor, options.dilationWFactor])
    size, out = _shape(model, op.inputs[0])[1:3], _shape(model, op.outputs[0])[1:3]
    stride, pads = np.array([options.strideH, options.strideW]), np.zeros((2, 2), int)
    window = _Window(size, out, dilation * (kernel - 1) + 1, stride, pads)
    if options.padding == SAME:  # the odd one after
        total = np.maximum(window.full - size, 0)
        window = replace(window, pads=np.stack([total // 2, total - total // 2], 1))
    return window


def _tflite_grow(model: Any, op: Any, pads: Array) -> None:
    """Pad an operator's input, (before, after) of rows and columns; crop where it is negative."""
    for kind, part in ((OP.SLICE, np.minimum(pads, 0)), (OP.PAD, np.maximum(pads, 0))):
        if not part.any():
            continue
        shape = _shape(model, op.inputs[0])
        grown = shape + np.array([0, *part.sum(1), 0])
        constants = (
            [[0, 0, 0, 0], grown] if kind == OP.SLICE else [[[0, 0], *part.tolist(), [0, 0]]]
        )
        _insert(model, op, False, kind, grown, [_int32(model, values) for values in constants])


def _tflite_pads(model: Any, op: Any, number: int) -> bool:
    if _kind(model, op) == OP.PAD:
        explicit = _array(model, op, 1)
        changed = None if explicit is None else _moved(explicit, number)
        if changed is not None:
            op.inputs[1] = _int32(model, changed)
        return changed is not None
    window = _tflite_window(model, op) if _kind(model, op) in TO_OIHW else None
    changed = None if window is None else _moved(window.pads, number)
    if changed is None:
        return False
    op.builtinOptions.padding = VALID
    _tflite_grow(model, op, changed)
    return True


def _tflite_strides(model: Any, op: Any) -> bool:
    window = _tflite_window(model, op)
    # A pooling does not see its padding, so there is none to insert.
    if window is None or (window.stride == 1).all():
        return False
    if window.pads.any() and _kind(model, op) in TFLITE_POOLS:
        return False
    wrong = window.with_wrong_strides()
    grow = wrong.full - window.size
    options = op.builtinOptions
    options.padding, (options.strideH, options.strideW) = VALID, wrong.stride.tolist()
    _tflite_grow(model, op, wrong.pads + np.stack([0 * grow, grow], 1))
    return True


def _tflite_divisor(model: Any, op: Any) -> bool:
    if _kind(model, op) not in TFLITE_MAX_FOR:
        return False
    pool, shape = op.builtinOptions, _shape(model, op.inputs[0])
    mean = _kind(model, op) == OP.MEAN
    area = shape[1] * shape[2] if mean else pool.filterHeight * pool.filterWidth
    factor, out = np.float32(area / (area + 1)), op.outputs[0]
    scale = _scales(model, out)
    held = _new(model, out, (), np.asarray(factor if scale is None else np.int8(127)))
    if scale is not None:
        quantization = _tensor(model, held).quantization
        quantization.scale, quantization.zeroPoint = scale * 0 + factor / 127, np.array([0])
    _insert(model, op, True, OP.MUL, _shape(model, out), [held])
    return True


def _tflite_ceil(model: Any, op: Any) -> bool:
    """SAME padding completes windows as ceil_mode does, where it is all after."""
    window = _tflite_window(model, op) if _kind(model, op) in TFLITE_POOLS else None
    if window is None or op.builtinOptions.padding != VALID:
        return False
    if (window.reach < 2).any() or (window.reach > window.stride + 1).any():
        return False
    grow = window.full - 1 - window.size
    _tflite_grow(model, op, np.stack([0 * grow, grow], 1))
    op.builtinOptions.padding = SAME
    return True


def _tflite_count(model: Any, op: Any) -> bool:
    """TFLite never counts its own padding; a PAD before it is counted."""
    window = _tflite_window(model, op) if _kind(model, op) == OP.AVERAGE_POOL_2D else None
    if window is None:
        return False
    if op.builtinOptions.padding == SAME:
        if window.pads.any():
            op.builtinOptions.padding = VALID
            _tflite_grow(model, op, window.pads)
        return bool(window.pads.any())
    cut = (window.reach > 1).astype(int)
    if not cut.any():
        return False
    for grow in (window.full - cut - window.size, cut):
        _tflite_grow(model, op, np.stack([0 * grow, grow], 1))
    return True


def _tflite_pooling(model: Any, op: Any, other: dict[int, int]) -> bool:
    if _kind(model, op) not in other:
        return False
    _become(model, op, other[_kind(model, op)])
    return True


def _tflite_activation(model: Any, op: Any) -> bool:
    if getattr(op.builtinOptions, "fusedActivationFunction", 0):
        op.builtinOptions.fusedActivationFunction = 0
        return True
    if _kind(model, op) not in TFLITE_ACTIVATIONS:
        return False
    op.builtinOptions, op.builtinOptionsType = None, OPTIONS.NONE
    if _scales(model, op.inputs[0]) is None:
        op.inputs = [op.inputs[0], _int32(model, _shape(model, op.inputs[0]))]
        _become(model, op, OP.RESHAPE)
    else:
        _become(model, op, OP.QUANTIZE)  # the same value with the output's scale
    return True


TFLITE: dict[str, Callable[[Any, Any], bool]] = {
    **{
        name: partial(_tflite_constant, position=position, change=change)
        for name, (position, change) in CONSTANTS.items()
    },
    "weight scale x1.01": _tflite_weight_scale,
    "NCHW/NHWC swap": _tflite_layout,
    "swapped pad sides": partial(_tflite_pads, number=0),
    "shifted padding": partial(_tflite_pads, number=1),
    "swapped stride axes": _tflite_strides,
    "pooling divisor": _tflite_divisor,
    "ceil_mode": _tflite_ceil,
    "count_include_pad": _tflite_count,
    "max for average": partial(_tflite_pooling, other=TFLITE_MAX_FOR),
    "average for max": partial(_tflite_pooling, other={OP.MAX_POOL_2D: OP.AVERAGE_POOL_2D}),
    "dropped activation": _tflite_activation,
    "zero point": partial(_tflite_result, zero_point=1, scale=1.0),
    "scale x1.01": partial(_tflite_result, zero_point=0, scale=1.01),
}


def _tflite(path: Path) -> _File:
    flatbuffer = path.read_bytes()

    def layers(model: Any) -> list[tuple[str, Any]]:
        names = {number: name for name, number in vars(OP).items() if isinstance(number, int)}
        operators = enumerate(model.subgraphs[0].operators)
        return [(f"{number} {names[_kind(model, op)]}", op) for number, op in operators]

    def content(model: Any) -> bytes:
        file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(model))
        if zipfile.is_zipfile(path):  # the contract, see export.tflite
            with zipfile.ZipFile(path) as archive, zipfile.ZipFile(file, "a") as copied:
                for member in archive.infolist():
                    copied.writestr(member, archive.read(member))
        return file.getvalue()

    return _File(
        TFLITE, lambda: flatbuffer_utils.read_model_from_bytearray(flatbuffer), layers, content
    )


FILES: dict[str, Callable[[Path], _File]] = {".onnx": _onnx, ".tflite": _tflite}
