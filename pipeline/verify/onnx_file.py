"""An ONNX file with its layers laid open: all of them as outputs, or one cut out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from ..errors import BadInput, first_line
from .layers import IMAGE, Cutter, Layer, read_network

Array = npt.NDArray[Any]


def parse(content: bytes, name: str) -> onnx.ModelProto:
    """A checked model. Raises BadInput."""
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise BadInput(f"{name}: not a valid ONNX model ({first_line(error)})") from error
    return model


class OnnxFile:
    """Values have the layout of the program, N x C x H x W."""

    suffix = ".onnx"

    def __init__(self, content: bytes, name: str, names: Sequence[tuple[str, str]] = ()) -> None:
        self._model = parse(content, name)
        self.network = read_network(self._model, names)

    def changed(self, content: bytes) -> OnnxFile:
        """Another file in which the same values have the same names: a mutant."""
        other = copy.copy(self)
        other._model = parse(content, "the changed file")
        return other

    def observed(self) -> bytes:
        """The file with every layer's value as a further output."""
        model = copy.deepcopy(self._model)
        present = {value.name for value in model.graph.output}
        for layer in self.network.layers:
            if layer.value not in present:
                model.graph.output.append(_info(layer.value, layer.shape, self.network.int8))
        return bytes(model.SerializeToString())

    def split(self, outputs: list[Array]) -> tuple[Array, dict[str, Array]]:
        """The outputs of the observed file: its own, and each layer's value."""
        final, *rest = outputs
        layers = [layer.name for layer in self.network.layers]
        if len(rest) < len(layers):  # the last layer's value is the output itself
            rest.append(final)
        return final, dict(zip(layers, rest, strict=True))

    def slice(self, layer: Layer) -> bytes:
        """One layer as a file of its own; its inputs are the values of `layer.inputs`."""
        values = self.network.values
        nodes, inputs = Cutter(self._model).between(
            values[layer.name], set(values.values()) - {values[layer.name]}
        )
        if {values[name] for name in layer.inputs} != set(inputs):
            raise BadInput(f"{layer.name} works on {', '.join(inputs)}, not on {layer.inputs}")
        shapes = {known.name: known.shape for known in self.network.layers}
        shapes[IMAGE] = self.network.image_shape
        used = {name for node in nodes for name in node.input}
        int8 = self.network.int8
        graph = onnx.helper.make_graph(
            nodes,
            layer.name,
            [_info(values[name], shapes[name], int8) for name in layer.inputs],
            [_info(values[layer.name], shapes[layer.name], int8)],
            [i for i in self._model.graph.initializer if i.name in used],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        return bytes(model.SerializeToString())

    def given(self, name: str, values: Array) -> Array:
        """A layer's value as the slice after it takes it."""
        del name
        return values

    def canonical(self, name: str, values: Array) -> Array:
        """The slice's output as the program's value."""
        del name
        return values


def _info(name: str, shape: tuple[int, ...], int8: bool) -> onnx.ValueInfoProto:
    kind = onnx.TensorProto.INT8 if int8 else onnx.TensorProto.FLOAT
    return onnx.helper.make_tensor_value_info(name, kind, ["batch", *shape])
