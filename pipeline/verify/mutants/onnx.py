"""The mutations of an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .changes import CONSTANTS, Array, ModelFile, Window, moved

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


def _constant(
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


def _weight_scale(model: Any, node: Any) -> bool:
    holder, _ = _holder(model, node, 1)
    if node.op_type not in {"Conv", *LINEAR} or holder is node:
        return False
    scale = _initializer(model, holder.input[1])
    if scale is None:
        return False
    scale.flat[0] *= np.float32(1.01)
    _put(model, holder, 1, scale)
    return True


def _result(model: Any, node: Any, position: int) -> bool:
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


def _layout(model: Any, node: Any) -> bool:
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
    return _constant(model, node, 1, lambda weight: weight[:, order.argsort()])


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }


def _window(model: Any, node: Any) -> Window | None:
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
    return Window(
        np.array(shapes[node.input[0]][2:]),
        np.array(shapes[node.output[0]][2:]),
        dilation * (np.array(kernel) - 1) + 1,
        np.array(_attribute(node, "strides", [1, 1])),
        np.array(_attribute(node, "pads", [0] * 4)).reshape(2, 2).T,
    )


def _insert(model: Any, node: Any, after: bool, kind: str, constant: Array) -> None:
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


def _grow(model: Any, node: Any, grow: Array, after: bool = False) -> None:
    """Pad a node's input (or result) at the end of rows and columns; crop where it is negative."""
    if grow.any():
        pads = np.array([0] * 6 + [int(n) for n in grow], np.int64)
        _insert(model, node, after, "Pad", pads)


def _pads(model: Any, node: Any, number: int) -> bool:
    explicit = _initializer(model, node.input[1]) if node.op_type == "Pad" else None
    window = _window(model, node)
    if explicit is not None:
        changed = moved(explicit.reshape(2, -1).T, number)
        if changed is not None:
            _put(model, node, 1, changed.T.ravel())
        return changed is not None
    changed = None if window is None else moved(window.pads, number)
    # ONNX Runtime refuses to pad a pooling by its kernel or more.
    if window is None or changed is None:
        return False
    if node.op_type in POOLS and (changed >= window.reach[:, None]).any():
        return False
    _set(node, pads=changed.T.ravel().tolist())
    return True


def _strides(model: Any, node: Any) -> bool:
    window = _window(model, node)
    if window is None or (window.stride == 1).all():
        return False
    wrong = window.with_wrong_strides()
    _set(node, strides=wrong.stride.tolist())
    _grow(model, node, wrong.full - window.size)
    return True


def _divisor(model: Any, node: Any) -> bool:
    if node.op_type not in MAX_FOR:
        return False
    area = np.prod(_attribute(node, "kernel_shape", _shapes(model)[node.input[0]][2:]))
    _insert(model, node, True, "Mul", np.array(area / (area + 1), np.float32))
    return True


def _ceil(model: Any, node: Any) -> bool:
    window = _window(model, node) if node.op_type in POOLS else None
    if window is None:
        return False
    added = window.size < window.full
    if added.any():
        _set(node, ceil_mode=0)
        _grow(model, node, added.astype(int), after=True)
        return True
    cut = (window.stride > 1) & (window.reach > window.pads[:, 1] + 1)
    if not cut.any():
        return False
    _grow(model, node, window.full - cut - window.size)
    _set(node, ceil_mode=1)
    return True


def _count(model: Any, node: Any) -> bool:
    window = _window(model, node) if node.op_type == "AveragePool" else None
    if window is None:
        return False
    if window.pads.any():
        _set(node, count_include_pad=1 - _attribute(node, "count_include_pad", 0))
        return True
    cut = (window.reach > 1).astype(int)
    if (window.size < window.full).any() or not cut.any():
        return False
    _grow(model, node, window.full - cut - window.size)
    _set(node, count_include_pad=1, ceil_mode=0, pads=[0, 0, *cut.tolist()])
    return True


def _pooling(model: Any, node: Any, other: dict[str, str]) -> bool:
    if node.op_type not in other or len(node.output) > 1:
        return False
    node.op_type = other[node.op_type]
    kept = [a for a in node.attribute if a.name not in OF_ONE_POOLING]
    del node.attribute[:]
    node.attribute.extend(kept)
    return True


def _activation(model: Any, node: Any) -> bool:
    if node.op_type not in ACTIVATIONS:
        return False
    node.op_type = "Identity"
    del node.attribute[:], node.input[1:]
    return True


def _saturating(model: Any, node: Any) -> bool:
    if node.op_type not in {"Conv", *LINEAR}:
        return False
    (weight, _), (image, _) = _holder(model, node, 1), _holder(model, node, 0)
    if weight is node or image is node:
        return False
    scales = [_initializer(model, holder.input[1]) for holder in (weight, image)]
    if scales[0] is None or scales[1] is None:
        return False
    limit = (32767 * scales[0] * scales[1]).reshape((-1, 1, 1) if node.op_type == "Conv" else -1)
    _insert(model, node, True, "Min", limit)
    _insert(model, node, True, "Max", -limit)
    return True


MUTATIONS: dict[str, Callable[[Any, Any], bool]] = {
    **{
        name: partial(_constant, position=position, change=change)
        for name, (position, change) in CONSTANTS.items()
    },
    "weight scale x1.01": _weight_scale,
    "NCHW/NHWC swap": _layout,
    "swapped pad sides": partial(_pads, number=0),
    "shifted padding": partial(_pads, number=1),
    "swapped stride axes": _strides,
    "pooling divisor": _divisor,
    "ceil_mode": _ceil,
    "count_include_pad": _count,
    "max for average": partial(_pooling, other=MAX_FOR),
    "average for max": partial(_pooling, other=AVERAGE_FOR),
    "dropped activation": _activation,
    "zero point": partial(_result, position=2),
    "scale x1.01": partial(_result, position=1),
    "saturating": _saturating,
}


def opened(path: Path) -> ModelFile:
    """Layers are named by their first value."""
    original = onnx.load(path)

    def fresh() -> Any:
        model = onnx.ModelProto()
        model.CopyFrom(original)
        return model

    return ModelFile(
        MUTATIONS,
        fresh,
        lambda model: [(node.output[0], node) for node in model.graph.node],
        lambda model: bytes(model.SerializeToString(deterministic=True)),
    )
