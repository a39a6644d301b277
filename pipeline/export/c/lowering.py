"""The walk from ONNX nodes to layers: what is known of each value, and what needs no code.

Values between a DequantizeLinear and a QuantizeLinear are real numbers that nobody stores: a node
whose inputs are dequantized and whose result is quantized again, at most clamped in between, is
one integer layer. Where that does not fit, the node is computed in float32 as the file says it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from ...errors import BadInput, first_line
from ...reference import schema_of
from .reading import Source
from .values import Array, Layer, Program, Quantization, Value, plain, stored_shape

KEPT = "keep_"  # begins the name of the Sum before a layer in float beside int8 ones: export.onnx


@dataclass(frozen=True)
class Real:
    """A stored integer value, seen as the real numbers that it stands for."""

    value: Value


@dataclass(frozen=True)
class Tail:
    """What follows a node, and only it, until its result is quantized: clamps, then that node."""

    between: tuple[onnx.NodeProto, ...]
    quantize: onnx.NodeProto


Known = Value | Real | Array
AXES = 6  # RUNNER_AXES of deploy/c


class Lowering:
    """Walks a source once. `known` has every value that was met, `layers` what must be computed;
    `done` are outputs of nodes that a layer before them has taken in.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.known: dict[str, Known] = dict(source.constants)
        self.layers: list[Layer] = []
        self.done: set[str] = set()
        self._names: dict[str, str] = {}  # of real values that turned out to be integers
        self._floats: dict[str, Value] = {}  # real values that were needed as float32

    def program(self, operators: Mapping[str, Rule]) -> Program:
        """All layers. Raises BadInput for an operator, or a form of one, that is not known."""
        source = self.source
        for node in source.nodes:  # all of them first: a layer may take in others after it
            self._check(node, operators)
        inputs = [self._input(name) for name in source.inputs]
        for node in source.nodes:
            if node.output[0] not in self.done:
                self._node(node, operators)
        outputs = [self._output(name, inputs) for name in source.outputs]
        layers = [self._renamed(layer) for layer in self.layers]
        return Program(
            tuple(inputs), tuple(self._named(v) for v in outputs), tuple(layers), source.opset
        )

    def _input(self, name: str) -> Value:
        """A graph's input; where it is only quantized, that is done where it is put in."""
        source = self.source
        users = source.users.get(name, [])
        if len(users) == 1 and source.uses[name] == 1 and users[0].op_type == "QuantizeLinear":
            try:
                value = self.quantized(users[0])
            except ValueError as error:
                raise BadInput(f"{self._label(users[0])}: {error}") from error
            self.done.add(value.name)
        else:
            value = Value(name, source.shapes[name], source.dtypes[name], self._reading(name))
        if value.dtype not in (np.float32, np.int8, np.uint8):
            raise BadInput(
                f"{source.name}: input {name!r} is {value.dtype}",
                "float32, int8 and uint8 are known",
            )
        if not value.size:
            raise BadInput(f"{source.name}: input {name!r} is empty")
        self.known[value.name] = value
        return value

    def _reading(self, name: str) -> Quantization | None:
        """What the first node that reads an integer input as reals takes it for."""
        for node in self.source.users.get(name, []):
            if node.op_type in ("DequantizeLinear", "QLinearConv") and node.input[0] == name:
                try:
                    return self.quantization(node)
                except ValueError as error:
                    raise BadInput(f"{self._label(node)}: {error}") from error
        return None

    def _output(self, name: str, inputs: list[Value]) -> Value:
        known = self.known[name]
        if isinstance(known, np.ndarray):
            raise BadInput(f"{self.source.name}: output {name!r} does not depend on the input")
        value = known.value if isinstance(known, Real) else known
        if value.flattened or value.root in {given.root for given in inputs}:
            value = self.gathered(value, f"{name} out", positions_of(value), ())
        return value

    def _label(self, node: onnx.NodeProto) -> str:
        return f"{self.source.name}: {node.op_type} ({node.output[0]})"

    def _check(self, node: onnx.NodeProto, operators: Mapping[str, Rule]) -> None:
        """Raises BadInput for an operator, or a definition of one, that is not known."""
        name, shape = self._label(node), self.source.shapes[node.output[0]]
        if node.op_type == "Sum" and node.name.startswith(KEPT):
            raise BadInput(
                f"{name}: a layer in float beside int8 ones, of which there is no C",
                "give the ONNX file of fp32, or of int8 alone",
            )
        if node.domain not in ("", "ai.onnx") or node.op_type not in operators:
            raise BadInput(
                f"{name}: this operator is not known", f"known are {', '.join(sorted(operators))}"
            )
        if len([output for output in node.output if output]) > 1:
            raise BadInput(f"{name}: only its first output is known")
        if len(shape) > AXES:
            raise BadInput(f"{name}: a result of {len(shape)} axes is not known, only up to {AXES}")
        try:
            schema_of(node, self.source.opset)
        except (onnx.checker.ValidationError, onnx.defs.SchemaError, ValueError) as error:
            raise BadInput(f"{name}: {first_line(error)}") from error

    def _node(self, node: onnx.NodeProto, operators: Mapping[str, Rule]) -> None:
        name = self._label(node)
        try:
            result = operators[node.op_type](self, node)
        except ValueError as error:
            raise BadInput(f"{name}: {error}") from error
        value = result.value if isinstance(result, Real) else result
        if isinstance(value, Value) and not value.size:
            raise BadInput(f"{name}: its result is empty")
        if result is not None:
            self.known[node.output[0]] = result

    def _named(self, value: Value) -> Value:
        root = self._names.get(value.root, value.root)
        if value.storage:
            return replace(value, storage=root)
        return replace(value, name=root)

    def _renamed(self, layer: Layer) -> Layer:
        return replace(
            layer,
            inputs=tuple(self._named(value) for value in layer.inputs),
            output=self._named(layer.output),
        )

    def rename(self, value: Value, node: onnx.NodeProto) -> Value:
        """What was made as a real value, without code, is known by the name of its integers."""
        made = {layer.output.name: layer for layer in self.layers}
        if value.root in made and made[value.root].kind in ("max pool", "gather", "concat"):
            self._names.setdefault(value.root, node.output[0])
        return value

    # What the operators ask for.

    def attribute(self, node: onnx.NodeProto, name: str, default: Any = None) -> Any:
        """A node's attribute, text as str."""
        for attribute in node.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def constant(self, node: onnx.NodeProto, index: int) -> Array | None:
        """A constant input, None where it is left out. Raises ValueError for another value."""
        if index >= len(node.input) or not node.input[index]:
            return None
        known = self.known.get(node.input[index])
        if not isinstance(known, np.ndarray):
            raise ValueError(f"its input {node.input[index]!r} must be a constant")
        return known

    def needed(self, node: onnx.NodeProto, index: int) -> Array:
        """A constant input. Raises ValueError where there is none."""
        found = self.constant(node, index)
        if found is None:
            raise ValueError(f"input {index} is left out")
        return found

    def quantization(self, node: onnx.NodeProto) -> Quantization:
        """What a QuantizeLinear makes of a whole tensor, or a DequantizeLinear or QLinearConv takes
        its input for. Raises ValueError.
        """
        if self.attribute(node, "block_size", 0):
            raise ValueError("block_size is not known")
        if self.attribute(node, "precision", 0) not in (0, onnx.TensorProto.FLOAT):
            raise ValueError("a precision other than float32 is not known")
        integers = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        zero = self.constant(node, 2)
        zero = np.zeros((), self.source.dtypes[integers]) if zero is None else zero
        return quantization_of(self.needed(node, 1), zero)

    def quantized(self, node: onnx.NodeProto) -> Value:
        """The value that a QuantizeLinear makes."""
        name, source = node.output[0], self.source
        return Value(name, source.shapes[name], source.dtypes[name], self.quantization(node))

    def taken_for(self, name: str, quantization: Quantization) -> Value:
        """The integers of that name. Raises ValueError where they were made as others."""
        known = self.known[name]
        if not isinstance(known, Value) or known.is_float:
            raise ValueError("its input must be int8 or uint8")
        if known.quantization != quantization:
            made = known.quantization or "integers without a scale"
            raise ValueError(f"it takes {name!r} for {quantization}, which was made as {made}")
        return known

    def following(self, name: str) -> onnx.NodeProto | None:
        """The node that uses a value, if it is the only one to do so."""
        users = self.source.users.get(name, [])
        return users[0] if len(users) == 1 and self.source.uses[name] == 1 else None

    def tail(self, node: onnx.NodeProto, between: tuple[str, ...]) -> Tail | None:
        """The nodes after a node until its result is quantized, if they are of these operators."""
        found: list[onnx.NodeProto] = []
        following = self.following(node.output[0])
        while following is not None:
            if following.op_type == "QuantizeLinear":
                return Tail(tuple(found), following)
            if following.op_type not in between:
                return None
            found.append(following)
            following = self.following(following.output[0])
        return None

    def take(self, *nodes: onnx.NodeProto) -> None:
        """A layer has computed these nodes, too."""
        self.done.update(node.output[0] for node in nodes)

    def real(self, name: str) -> Value | None:
        """The integers behind a real value; None for what is stored as float32 or constant."""
        known = self.known[name]
        return known.value if isinstance(known, Real) else None

    def floats(self, name: str) -> Value:
        """A value as float32 in memory, in order. Raises ValueError for integers."""
        known = self.known[name]
        if isinstance(known, np.ndarray):
            raise ValueError(f"its input {name!r} must not be a constant")
        if isinstance(known, Real):
            if name not in self._floats:
                value = self.ordered(known.value)
                made = Value(f"{name} real", value.shape, np.dtype(np.float32))
                layer = Layer("dequantize", ("DequantizeLinear",), (value,), made)
                self._floats[name] = self.add(layer)
            known = self._floats[name]
        if not known.is_float:
            raise ValueError(f"its input {name!r} is {known.dtype}, only float32 is known")
        return self.ordered(known)

    def ordered(self, value: Value) -> Value:
        """The value with its elements where those of its shape belong."""
        if value.flattened is None:
            return value
        return self.gathered(value, f"{value.name} ordered", positions_of(value), ("Reshape",))

    def gathered(
        self,
        value: Value,
        name: str,
        positions: Array,
        operators: tuple[str, ...],
        fill: float = 0.0,
    ) -> Value:
        """A new value, each of whose elements is that at `positions` of another's memory; -1 is
        `fill`.
        """
        known = [layer.output for layer in self.layers if layer.output.name == name]
        if known:
            return known[0]
        output = Value(name, positions.shape, value.dtype, value.quantization)
        return self.add(
            Layer(
                *("gather", operators, (value,), output),
                settings={"positions": positions, "fill": np.float32(fill)},
            )
        )

    def output(self, node: onnx.NodeProto) -> Value:
        """The float32 value of a node's first output. Raises ValueError for another dtype."""
        name = node.output[0]
        if self.source.dtypes[name] != np.float32:
            raise ValueError(f"{self.source.dtypes[name]} is not known, only float32")
        return Value(name, self.source.shapes[name], np.dtype(np.float32))

    def add(self, layer: Layer) -> Value:
        """One more layer; its output."""
        self.layers.append(layer)
        return layer.output


Rule = Callable[[Lowering, onnx.NodeProto], Known | None]


def quantization_of(scale: Array, zero: Array) -> Quantization:
    """Of a whole tensor. Raises ValueError for anything but float32 and a byte."""
    if scale.size != 1 or scale.dtype != np.float32 or zero.size != 1:
        raise ValueError("only one float32 scale for the whole tensor is known")
    if zero.dtype not in (np.int8, np.uint8):
        raise ValueError(f"integers of {zero.dtype} are not known, only int8 and uint8")
    if not 0 < scale.item() < np.inf:
        raise ValueError(f"a scale of {scale.item():g} is not known, only one above 0")
    return Quantization(np.float32(scale.item()), int(zero.item()))


def positions_of(value: Value) -> Array:
    """Where each element lies in the value's memory, counted in elements; of the value's shape."""
    if value.flattened is None:
        return plain(np.arange(value.size).reshape(stored_shape(value.shape)))
    channels, height, width = value.flattened
    memory = np.arange(value.size).reshape(-1, height, width, channels)
    return memory.transpose(0, 3, 1, 2).reshape(value.shape)
