"""An ONNX file as C is generated from it: one image at a time, what is constant computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from ...errors import BadInput, first_line
from ...reference import OLDEST, compute
from .values import Array, Shape

# Whose results depend on nothing but shapes, which are known.
SHAPES = {"Shape", "Size"}


@dataclass(frozen=True)
class Source:
    """Nodes that are to be computed on the device, and everything that is known about them.

    `constants` has the values that do not depend on an input, `dequantized` the node behind each
    constant that was dequantized; `uses` counts who reads a value, the caller included.
    """

    name: str
    model: onnx.ModelProto
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]
    constants: dict[str, Array]
    dequantized: dict[str, onnx.NodeProto]
    shapes: dict[str, Shape]
    dtypes: dict[str, np.dtype[Any]]
    uses: Counter[str]
    users: dict[str, list[onnx.NodeProto]]


def read(content: bytes, name: str) -> Source:
    """Parse a model, make its batch 1, infer shapes and compute constants. Raises BadInput."""
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise BadInput(f"{name}: not a valid ONNX model ({first_line(error)})") from error
    model = _of_today(model, name)
    constants = {i.name: np.asarray(onnx.numpy_helper.to_array(i)) for i in model.graph.initializer}
    inputs = tuple(v.name for v in model.graph.input if v.name not in constants)
    _fix_batch(model, inputs, name)
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise BadInput(f"{name}: its shapes do not fit ({first_line(error)})") from error
    opset = _opset(model)
    shapes, dtypes = {}, {}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        shapes[value.name] = tuple(int(d.dim_value) for d in tensor.shape.dim)
        dtypes[value.name] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    nodes, dequantized = [], {}
    for node in model.graph.node:
        if _is_constant(node, constants, shapes):
            given = [
                constants.get(i, np.zeros(shapes.get(i, ()))) if i else None for i in node.input
            ]
            results = [np.asarray(result) for result in compute(node, given, opset)]
            constants |= dict(zip(node.output, results, strict=True))
            if node.op_type == "DequantizeLinear":
                dequantized[node.output[0]] = node
        else:
            nodes.append(node)
    outputs = tuple(value.name for value in model.graph.output)
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for value_name in node.input:
            users.setdefault(value_name, []).append(node)
    uses = Counter({n: len(found) for n, found in users.items()}) + Counter(outputs)
    return Source(
        *(name, model, opset, inputs, outputs, tuple(nodes), constants, dequantized),
        *(shapes, dtypes, uses, users),
    )


def _opset(model: onnx.ModelProto) -> int:
    return next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0)


def _of_today(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with the definitions that are known: onnx converts older ones."""
    if not 0 < _opset(model) < OLDEST:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, OLDEST)
    except RuntimeError as error:
        raise BadInput(
            f"{name}: opset {_opset(model)} cannot be converted to {OLDEST} ({first_line(error)})",
            f"export it with opset {OLDEST} or newer",
        ) from error
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    return converted


def _is_constant(
    node: onnx.NodeProto, constants: dict[str, Array], shapes: dict[str, Shape]
) -> bool:
    if node.op_type in SHAPES:
        return min(shapes.get(node.input[0], (0,)), default=1) > 0
    return all(name in constants for name in node.input if name)


def _fix_batch(model: onnx.ModelProto, inputs: tuple[str, ...], name: str) -> None:
    """An axis without a number is 1 where it is the first, and an error elsewhere."""
    for value in model.graph.input:
        if value.name not in inputs:
            continue
        if not value.type.HasField("tensor_type"):
            raise BadInput(f"{name}: input {value.name!r} is no tensor")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and axis:
                raise BadInput(
                    f"{name}: axis {axis} of input {value.name!r} has no fixed size",
                    "export the model with a fixed shape; only the batch may vary",
                )
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    for value in model.graph.output:  # they follow from the inputs
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
