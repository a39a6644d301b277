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
    with its quantization, and other kernels run than those of the file as it ships. So in an int8
    file values come and go as real numbers, which are exact, and are taken from copies of the
    file that end right after one layer each.
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
        """The file with every layer's value as a further output; for int8 one more file a layer."""
        model = copy.deepcopy(self._model)
        present = {value.name for value in model.graph.output}
        for layer in self.network.layers:
            if layer.value not in present:
                model.graph.output.append(_info(layer.value, layer.shape, layer.quantization))
        files = [bytes(model.SerializeToString())]
        if self.network.int8:
            image = next(v for v in self._model.graph.input if v.name in self._free())
            for layer in self.network.layers:
                nodes, _ = Cutter(self._model).between(layer.value, {image.name})
                files.append(self._file(nodes, [image], layer))
        return files

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
        (final, *rest), *more = outputs
        names = [layer.name for layer in self.network.layers]
        if more:
            values = [self.canonical(n, part[0]) for n, part in zip(names, more, strict=True)]
        else:  # the last layer's value may be the output itself
            values = rest if len(rest) == len(names) else [*rest, final]
        return final, dict(zip(names, values, strict=True))

    def slice(self, layer: Layer) -> bytes:
        """One layer as a file of its own; its inputs are the values of `layer.inputs`."""
        values = self.network.values
        nodes, inputs = Cutter(self._model).between(
            values[layer.name], set(values.values()) - {values[layer.name]}
        )
        if {values[name] for name in layer.inputs} != set(inputs):
            raise BadInput(f"{layer.name} works on {', '.join(inputs)}, not on {layer.inputs}")
        infos = [_info(values[name] + self._real, self._shape(name)) for name in layer.inputs]
        given: list[onnx.NodeProto] = []
        if self.network.int8:
            given = [self._link("QuantizeLinear", name) for name in layer.inputs]
        return self._file((*given, *nodes), infos, layer, layer.inputs)

    @property
    def _real(self) -> str:
        return REAL if self.network.int8 else ""

    def _file(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        layer: Layer,
        given: Sequence[str] = (),
    ) -> bytes:
        """A model of `nodes` that ends at a layer; layers `given` come in as real numbers."""
        used = {name for node in nodes for name in node.input}
        constants = [i for i in self._model.graph.initializer if i.name in used]
        if self.network.int8:
            nodes = [*nodes, self._link("DequantizeLinear", layer.name)]
            for name in dict.fromkeys((*given, layer.name)):
                constants += self._parameters(name)
        graph = onnx.helper.make_graph(
            nodes,
            layer.name,
            inputs,
            [_info(self.network.values[layer.name] + self._real, layer.shape)],
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
        value, quantization = self.network.values[name], self._quantization(name)
        scale = np.array(quantization.scale, np.float32)
        zero = np.array(quantization.zero_point, quantization.dtype)
        return [
            onnx.numpy_helper.from_array(scale, value + SCALE),
            onnx.numpy_helper.from_array(zero, value + ZERO),
        ]

    def _quantization(self, name: str) -> Quantization:
        known = {layer.name: layer.quantization for layer in self.network.layers}
        found = known.get(name, self.network.image_quantization)
        assert found is not None
        return found

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = {layer.name: layer.shape for layer in self.network.layers}
        return shapes.get(name, self.network.image_shape)

    def given(self, name: str, values: Array) -> Array:
        """A layer's value as the slice after it takes it."""
        if not self.network.int8:
            return values
        return real(values, self._quantization(name)).astype(np.float32)

    def canonical(self, name: str, values: Array) -> Array:
        """A slice's output as the program's value."""
        if not self.network.int8:
            return values
        return as_integers(values, self._quantization(name))

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
