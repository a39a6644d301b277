"""An ONNX file with its layers laid open: all of them as outputs, or one cut out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from deploy.runner.backends import Session
from deploy.runner.contract import Quantization
from deploy.runner.scores import real, steps

from ..errors import BadInput, first_line
from .bounds import gamma
from .layers import Cutter, Layer, read_network
from .runtimes import Opener

Array = npt.NDArray[Any]
REAL, SCALE, ZERO = " real", " scale", " zero point"  # what a value's companions are named


def parse(content: bytes, name: str) -> onnx.ModelProto:
    """A checked model. Raises BadInput."""
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise BadInput(f"{name}: not a valid ONNX model ({first_line(error)})") from error
    return model


class OnnxFile:
    """Values have the layout of the program, N x C x H x W.

    Where an int8 value is an input or output of the graph, ONNX Runtime does not merge the layer
    with its quantization, and other kernels run than those of the file as it ships. So int8 values
    come and go as real numbers, which are exact, and are taken from copies of the file that end
    right after one layer each. Floats beside them are all taken from one more copy.
    """

    suffix = ".onnx"
    differing: Mapping[str, Layer] = MappingProxyType({})  # every layer's value is there

    def __init__(self, content: bytes, name: str, names: Sequence[tuple[str, str]] = ()) -> None:
        self._model = parse(content, name)
        self.network = read_network(self._model, names)

    def changed(self, content: bytes) -> OnnxFile:
        """Another file in which the same values have the same names: a mutant."""
        other = copy.copy(self)
        other._model = parse(content, "the changed file")
        return other

    def observed(self) -> list[bytes]:
        """The file with every layer's value as a further output; where some are int8, one more with
        the floats as such, and one for each int8 layer.
        """
        layers, (floats, integers) = self.network.layers, self._sides
        files = [self._with_outputs(layers)]
        if floats and integers:
            files.append(self._with_outputs(floats))
        image = next(v for v in self._model.graph.input if v.name in self._free())
        for layer in integers:
            nodes, _ = Cutter(self._model).between(layer.value, {image.name})
            files.append(self._file(nodes, [image], layer))
        return files

    @property
    def _sides(self) -> tuple[list[Layer], list[Layer]]:
        """The layers with float values, and those with int8 values."""
        layers = self.network.layers
        floats = [layer for layer in layers if layer.quantization is None]
        return floats, [layer for layer in layers if layer.quantization is not None]

    def _with_outputs(self, layers: Sequence[Layer]) -> bytes:
        model = copy.deepcopy(self._model)
        present = {value.name for value in model.graph.output}
        for layer in layers:
            if layer.value not in present:
                model.graph.output.append(_info(layer.value, layer.shape, layer.quantization))
        return bytes(model.SerializeToString())

    def _free(self) -> set[str]:
        """The graph's inputs that are no constants."""
        constants = {i.name for i in self._model.graph.initializer}
        return {value.name for value in self._model.graph.input} - constants

    def lay_open(self, opener: Opener) -> list[Session]:
        """See `subject.LayeredFile`."""
        return [opener(part, f"observed{self.suffix}") for part in self.observed()]

    def cut_out(self, layer: Layer, opener: Opener) -> Session:
        """See `subject.LayeredFile`."""
        return opener(self.slice(layer), f"slice{self.suffix}")

    def split(self, outputs: list[list[Array]]) -> tuple[Array, dict[str, Array]]:
        """The outputs of the observed files: the file's own, and each layer's value."""
        (final, *_), (floats, integers) = outputs[0], self._sides
        values: dict[str, Array] = {}
        if floats:
            last, *rest = outputs[1] if integers else outputs[0]
            # The last layer's value may be the output itself.
            found = rest if len(rest) == len(floats) else [*rest, last]
            values |= {layer.name: v for layer, v in zip(floats, found, strict=True)}
        ends = outputs[len(outputs) - len(integers) :]
        for layer, (value,) in zip(integers, ends, strict=True):
            values[layer.name] = self.canonical(layer.name, value)
        return final, {layer.name: values[layer.name] for layer in self.network.layers}

    def slice(self, layer: Layer) -> bytes:
        """One layer as a file of its own; its inputs are the values of `layer.inputs`."""
        values = self.network.values
        nodes, inputs = Cutter(self._model).between(
            layer.value, set(values.values()) - {layer.value}
        )
        if {values[name] for name in layer.inputs} != set(inputs):
            raise BadInput(f"{layer.name} works on {', '.join(inputs)}, not on {layer.inputs}")
        infos = [_info(self._real(name), self._shape(name)) for name in layer.inputs]
        integers = [name for name in layer.inputs if self.network.quantizations[name]]
        given = [self._link("QuantizeLinear", name) for name in integers]
        return self._file((*given, *nodes), infos, layer, integers)

    def _real(self, name: str) -> str:
        """What a value is called where it comes or goes as a real number."""
        return self.network.values[name] + (REAL if self.network.quantizations[name] else "")

    def _file(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        layer: Layer,
        given: Sequence[str] = (),
    ) -> bytes:
        """A model of `nodes` that ends at a layer; integers `given` come in as real numbers."""
        used = {name for node in nodes for name in node.input}
        constants = [i for i in self._model.graph.initializer if i.name in used]
        end = layer.value
        if layer.quantization is not None:
            end = self._real(layer.name)
            nodes = [*nodes, self._link("DequantizeLinear", layer.name)]
            given = [*given, layer.name]
        for name in dict.fromkeys(given):
            constants += self._parameters(name)
        graph = onnx.helper.make_graph(
            nodes,
            layer.name,
            inputs,
            [_info(end, layer.shape)],
            constants,
        )
        model = onnx.helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        return bytes(model.SerializeToString())

    def _link(self, operator: str, name: str) -> onnx.NodeProto:
        """Between a layer's integers and the real numbers that stand for them."""
        value = self.network.values[name]
        ends = [value + REAL, value]
        source, target = ends if operator == "QuantizeLinear" else reversed(ends)
        parameters = [value + SCALE, value + ZERO]
        return onnx.helper.make_node(operator, [source, *parameters], [target])

    def _parameters(self, name: str) -> list[onnx.TensorProto]:
        value, quantization = self.network.values[name], self.network.quantizations[name]
        assert quantization is not None
        scale = np.array(quantization.scale, np.float32)
        zero = np.array(quantization.zero_point, quantization.dtype)
        return [
            onnx.numpy_helper.from_array(scale, value + SCALE),
            onnx.numpy_helper.from_array(zero, value + ZERO),
        ]

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = {layer.name: layer.shape for layer in self.network.layers}
        return shapes.get(name, self.network.image_shape)

    def given(self, name: str, values: Array) -> Array:
        """A layer's value as the slice after it takes it."""
        quantization = self.network.quantizations[name]
        return values if quantization is None else real(values, quantization).astype(np.float32)

    def canonical(self, name: str, values: Array) -> Array:
        """A slice's output as the program's value."""
        quantization = self.network.quantizations.get(name)  # None, too, for a layer's float part
        return values if quantization is None else as_integers(values, quantization)

    def image(self, values: Array) -> Array:
        """The whole file's input, as it takes it."""
        return values


def as_integers(values: Array, quantization: Quantization) -> Array:
    """Real values as the integers that they stand for; as they are where one stands for none, be it
    NaN, between two steps or out of range.

    Making them real took two roundings: that of the scale and that of the product.
    """
    if values.dtype == np.dtype(quantization.dtype):
        return values
    limits = np.iinfo(quantization.dtype)
    found = np.clip(steps(values, quantization), limits.min, limits.max).astype(limits.dtype)
    near = np.abs(values - real(found, quantization)) <= gamma(2) * np.abs(values)
    return found if near.all() else values


def _info(
    name: str, shape: tuple[int, ...], quantization: Quantization | None = None
) -> onnx.ValueInfoProto:
    dtype = np.dtype(quantization.dtype if quantization else np.float32)
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return onnx.helper.make_tensor_value_info(name, kind, ["batch", *shape])
