"""The layers that are judged: an ONNX graph cut where a layer's value is complete.

The same layers are then found again in the program and in a TFLite file, by kind and in order
(`align`), so that the value of a layer means the same thing in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from deploy.runner.contract import INTEGERS, Quantization

from ..errors import BadInput, first_line
from ..export.onnx import WEIGHTED
from ..reference import compute

# An operator's kind. One that is in neither table is a layer by its own name.
KINDS = {
    "Conv": "conv",
    "Gemm": "linear",
    "MatMul": "linear",
    "MaxPool": "max pool",
    "AveragePool": "average pool",
    "GlobalAveragePool": "average pool",
    "ReduceMean": "average pool",
    "Relu": "relu",
    "Clip": "clip",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "LeakyRelu": "leaky relu",
    "HardSwish": "hard swish",
    "Gelu": "gelu",
    "Elu": "elu",
    "Softmax": "softmax",
    "LogSoftmax": "log softmax",
    "BatchNormalization": "batch norm",
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Concat": "concat",
}
# What brings values to a layer without being one; it belongs to the layer after it.
MOVING = {
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Pad"),
    *("Cast", "QuantizeLinear", "DequantizeLinear", "Constant", "Shape", "Gather", "Slice"),
}
UNPACKING = {"Cast", "DequantizeLinear"}  # what makes float32 of weights with fewer bits
# What runtimes merge into the layer before it, where it is the only one to use that layer's value.
MERGED = {"Relu", "Clip", "BatchNormalization"}
MERGING = {*("Conv", "Gemm", "MatMul", "BatchNormalization", "Add", "Sub", "Mul", "ReduceMean")} | {
    *("MaxPool", "AveragePool", "GlobalAveragePool")
}
IN_FLOAT = " in float"
SAME = {"mean": "average pool"}  # one layer under two names
IMAGE = "image"
OUTPUT = "output"  # the program's name for a last layer's value that is only moved about
# What no converter takes apart.
WHOLE = {
    *("conv", "linear", "max pool", "average pool", "relu", "clip", "sigmoid", "tanh", "softmax"),
    *("add", "sub", "mul", "div", "concat"),
}


@dataclass(frozen=True)
class Layer:
    """`nodes` compute `value` from the values of the layers `inputs` (or IMAGE).

    `shape` is without the batch. `quantization` is set where values are integers. `merged` are the
    layers that this one is made of where a runtime computes several as one; `stepped` is whether it
    quantizes float inputs by itself, see `stepped.py`.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    value: str
    nodes: tuple[onnx.NodeProto, ...]
    shape: tuple[int, ...]
    quantization: Quantization | None
    merged: tuple[Layer, ...] = ()
    stepped: bool = False


@dataclass(frozen=True)
class Network:
    """Layers in the file's order, the last one being the output. `image` names the input's value:
    in an int8 file the quantized image. `constants` has float32 ones in float64, and gathers what
    follows from constants alone.
    """

    model: onnx.ModelProto
    image: str
    image_shape: tuple[int, ...]
    image_quantization: Quantization | None
    layers: tuple[Layer, ...]
    constants: dict[str, npt.NDArray[Any]]
    opset: int

    @property
    def values(self) -> dict[str, str]:
        """Layer name to the name of its value in the file."""
        return {IMAGE: self.image} | {layer.name: layer.value for layer in self.layers}

    @property
    def quantizations(self) -> dict[str, Quantization | None]:
        """How a layer's value, or the image, stands for a real one; None where it is float."""
        known = {layer.name: layer.quantization for layer in self.layers}
        return {IMAGE: self.image_quantization} | known

    @property
    def quantized(self) -> bool:
        """Whether there are integers. Floats among them are of layers that stayed in float."""
        return any(quantization is not None for quantization in self.quantizations.values())

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the image's value."""
        known = self.image_quantization
        return np.dtype(np.float32 if known is None else known.dtype)


