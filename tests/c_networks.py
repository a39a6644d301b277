"""Networks that C is generated for in tests: any ONNX model, compiled, and run value by value."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy.runner.backends.c import DTYPES
from deploy.runner.backends.library import loaded
from pipeline.export.c import generate, write
from pipeline.verify.compiler import Sources, built

QUICK = ("CFLAGS=-O1",)
PORTABLE = ("CFLAGS=-O1 -DPORTABLE_ONLY",)
# Inputs that the standard lets be variable, and of which C must know the values.
CONSTANT = {
    **dict.fromkeys(("Conv", "Gemm", "BatchNormalization"), range(1, 9)),
    **dict.fromkeys(("Clip", "Pad", "Reshape", "Squeeze", "Unsqueeze", "Slice"), range(1, 9)),
    **dict.fromkeys(("QLinearConv", "QuantizeLinear", "DequantizeLinear"), range(1, 9)),
    **dict.fromkeys(("ReduceMean", "Dropout"), range(1, 9)),
}


def bound(model: onnx.ModelProto, values: dict[str, Any]) -> onnx.ModelProto:
    """The model with those of its inputs made constants whose values C must know."""
    wanted = {
        node.input[index]
        for node in model.graph.node
        for index in CONSTANT.get(node.op_type, ())
        if index < len(node.input)
    }
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.input[:]
    for value in model.graph.input:
        if value.name in wanted and value.name in values:
            array = np.asarray(values[value.name])
            fixed.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        else:
            fixed.graph.input.append(value)
    return fixed


class Compiled:
    """A model's C as a library, in one instruction set."""

    def __init__(self, content: bytes, folder: Path, options: tuple[str, ...] = QUICK) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write(generate(content, "model.onnx"), folder)
        path = folder / "library.so"
        path.write_bytes(built(Sources.of(folder), options))
        self.library = loaded(path)
        self.model = self.library.library_model()
        contents = self.model.contents
        self.sets = {
            contents.sets[i].name.decode(): i
            for i in range(contents.set_count)
            if contents.sets[i].supported()
        }
        output = onnx.load_from_string(content).graph.output[0].type.tensor_type.elem_type
        self.real_output = output == onnx.TensorProto.FLOAT
        self._memory = np.zeros(contents.arena + 64, np.uint8)
        self.arena = -(-self._memory.ctypes.data // 64) * 64

    def run(self, *inputs: Any, instructions: str = "portable") -> list[Any]:
        """Plain inputs to plain outputs; real ones where the graph quantizes them itself."""
        contents = self.model.contents
        self._memory[:] = 0xA5  # nothing may depend on what was there
        for index, value in zip(contents.inputs[: contents.input_count], inputs, strict=True):
            array = np.ascontiguousarray(value)
            real = array.dtype == np.float32 and contents.values[index].type != 0
            put = self.library.model_put_real if real else self.library.model_put
            assert real or array.dtype == DTYPES[contents.values[index].type]
            put(self.model, index, ctypes.c_void_p(array.ctypes.data), ctypes.c_void_p(self.arena))
        self.library.model_run(self.model, self.sets[instructions], self.arena)
        return [self._get(index) for index in contents.outputs[: contents.output_count]]

    def _get(self, index: int) -> Any:
        value = self.model.contents.values[index]
        real = value.scale > 0 and self.real_output
        dtype = np.float32 if real else DTYPES[value.type]
        result = np.empty(tuple(value.shape[: value.rank]), dtype)
        get = self.library.model_get_real if real else self.library.model_get
        place = ctypes.c_void_p(result.ctypes.data)
        get(self.model, index, ctypes.c_void_p(self.arena), place)
        return result
