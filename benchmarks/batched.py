"""A TFLite file made for batches: the shapes inside one of ours are those of one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def batched(content: bytes, batch: int) -> bytes:
    """The same model for `batch` images at once: in every shape of an activation, and in what
    RESHAPE is told, the leading 1 becomes `batch`.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]

    def data(tensor: Any) -> Any:
        return model.buffers[tensor.buffer].data

    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if data(tensor) is None and tensor.shape is not None and tensor.shape[0] == 1:
                tensor.shape = np.array([batch, *tensor.shape[1:]], np.int32)
        told = set()
        for operator in graph.operators:
            if codes[operator.opcodeIndex] == schema.BuiltinOperator.RESHAPE:
                told.add(graph.tensors[operator.inputs[1]].buffer)
                operator.builtinOptions = None
        for buffer in told:
            shape = np.array(model.buffers[buffer].data, np.uint8).view(np.int32).copy()
            shape[0] = batch
            model.buffers[buffer].data = shape.view(np.uint8)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def write_batched(path: Path, folder: Path, batches: tuple[int, ...]) -> Path:
    """The file in `folder`, beside it one for each batch, as `competitors.file_for` finds it."""
    place = folder / path.name
    place.write_bytes(path.read_bytes())
    for batch in batches:
        place.with_suffix(f".{batch}.tflite").write_bytes(batched(path.read_bytes(), batch))
    return place
