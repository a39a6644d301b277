"""A TFLite file with its layers laid open: all of them as outputs, or one cut out.

The file is edited, not converted again: operators, weights and quantization stay what they are. A
tensor may be N x H x W x C where the program's value is N x C x H x W; which one it is follows from
the operators that made it, never from comparing numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.runner.backends import Session
from deploy.runner.quiet import quiet

from ..errors import BadInput, first_line
from ..export.tflite_weights import WEIGHTED
from .layers import IMAGE, IN_FLOAT, Layer, align
from .runtimes import Opener

Array = npt.NDArray[Any]
Order = tuple[int, ...]  # for each axis of a tensor, the axis of the program's value that it is

CHANNELS_LAST: Order = (0, 2, 3, 1)
KINDS = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "conv",
    "FULLY_CONNECTED": "linear",
    "MAX_POOL_2D": "max pool",
    "AVERAGE_POOL_2D": "average pool",
    "MEAN": "average pool",
    "RELU": "relu",
    "RELU6": "clip",
    "RELU_0_TO_1": "clip",
    "RELU_N1_TO_1": "clip",
    "LOGISTIC": "sigmoid",
    "TANH": "tanh",
    "LEAKY_RELU": "leaky relu",
    "HARD_SWISH": "hard swish",
    "GELU": "gelu",
    "ELU": "elu",
    "SOFTMAX": "softmax",
    "LOG_SOFTMAX": "log softmax",
    "ADD": "add",
    "SUB": "sub",
    "MUL": "mul",
    "DIV": "div",
    "CONCATENATION": "concat",
}
FLOAT32, INT8 = 0, 9  # of schema.fbs's TensorType
SPATIAL = {"CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D"}
MOVING = {
    *("RESHAPE", "TRANSPOSE", "PAD", "PADV2", "MIRROR_PAD", "SQUEEZE", "EXPAND_DIMS"),
    *("QUANTIZE", "DEQUANTIZE", "CAST"),
}


class TfliteFile:
    """`layers` are those of the program, whose values are looked for in the file; `image_shape` is
    its C x H x W, which may be H x W x C here.
    """

    suffix = ".tflite"

    def __init__(
        self, content: bytes, name: str, layers: Sequence[Layer], image_shape: tuple[int, ...]
    ) -> None:
        self._model, self._graph = parse(content, name)
        graph = self._graph
        self._names = [_name(self._model, operator) for operator in graph.operators]
        shape = tuple(int(size) for size in graph.tensors[graph.inputs[0]].shape)[1:]
        last = tuple(image_shape[axis - 1] for axis in CHANNELS_LAST[1:])
        if shape not in (image_shape, last):
            raise BadInput(f"{name}: the input has shape {shape}, not {image_shape} or {last}")
        self._orders = self._trace((0, 1, 2, 3) if shape == image_shape else CHANNELS_LAST)
        ends = self._locate(layers)
        integers = {layer.name: self._integers(ends[layer.name]) for layer in layers}
        int8 = {layer.name for layer in layers if layer.quantization is not None}
        values = {name: integers[name] if name in int8 else end for name, end in ends.items()}
        self._tensors = {IMAGE: int(graph.inputs[0])} | values
        self._parts = {
            f"{name}{IN_FLOAT}": ends[name] for name in int8 if values[name] != ends[name]
        }
        self.differing = self._stepped(layers)
        shapes = {layer.name: layer.shape for layer in layers}
        self._shapes = shapes | {part: shapes[part.removesuffix(IN_FLOAT)] for part in self._parts}

    def changed(self, content: bytes) -> TfliteFile:
        """Another file in which the same values are the same tensors: a mutant."""
        other = copy.copy(self)
        other._model, other._graph = parse(content, "the changed file")
        return other

    def _trace(self, image: Order) -> dict[int, Order]:
        """The order of the axes of every tensor with four of them."""
        orders: dict[int, Order] = {int(self._graph.inputs[0]): image}
        for name, operator in zip(self._names, self._graph.operators, strict=True):
            source = next((int(t) for t in operator.inputs if int(t) in orders), None)
            target = int(operator.outputs[0])
            if len(self._graph.tensors[target].shape) != 4:
                continue
            if name in SPATIAL:
                orders[target] = CHANNELS_LAST
            elif source is not None and name == "TRANSPOSE":
                permutation = self._constant(int(operator.inputs[1]))
                orders[target] = tuple(orders[source][int(axis)] for axis in permutation)
            elif source is not None and name == "RESHAPE":
                orders[target] = self._reshaped(source, target, orders[source])
            elif source is not None:
                orders[target] = orders[source]
            else:
                orders[target] = (0, 1, 2, 3)
        return orders

    def _reshaped(self, source: int, target: int, order: Order) -> Order:
        """Moving axes of size 1 about, as converters do for one channel, is a transposition."""
        before, after = (list(self._graph.tensors[t].shape) for t in (source, target))
        long = [axis for axis, size in zip(order, before, strict=True) if size != 1]
        short = sorted(set(order) - set(long))
        if [size for size in before if size != 1] != [size for size in after if size != 1]:
            return (0, 1, 2, 3)  # a new shape: its values have the order in which they lie
        return tuple(long.pop(0) if size != 1 else short.pop(0) for size in after)

    def _constant(self, tensor: int) -> Array:
        data = self._model.buffers[self._graph.tensors[tensor].buffer].data
        return np.frombuffer(bytes(data), np.int32)

    def _locate(self, layers: Sequence[Layer]) -> dict[str, int]:
        computing = [
            (KINDS.get(name, name.lower()), int(operator.outputs[0]))
            for name, operator in zip(self._names, self._graph.operators, strict=True)
            if name not in MOVING
        ]
        heads = [layer.kind.split(" + ")[0] for layer in layers]
        groups = align(heads, [kind for kind, _ in computing])
        ends = [computing[group[-1]][1] for group in groups]
        return {layer.name: end for layer, end in zip(layers, ends, strict=True)}

    def _integers(self, tensor: int) -> int:
        """The int8 tensor that a float one is made, where a layer stayed in float; else itself."""
        found = tensor
        while self._graph.tensors[found].type == FLOAT32:
            users = [o for o in self._graph.operators if found in [int(t) for t in o.inputs]]
            if len(users) != 1 or _name(self._model, users[0]) not in MOVING:
                return tensor
            found = int(users[0].outputs[0])
        return found

    def _stepped(self, layers: Sequence[Layer]) -> Mapping[str, Layer]:
        """Layers with float values and int8 weights. See `subject.LayeredFile`."""
        made = {tensor: name for name, tensor in self._tensors.items()}
        found = set()
        for name, operator in zip(self._names, self._graph.operators, strict=True):
            if name in WEIGHTED:
                value, weight = (self._graph.tensors[int(t)].type for t in operator.inputs[:2])
                if (value, weight) == (FLOAT32, INT8):
                    found.add(made[int(operator.outputs[0])])
        return {layer.name: replace(layer, stepped=True) for layer in layers if layer.name in found}

    def observed(self) -> list[bytes]:
        """The file with every layer's tensor as a further output."""
        return [self._written(list(self._graph.inputs), self._observed)]

    @property
    def _observed(self) -> list[int]:
        layers = [tensor for name, tensor in self._tensors.items() if name != IMAGE]
        return list(dict.fromkeys([int(self._graph.outputs[0]), *layers]))

    def lay_open(self, opener: Opener) -> list[Session]:
        """See `subject.LayeredFile`."""
        return [opener(part, f"observed{self.suffix}") for part in self.observed()]

    def cut_out(self, layer: Layer, opener: Opener) -> Session:
        """See `subject.LayeredFile`."""
        return opener(self.slice(layer), f"slice{self.suffix}")

    def split(self, outputs: list[list[Array]]) -> tuple[Array, dict[str, Array]]:
        """The outputs of the observed file: its own, and each layer's value as the program's."""
        found = dict(zip(self._observed, outputs[0], strict=True))
        values = {
            name: self.canonical(name, found[tensor])
            for name, tensor in self._tensors.items()
            if name != IMAGE
        }
        return found[int(self._graph.outputs[0])], values

    def slice(self, layer: Layer) -> bytes:
        """One layer as a file of its own; its inputs are the tensors of `layer.inputs`."""
        places = {tensor: name for name, tensor in self._tensors.items()}
        producers = {int(o.outputs[0]): o for o in self._graph.operators}
        end = self._end(layer.name)
        wanted, seen, reached = [end], set(), set()
        while wanted:
            tensor = wanted.pop()
            if tensor in places and tensor != end:
                reached.add(places[tensor])
            elif tensor in producers and tensor not in seen:
                seen.add(tensor)
                wanted.extend(int(t) for t in producers[tensor].inputs)
        if reached != set(layer.inputs):
            raise BadInput(f"{layer.name} works on {sorted(reached)}, not on {layer.inputs}")
        return self._written([self._tensors[name] for name in layer.inputs], [end], seen)

    def _end(self, name: str) -> int:
        """The tensor of a layer, or of its float part."""
        found = (self._tensors | self._parts).get(name)
        if found is None:
            raise BadInput(f"{name}: the file has it in int8 only")
        return found

    def _written(
        self, inputs: list[int], outputs: list[int], made: set[int] | None = None
    ) -> bytes:
        """The file with other inputs and outputs, and only the operators that make `made`."""
        from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

        graph = copy.copy(self._graph)
        graph.inputs, graph.outputs = inputs, outputs
        if made is not None:
            graph.operators = [o for o in graph.operators if int(o.outputs[0]) in made]
        model = copy.copy(self._model)
        # A signature names inputs and outputs that are no longer these.
        model.subgraphs, model.signatureDefs = [graph], []
        with quiet():
            return bytes(flatbuffer.convert_object_to_bytearray(model))

    def given(self, name: str, values: Array) -> Array:
        """A layer's value, laid out as the slice after it takes it."""
        order = self._orders.get(self._tensors[name])
        if order is not None and values.ndim == len(order):
            values = values.transpose(order)
        shape = tuple(self._graph.tensors[self._tensors[name]].shape)
        return np.ascontiguousarray(values).reshape(-1, *shape[1:])

    def image(self, values: Array) -> Array:
        """The whole file's input, laid out as it takes it."""
        return self.given(IMAGE, values)

    def canonical(self, name: str, values: Array) -> Array:
        """A layer's tensor, laid out as the program's value."""
        order = self._orders.get(self._end(name))
        shape = self._shapes[name]
        if order is not None and len(shape) == 3:
            values = values.transpose(tuple(int(axis) for axis in np.argsort(order)))
        if values[0].size != int(np.prod(shape)):
            return values  # the comparison says what is wrong with the shape
        return values.reshape(-1, *shape)


def parse(content: bytes, name: str) -> tuple[Any, Any]:
    """A model and its one graph. Raises BadInput."""
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    try:
        model = flatbuffer.read_model_from_bytearray(bytearray(content))
        (graph,) = model.subgraphs
    except Exception as error:  # flatbuffers raises whatever comes of reading at random places
        raise BadInput(f"{name}: cut short, or not a TFLite model ({first_line(error)})") from error
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise BadInput(f"{name}: {len(graph.inputs)} inputs, {len(graph.outputs)} outputs")
    return model, graph


def _name(model: Any, operator: Any) -> str:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {value: name for name, value in vars(BuiltinOperator).items() if isinstance(value, int)}
    code = model.operatorCodes[operator.opcodeIndex]
    return str(names[max(code.builtinCode, code.deprecatedBuiltinCode)])
