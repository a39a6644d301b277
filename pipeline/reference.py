"""The reference: executes an ONNX graph node by node in NumPy, slowly and by the book.

`compute` evaluates one node in the dtypes it is given, `execute` a whole model with every float in
float64, which stands for the exact number. What is not known exactly is refused by name: an
operator, an attribute, a dtype, a definition older or newer than those the operators were written
from. Nothing is approximated and nothing ignored.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep
from onnx.onnx_cpp2py_export.checker import CheckerContext

from .convolution import Array
from .errors import BadInput, first_line
from .operators import OPERATORS
from .operators.call import DTYPES, Call

# Opset 13 gave Softmax its axis, and ReduceSum, Squeeze and QuantizeLinear their present form; a
# node of an older model is computed if its definition is still the one of opset 13. 28 is the
# newest that onnx defines and whose conformance cases were run.
OLDEST, NEWEST = 13, 28
NAMES = {dtype: name for name, dtype in DTYPES.items()}
DEFAULT_DOMAIN = ("", "ai.onnx")


def compute(node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """One node's outputs, as many as it names, in the dtypes of its inputs.

    float64 in gives float64 out, wherever the standard allows `float`; integers are exact, and wrap
    around where it lets them. An input that is left out is None. An output may share memory with an
    input. Raises BadInput, by name, for what is not supported or not allowed.
    """
    label = f"{node.op_type} ({node.name or ', '.join(node.output)})"
    if node.domain not in DEFAULT_DOMAIN or node.op_type not in OPERATORS:
        domain = node.domain and f" of domain {node.domain}"
        raise BadInput(
            f"{label}: operator {node.op_type}{domain} is not supported",
            f"known are {', '.join(OPERATORS)}",
        )
    operator = OPERATORS[node.op_type]
    try:
        schema = schema_of(node, opset)
        attributes = _attributes(node, schema)
        understood = inspect.signature(operator).parameters
        for name in sorted({attribute.name for attribute in node.attribute} - set(understood)):
            raise ValueError(f"attribute {name} is not supported")
        _check_inputs(node, schema, inputs)
        known = {name: value for name, value in attributes.items() if name in understood}
        with np.errstate(all="ignore"):  # infinities and NaN are values like others, as in IEEE 754
            outputs = operator(Call(tuple(inputs), len(node.output), opset), **known)
        if len(outputs) < len(node.output):
            raise ValueError(f"{len(node.output)} outputs are not supported, only {len(outputs)}")
    except (
        onnx.checker.ValidationError,
        onnx.defs.SchemaError,
        ArithmeticError,
        IndexError,
        TypeError,
        ValueError,
    ) as error:
        raise BadInput(f"{label}: {first_line(error)}") from error
    return outputs[: len(node.output)]


def schema_of(node: onnx.NodeProto, opset: int) -> Any:
    """The definition a node is written by. Raises ValueError for another than those known."""
    if opset > NEWEST:
        raise ValueError(f"opset {opset} is not supported, only up to {NEWEST}")
    schema = onnx.defs.get_schema(node.op_type, opset)
    oldest = onnx.defs.get_schema(node.op_type, max(opset, OLDEST))
    if schema.since_version != oldest.since_version:
        raise ValueError(f"its definition at opset {opset} is not supported, only from {OLDEST} on")
    context = CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {"": opset}
    onnx.checker.check_node(node, context)
    return schema


def _attributes(node: onnx.NodeProto, schema: Any) -> dict[str, Any]:
    """The node's attributes over the standard's defaults, text as str and tensors as arrays."""
    given = {
        name: attribute.default_value
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    } | {attribute.name: attribute for attribute in node.attribute}
    values = {name: onnx.helper.get_attribute_value(value) for name, value in given.items()}
    for name, value in values.items():
        if isinstance(value, bytes):
            values[name] = value.decode()
        elif isinstance(value, onnx.TensorProto):
            values[name] = onnx.numpy_helper.to_array(value)
            _dtype_name(values[name])
    return values


def _dtype_name(value: Array) -> str:
    """ONNX's name of an array's dtype. Raises ValueError for one that is not computed with."""
    if value.dtype not in NAMES:
        raise ValueError(f"dtype {value.dtype} is not supported")
    return NAMES[value.dtype]


def _check_inputs(node: onnx.NodeProto, schema: Any, inputs: Sequence[Array | None]) -> None:
    """Number and dtypes as the standard has them; float64 may stand where `float` may.

    Inputs that share a type in the definition ("T") share a dtype: nothing is widened in silence.
    """
    if len(inputs) != len(node.input):
        raise ValueError(f"{len(inputs)} inputs were given, {len(node.input)} are named")
    shared: dict[str, np.dtype[Any]] = {}
    variables = {constraint.type_param_str for constraint in schema.type_constraints}
    for index, value in enumerate(inputs):
        if value is None:
            continue
        parameter = schema.inputs[min(index, len(schema.inputs) - 1)]
        name = _dtype_name(value)
        exact = name == "double" and "tensor(float)" in parameter.types
        if not exact and f"tensor({name})" not in parameter.types:
            raise ValueError(f"input {parameter.name} is {name}, which the standard does not allow")
        kind = parameter.type_str
        if kind in variables and shared.setdefault(kind, value.dtype) != value.dtype:
            raise ValueError(f"input {parameter.name} is {name}, others {NAMES[shared[kind]]}")


def execute(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of the model's graph by name: inputs, constants and all nodes' outputs.

    Floats are computed in float64, whatever they are declared as; integers are exact. Raises
    BadInput for a model or inputs that are not valid, and for what `compute` refuses.
    """
    opset = _checked(model)
    values = {
        tensor.name: _exact(tensor.name, _constant(tensor)) for tensor in model.graph.initializer
    }
    declared = {value.name: value for value in model.graph.input}
    if set(inputs) - set(declared) or set(declared) - set(inputs) - set(values):
        raise BadInput(f"inputs {sorted(inputs)} were given, the model has {sorted(declared)}")
    for name, value in inputs.items():
        _check_declared(declared[name], value)
        values[name] = _exact(name, value)
    for node in model.graph.node:
        given = [values[name] if name else None for name in node.input]
        for name, value in zip(node.output, compute(node, given, opset), strict=True):
            values[name] = _exact(name, value)
    values.pop("", None)  # an output that nobody named
    return values