def float_part(layer: Layer, network: Network) -> Layer | None:
    """What a layer that stayed in float computes before int8 is made of it; None of other layers.

    There its weights, and all that it does, show as float32 has them.
    """
    *nodes, last = layer.nodes
    stored = {constant.name for constant in network.model.graph.initializer}
    weights = any(node.op_type in WEIGHTED and node.input[1] in stored for node in nodes)
    floats = any(network.quantizations[name] is None for name in layer.inputs)
    if layer.quantization is None or not (weights or floats):
        return None
    name, value = f"{layer.name}{IN_FLOAT}", str(last.input[0])
    return replace(layer, name=name, value=value, nodes=tuple(nodes), quantization=None)


def read_network(model: onnx.ModelProto, names: Sequence[tuple[str, str]] = ()) -> Network:
    """Cut a graph into layers. Raises BadInput for what cannot be cut.

    `names` are (name, kind) of the layers that are expected; without them the cuts follow from
    the operators alone, and a layer is named as its value is.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise BadInput(f"the shapes of the model do not fit ({first_line(error)})") from error
    cutter = Cutter(inferred)
    found = cutter.ends()
    if not found:
        raise BadInput("the model has no layer to compare")
    if not names:
        names = [(value, " + ".join(KINDS.get(op, op) for op in ops)) for value, ops in found]
    names = [name for name in names if name[1] != OUTPUT]
    heads = [kind.split(" + ")[0] for _, kind in names]
    groups = align(heads, [KINDS.get(ops[0], ops[0]) for _, ops in found])
    ends = [found[group[-1]][0] for group in groups]
    return cutter.network([(*name, end) for name, end in zip(names, ends, strict=True)])


def align(heads: Sequence[str], kinds: Sequence[str]) -> list[range]:
    """Which operators make up each layer, both in order. `heads` is the kind each layer begins
    with.

    A layer goes on until the next one's kind comes. Raises BadInput where layers are left over.
    """
    heads, kinds = ([SAME.get(kind, kind) for kind in side] for side in (heads, kinds))
    groups, start = [], 0
    for number, head in enumerate(heads):
        # A kind that the file does not know was made of other operators: it begins right here.
        known = head in WHOLE or head in kinds[start:]
        if start >= len(kinds) or (known and kinds[start] != head):
            raise BadInput(
                f"layer {number + 1} of {len(heads)} ({head}) is not mapped: the file has "
                f"{', '.join(kinds)}"
            )
        following, end = heads[number + 1 : number + 2], start + 1
        if not following or following[0] in kinds[end:]:
            while end < len(kinds) and kinds[end : end + 1] != following:
                end += 1
        groups.append(range(start, end))
        start = end
    return groups


def _moves(node: onnx.NodeProto) -> bool:
    """A sum of one is what it is given: it keeps float weights float, see `export.onnx`."""
    return node.op_type in MOVING or (node.op_type == "Sum" and len(node.input) == 1)


class Cutter:
    """A graph and who makes and uses each of its values. Raises BadInput for several inputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        self.fixed = set(self.constants)  # values that depend on constants only
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
            if all(name in self.fixed for name in node.input if name):
                self.fixed.update(node.output)
        given = [value for value in graph.input if value.name not in self.constants]
        if len(given) != 1 or len(graph.output) != 1:
            raise BadInput(
                f"the model has {len(given)} inputs and {len(graph.output)} outputs",
                "only models with one of each can be compared layer by layer",
            )
        self.image = given[0].name
        first = self.users.get(self.image, [])
        if len(first) == 1 and first[0].op_type == "QuantizeLinear":
            self.image = first[0].output[0]
        self.output = graph.output[0].name
        typed = (*graph.value_info, *graph.input, *graph.output)
        self.shapes = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in typed
        }

    def ends(self) -> list[tuple[str, list[str]]]:
        """Every layer's value and its operators, in order."""
        found: list[tuple[str, list[str]]] = []
        place: dict[str, int] = {}  # value to the layer it is the present end of
        for node in self.model.graph.node:
            if _moves(node) or node.output[0] in self.fixed:
                continue
            before = next(name for name in node.input if name not in self.fixed)
            number = place.get(before)
            alone = len(self.users[before]) == 1
            bias = node.op_type == "Add" and any(name in self.fixed for name in node.input)
            if number is not None and alone:
                last = found[number][1][-1]
                if (node.op_type in MERGED and last in MERGING) or (bias and last == "MatMul"):
                    found[number] = (node.output[0], [*found[number][1], node.op_type])
                    place[node.output[0]] = number
                    continue
            place[node.output[0]] = len(found)
            found.append((node.output[0], [node.op_type]))
        return [(self._integers(value), operators) for value, operators in found]

    def _integers(self, value: str) -> str:
        """The int8 value that a float value is quantized to, else the value itself."""
        users = self.users.get(value, [])
        if len(users) == 1 and users[0].op_type == "QuantizeLinear":
            return str(users[0].output[0])
        return value

    def network(self, cuts: list[tuple[str, str, str]]) -> Network:
        """The layers that end at `cuts`: (name, kind, value) each."""
        names = {value: name for name, _, value in cuts} | {self.image: IMAGE}
        layers = []
        for name, kind, value in cuts:
            nodes, inputs = self.between(value, set(names) - {value})
            layers.append(
                Layer(
                    name,
                    kind,
                    tuple(names[stop] for stop in inputs),
                    value,
                    nodes,
                    self.shapes[value][1:],
                    self.quantization(value),
                )
            )
        opset = next(e.version for e in self.model.opset_import if e.domain in ("", "ai.onnx"))
        constants = dict(self.constants)
        if not any(layer.quantization for layer in layers):
            constants |= self._small_weights(opset)
        return Network(
            self.model,
            self.image,
            self.shapes[self.image][1:],
            self.quantization(self.image),
            tuple(layers),
            {
                name: value.astype(np.float64) if value.dtype == np.float32 else value
                for name, value in constants.items()
            },
            opset,
        )

    def _small_weights(self, opset: int) -> dict[str, npt.NDArray[Any]]:
        """What a float file computes from constants: float32 weights, from float16 or int8. There
        is one right result, rounded to float32, as ONNX has it.
        """
        found = dict(self.constants)
        for node in self.model.graph.node:
            if node.op_type in UNPACKING and all(name in found for name in node.input):
                found[node.output[0]] = compute(node, [found[n] for n in node.input], opset)[0]
        return found

    def between(
        self, value: str, stops: set[str]
    ) -> tuple[tuple[onnx.NodeProto, ...], tuple[str, ...]]:
        """The nodes that `value` is computed by, back to other layers' values, and which those
        are.
        """
        wanted, seen, reached = [value], set(), []
        while wanted:
            name = wanted.pop()
            if name in stops:
                if name not in reached:
                    reached.append(name)
            elif name and name not in seen and name not in self.constants:
                if name not in self.producer:
                    raise BadInput(f"the value {name} comes from nowhere")
                seen.add(name)
                wanted.extend(reversed(self.producer[name].input))
        nodes = tuple(n for n in self.model.graph.node if seen & set(n.output))
        return nodes, tuple(reached)

    def quantization(self, value: str) -> Quantization | None:
        """How an integer stands for a real value; None for a float. Raises BadInput for those that
        are neither int8 nor int16.
        """
        node = self.producer.get(value)
        if node is None or node.op_type != "QuantizeLinear":
            return None
        scale = self.constants[node.input[1]]
        given = self.constants[node.input[2]] if len(node.input) > 2 else np.uint8(0)
        zero_point = np.asarray(given)
        dtype = zero_point.dtype.name
        if scale.size != 1 or dtype not in INTEGERS.values():
            raise BadInput(f"{value}: only int8 and int16 with one scale a tensor can be compared")
        return Quantization(float(scale.reshape(())), int(zero_point.reshape(())), dtype)
