"""The biases of an int16x8 TFLite file as int64: kernels demand it, and converters write int32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadInput
from .tflite_weights import written

Array = npt.NDArray[Any]

# Operators with a bias, and the version since which they take int16 values and an int64 bias: the
# converter states those of int32 ones, which tflite-runtime 2.14 does not know.
VERSIONS = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7}
NEAR = 2.0**-22  # float32 values on the way have 24 bits, and are divided by a rounded scale


def with_int64_biases(content: bytes, biases: Sequence[Array]) -> bytes:
    """The file with the program's own integers, in the program's order, and int64 zeros where an
    operator has none: without a bias other kernels run, which add up in 32 bits.

    Raises BadInput where the file's biases are not those.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model_from_bytearray(bytearray(content))
    (graph,) = model.subgraphs
    versions = {getattr(schema.BuiltinOperator, name): v for name, v in VERSIONS.items()}
    left, replaced = list(biases), []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.builtinCode not in versions:
            continue
        code.version = versions[code.builtinCode]
        value, weight = (graph.tensors[number] for number in operator.inputs[:2])
        scales = np.asarray(value.quantization.scale) * np.asarray(weight.quantization.scale)
        integers = np.zeros(graph.tensors[operator.outputs[0]].shape[-1], np.int64)
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            old = graph.tensors[operator.inputs[2]]
            converted = np.frombuffer(bytes(model.buffers[old.buffer].data), np.int32)
            # The converter gives zeros to an operator without a bias.
            if converted.any() or (left and not left[0].any()):
                integers = _same(converted, left)
            replaced.append(old)
        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data = np.frombuffer(integers.tobytes(), np.uint8)
        tensor.name, tensor.type = b"bias_%d" % len(graph.tensors), schema.TensorType.INT64
        tensor.shape, tensor.buffer = list(integers.shape), len(model.buffers)
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = scales.astype(np.float32)
        tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        model.buffers.append(buffer)
        operator.inputs = [*operator.inputs[:2], len(graph.tensors)]
        graph.tensors.append(tensor)
    for old in replaced:
        old.buffer = 0  # which is empty
    if left:
        raise BadInput(f"int16x8: the converter left out {len(left)} biases")
    return written(model)


def _same(converted: Array, left: list[Array]) -> Array:
    """The next of the program's biases, which the converter's must be but for float32 rounding."""
    wanted = left.pop(0).astype(np.int64) if left else np.zeros(0, np.int64)
    if (
        wanted.shape != converted.shape
        or (np.abs(wanted - converted) > NEAR * np.abs(wanted) + 0.5).any()
    ):
        raise BadInput("int16x8: a bias is another after the converter", "give --precision int8")
    return wanted
