"""The weights of a float TFLite file in fewer bits, as the formats of TFLite have it.

fp16: each weight is float16, behind a DEQUANTIZE. dynamic: it is int8, and the operator takes it as
it is; how its other input meets that is up to the runtime.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.runner.quiet import quiet

from ..errors import BadInput

Array = npt.NDArray[Any]

# Operators with weights, and the weights' axis that has scales; linear ones have one scale in all.
WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": None}
NEAR = 4  # float32 numbers on either side of max |W| / 127 among which a scale is looked for


def repacked(content: bytes, precision: str) -> bytes:
    """The file with its weights, which are halves or int8 times a scale, stored as such.

    No value changes. Raises BadInput where a weight is neither.
    """
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model_from_bytearray(bytearray(content))
    store = _Halves(model) if precision == "fp16" else _Int8(model)
    (graph,) = model.subgraphs
    axes = {getattr(store.schema.BuiltinOperator, name): axis for name, axis in WEIGHTED.items()}
    weights = {
        int(operator.inputs[1]): axes[code]
        for operator in graph.operators
        if (code := model.operatorCodes[operator.opcodeIndex].builtinCode) in axes
    }
    made = [store(number, axis) for number, axis in weights.items()]
    graph.operators = [operator for operator in made if operator] + graph.operators
    return written(model)


def written(model: Any) -> bytes:
    """The bytes of a changed model, without what no tensor of its one graph holds any more."""
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    (graph,) = model.subgraphs
    used = {tensor.buffer for tensor in graph.tensors} | {m.buffer for m in model.metadata or ()}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
    with quiet():
        return bytes(flatbuffer.convert_object_to_bytearray(model))


class _Small:
    """Stores one weight after the other; calling it may give an operator that has to be there."""

    def __init__(self, model: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema, self.model, (self.graph,) = schema, model, model.subgraphs

    def weight(self, number: int) -> Array:
        """A tensor's constant, float32. Raises BadInput where it has none."""
        tensor = self.graph.tensors[number]
        data = self.model.buffers[tensor.buffer].data
        if data is None:
            raise BadInput(
                f"{tensor.name.decode()} is no constant", "give --precision fp32 or int8"
            )
        return np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)

    def buffer(self, content: Array) -> int:
        """A new one, since tensors of the same content may share theirs."""
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(content.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1


class _Halves(_Small):
    def __call__(self, number: int, axis: int | None) -> Any:
        del axis
        weight, tensor = self.weight(number), self.graph.tensors[number]
        half = weight.astype(np.float16)
        if not np.array_equal(half, weight):
            raise BadInput(f"fp16: {tensor.name.decode()} is no half after the converter")
        source = self.schema.TensorT()
        source.name, source.shape = tensor.name + b"_half", tensor.shape
        source.type, source.buffer = self.schema.TensorType.FLOAT16, self.buffer(half)
        tensor.buffer = 0  # which is empty
        self.graph.tensors.append(source)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._dequantize()
        operator.inputs, operator.outputs = [len(self.graph.tensors) - 1], [number]
        return operator

    def _dequantize(self) -> int:
        code = self.schema.BuiltinOperator.DEQUANTIZE
        known = [entry.builtinCode for entry in self.model.operatorCodes]
        if code not in known:
            entry = self.schema.OperatorCodeT()
            entry.builtinCode = entry.deprecatedBuiltinCode = code
            entry.version = 3  # the one that reads float16
            self.model.operatorCodes.append(entry)
            known.append(code)
        return known.index(code)


class _Int8(_Small):
    def __call__(self, number: int, axis: int | None) -> None:
        weight, tensor = self.weight(number), self.graph.tensors[number]
        channels = weight[None] if axis is None else np.moveaxis(weight, axis, 0)
        integers, scales = in_steps(channels)
        tensor.buffer = self.buffer(integers if axis is None else np.moveaxis(integers, 0, axis))
        tensor.type = self.schema.TensorType.INT8
        tensor.quantization = self.schema.QuantizationParametersT()
        tensor.quantization.scale = scales
        tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        tensor.quantization.quantizedDimension = axis or 0


def in_steps(weight: Array) -> tuple[Array, Array]:
    """float32 channels x ... as int8 and one float32 scale a channel, whose products they are
    exactly. Raises BadInput where there are none: the converter has changed the weights.
    """
    integers, scales = np.zeros(weight.shape, np.int8), np.ones(len(weight), np.float32)
    for channel, values in enumerate(weight):
        largest = np.abs(values).max()
        if largest == 0:
            continue
        first = np.float32(largest) / np.float32(127)
        near = first.view(np.int32) + np.arange(-NEAR, NEAR + 1, dtype=np.int32)  # by their bits
        for scale in near.view(np.float32):
            found = np.rint(values / scale)
            if np.array_equal(found.astype(np.float32) * scale, values):
                integers[channel], scales[channel] = found, scale
                break
        else:
            raise BadInput("dynamic: a weight is not int8 times a scale after the converter")
    return integers, scales