def _checked(model: onnx.ModelProto) -> int:
    """The opset of a model. Raises BadInput for one that is not valid or not of known tensors."""
    try:
        # With types inferred: once all floats are float64, nothing else tells float16 from float.
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BadInput(f"not a valid ONNX model ({first_line(error)})") from error
    if model.graph.sparse_initializer:
        raise BadInput("sparse initializers are not supported")
    for value in (*model.graph.input, *model.graph.output):
        if value.type.WhichOneof("value") != "tensor_type":
            raise BadInput(f"{value.name}: only tensors are supported")
        dtype = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        if dtype.lower() not in DTYPES:
            raise BadInput(f"{value.name}: dtype {dtype} is not supported")
    opsets = [o.version for o in model.opset_import if o.domain in DEFAULT_DOMAIN]
    if len(opsets) != 1:
        raise BadInput(f"the model imports {len(opsets)} opsets of ONNX, expected one")
    return int(opsets[0])


def _constant(tensor: onnx.TensorProto) -> Array:
    if onnx.external_data_helper.uses_external_data(tensor):
        raise BadInput(f"{tensor.name}: its values are in another file, load them first")
    return np.asarray(onnx.numpy_helper.to_array(tensor))


def _exact(name: str, value: Array) -> Array:
    if value.dtype not in NAMES:  # NumPy calls some 8-bit floats floats, too
        raise BadInput(f"{name}: dtype {value.dtype} is not supported")
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def _check_declared(declared: onnx.ValueInfoProto, value: Array) -> None:
    """float64 may stand for any declared float."""
    tensor = declared.type.tensor_type
    expected = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if value.dtype != expected and not (value.dtype == np.float64 and expected.kind == "f"):
        raise BadInput(f"{declared.name}: dtype {value.dtype}, expected {expected}")
    if not tensor.HasField("shape"):
        return
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    fits = [size in (None, n) for size, n in zip(sizes, value.shape, strict=False)]
    if len(sizes) != value.ndim or not all(fits):
        raise BadInput(f"{declared.name}: shape {value.shape}, expected {sizes}")


class Reference(Backend):  # type: ignore[misc]  # onnx is untyped here
    """ONNX's own interface to a runtime, for its conformance tests."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> bool:
        """Whether all operators are known and the model is valid; attributes show on running."""
        try:
            _checked(model)
        except BadInput:
            return False
        known = all(n.domain in DEFAULT_DOMAIN and n.op_type in OPERATORS for n in model.graph.node)
        return cls.supports_device(device) and known

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Only the processor."""
        return device == "CPU"

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> Prepared:
        """Raises BadInput for a model that is not valid and for another device."""
        _checked(model)
        if not cls.supports_device(device):
            raise BadInput(f"device {device} is not supported, only CPU")
        return Prepared(model)

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Sequence[Array], device: str = "CPU", **_: Any
    ) -> tuple[Array, ...]:
        """Prepare and run at once."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Sequence[Array],
        device: str = "CPU",
        outputs_info: Any = None,
        **options: Any,
    ) -> tuple[Array, ...]:
        """One node in its inputs' dtypes, at `opset_version`."""
        return tuple(compute(node, inputs, int(options.get("opset_version", NEWEST))))


class Prepared(BackendRep):  # type: ignore[misc]  # onnx is untyped here
    """A model that can be run."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def run(self, inputs: Sequence[Array], **_: Any) -> tuple[Array, ...]:
        """The model's outputs in its declared dtypes, computed in float64 and rounded once.

        `inputs` are in the order of the graph's inputs. Raises BadInput as `execute` does.
        """
        graph = self.model.graph
        if len(inputs) > len(graph.input):
            raise BadInput(f"{len(inputs)} inputs were given, the model has {len(graph.input)}")
        names = [value.name for value in graph.input]
        values = execute(self.model, dict(zip(names, inputs, strict=False)))
        return tuple(_declared(output, values[output.name]) for output in graph.output)


def _declared(output: onnx.ValueInfoProto, value: Array) -> Array:
    expected = onnx.helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)
    if value.dtype != expected and value.dtype.kind != "f":
        raise BadInput(f"{output.name}: dtype {value.dtype}, declared is {expected}")
    return value.astype(expected)


prepare = Reference.prepare
run_model = Reference.run_model
run_node = Reference.run_node
supports_device = Reference.supports_device
is_compatible = Reference.is_compatible
