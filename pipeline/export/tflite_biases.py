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


def with_int64_biases(content: bytes, biases: Sequence[Array | None]) -> bytes:
    """The file with the program's own integers, which `biases` has for each convolution and linear
    layer in order. None is zeros: without a bias other kernels run, which add up in 32 bits.

    Raises BadInput where the file's biases are not those.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model_from_bytearray(bytearray(content))
    (graph,) = model.subgraphs
    versions = {getattr(schema.BuiltinOperator, name): v for name, v in VERSIONS.items()}
    codes = [model.operatorCodes[operator.opcodeIndex] for operator in graph.operators]
    weighted = [
        pair for pair in zip(graph.operators, codes, strict=True) if pair[1].builtinCode in versions
    ]
    if len(weighted) != len(biases):
        raise BadInput(
            f"int16x8: {len(biases)} layers with weights are {len(weighted)} after the converter",
            "give --precision int8",
        )
    replaced = []
    for (operator, code), bias in zip(weighted, biases, strict=True):
        code.version = versions[code.builtinCode]
        value, weight = (graph.tensors[number] for number in operator.inputs[:2])
        scales = np.asarray(value.quantization.scale) * np.asarray(weight.quantization.scale)
        channels = graph.tensors[operator.outputs[0]].shape[-1]
        integers = np.zeros(channels, np.int64) if bias is None else bias.astype(np.int64)
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            old = graph.tensors[operator.inputs[2]]
            _refuse_unlike(np.frombuffer(bytes(model.buffers[old.buffer].data), np.int32), integers)
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
    return written(model)


def _refuse_unlike(converted: Array, integers: Array) -> None:
    """Raises BadInput unless the converter's integers are these but for float32 rounding."""
    off = np.abs(integers - converted)
    if converted.shape != integers.shape or (off > NEAR * np.abs(integers) + 0.5).any():
        raise BadInput("int16x8: a bias is another after the converter", "give --precision int8")
