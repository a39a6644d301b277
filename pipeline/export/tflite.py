"""TFLite, through litert_torch, with the contract behind the flatbuffer as a zip archive."""

from __future__ import annotations

import copy
import operator
import zipfile
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import fx
from torch.fx.passes.shape_prop import ShapeProp

from deploy.runner.backends.tflite import CONTRACT_MEMBER
from deploy.runner.contract import Contract
from deploy.runner.quiet import quiet

from ..errors import BadInput, first_line
from ..precisions import INTEGERS, SMALL_WEIGHTS
from ..program import WEIGHTED, aten, constant, decomposed, fold, unpacked
from .tflite_biases import with_int64_biases
from .tflite_weights import repacked, written

POOLINGS = {aten.max_pool2d.default, aten.max_pool2d_with_indices.default, aten.avg_pool2d.default}
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same file every time


def export(
    module: fx.GraphModule, contract: Contract, path: Path, taps: tuple[str, ...] = ()
) -> None:
    """Write `module` as TFLite: one image, 1 x C x H x W; integers in and out where it has some.

    `taps` names the further outputs of a program with taps; they come in the program's order.
    Raises BadInput when the converter refuses the program, and where what it made of it is known to
    be wrong: a file that LiteRT cannot load, or with other shapes than the program's.
    """
    _refuse_indices(module, path)
    quantized = contract.precision in INTEGERS
    module = copy.deepcopy(module) if quantized else unpacked(module)
    biases = _biases(module)
    kept: list[str] = []
    if quantized:
        from ..quantization.mixed import in_float

        kept = list(in_float(module))
        # The converter quantizes biases by itself and refuses quantized ones. Given the values that
        # the int32 biases stand for, it finds the same integers again, or nearly.
        fold(module, [node for node in module.graph.nodes if _is_dequantized_bias(node)])
        _settle_weights(module)
    try:
        with quiet():
            import litert_torch
            from litert_torch.quantize.quant_config import QuantConfig

            from ..quantization import Int8Quantizer

            config = QuantConfig(pt2e_quantizer=Int8Quantizer())
            converted = litert_torch.convert(
                _held(module, kept) if kept else module,
                (torch.zeros(1, *contract.input_shape),),
                quant_config=config if quantized else None,
            )
            converted.export(str(path))
    except Exception as error:  # the converter reports what it cannot do in many exception types
        raise BadInput(
            f"{path.name}: the TFLite converter refuses this network ({first_line(error)})",
            "leave out --format tflite, or change the layer that it names",
        ) from error
    try:
        if kept:
            path.write_bytes(_without_outputs(path.read_bytes(), len(kept)))
        if contract.precision in SMALL_WEIGHTS:
            path.write_bytes(repacked(path.read_bytes(), contract.precision))
        if contract.precision == "int16x8":
            path.write_bytes(with_int64_biases(path.read_bytes(), biases))
        _check_shapes(module, contract, path)
    except BadInput:
        path.unlink()
        raise
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(CONTRACT_MEMBER, EPOCH), contract.to_json())


def _held(module: fx.GraphModule, kept: list[str]) -> fx.GraphModule:
    """A copy that also returns the negative of what each of the layers `kept` in float computes.

    The converter makes int8 of what stands between int8 values, float weights too, unless a value
    has another use than its quantization, which must not be a return.
    """
    module = copy.deepcopy(module)
    output = next(node for node in module.graph.nodes if node.op == "output")
    values = [node for node in module.graph.nodes if node.name in kept]
    with module.graph.inserting_before(output):
        held = [module.graph.call_function(aten.neg.default, (value,)) for value in values]
    output.args = ((*_returned(output), *held),)
    module.recompile()
    return module


def _returned(output: fx.Node) -> tuple[fx.Node, ...]:
    values: Any = output.args[0]
    return tuple(values) if isinstance(values, tuple | list) else (values,)


def _without_outputs(content: bytes, count: int) -> bytes:
    """The file without its last outputs and what only they need."""
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model_from_bytearray(bytearray(content))
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    names = [f"output_{number}".encode() for number in range(len(signature.outputs) - count)]
    signature.outputs = [output for output in signature.outputs if output.name in names]
    kept = {output.tensorIndex for output in signature.outputs}
    graph.outputs = [tensor for tensor in graph.outputs if tensor in kept]
    needed: list[Any] = []
    for each in reversed(graph.operators):
        if kept & set(each.outputs):
            kept |= set(each.inputs)
            needed.insert(0, each)
    graph.operators = needed
    return written(model)


def _settle_weights(module: fx.GraphModule) -> None:
    """Put each weight on the value its integer stands for, before the quantize node.

    The converter divides by the scale where PyTorch multiplies by its reciprocal; at a value half
    way between two integers, as one weight in some 1e5 is, they would round to different ones.
    """
    for node in list(module.graph.nodes):
        source = node.args[0] if node.args else None
        dequantize = node.target is decomposed.dequantize_per_channel.default
        if dequantize and isinstance(source, fx.Node) and source.op == "call_function":
            name = f"settled_{node.name}"
            module.register_buffer(name, constant(module, node))
            with module.graph.inserting_before(source):
                settled = module.graph.get_attr(name)
            settled.meta["val"] = getattr(module, name)
            source.update_arg(0, settled)
    module.recompile()


def _biases(module: fx.GraphModule) -> list[npt.NDArray[Any] | None]:
    """The integers of each convolution and linear layer's bias, in the program's order."""
    sources = [node.args[2:3] for node in module.graph.nodes if node.target in WEIGHTED]
    return [
        constant(module, source[0].args[0]).numpy()
        if source and isinstance(source[0], fx.Node) and _is_dequantized_bias(source[0])
        else None
        for source in sources
    ]


def _is_dequantized_bias(node: fx.Node) -> bool:
    return node.target is decomposed.dequantize_per_channel.default and node.args[-1] is torch.int32


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("litert-torch", "litert-converter"))


def _refuse_indices(module: fx.GraphModule, path: Path) -> None:
    """litert-torch 0.10.0 gives zeros for the indices of a max pooling."""
    for node in module.graph.nodes:
        indices = node.target is operator.getitem and node.args[1] == 1
        if indices and node.args[0].target is aten.max_pool2d_with_indices.default:
            raise BadInput(
                f"{path.name}: {node.args[0].name} returns indices, and TFLite has no operator "
                f"that does ({_versions()} writes zeros)",
                "leave out return_indices",
            )


def _check_shapes(module: fx.GraphModule, contract: Contract, path: Path) -> None:
    """That the file loads, and that outputs and poolings are of the sizes that the program has.

    litert-torch 0.10.0 takes a pooling for SAME where one axis is padded as SAME would pad it and
    the other has no padding: that axis then has too many windows.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # The kernels find shapes for themselves; a delegate would leave those that the file states.
    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with quiet():
            content = path.read_bytes()
            interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
            interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"{path.name}: LiteRT {version('ai-edge-litert')} cannot load what the converter "
            f"wrote ({first_line(error)}; {_versions()})",
            "leave out --format tflite, or change the layer that it names; ceil_mode of an average "
            "pooling that leaves out the end of the image does this",
        ) from error
    ShapeProp(module).propagate(torch.zeros(1, *contract.input_shape))
    outputs = _returned(next(node for node in module.graph.nodes if node.op == "output"))
    details = interpreter.get_signature_runner().get_output_details()
    found = [tuple(details[f"output_{n}"]["shape"].tolist()) for n in range(len(details))]
    # Layouts differ and names are lost, but one tensor of the file holds as many values.
    sizes = {prod(tensor["shape"].tolist()) for tensor in interpreter.get_tensor_details()}
    poolings = [node for node in module.graph.nodes if node.target in POOLINGS]
    wrong = [n for n, shape in zip(outputs, found, strict=True) if _shape(n) != shape]
    wrong += [node for node in poolings if prod(_shape(node)) not in sizes]
    if wrong:
        raise BadInput(
            f"{path.name}: the converter gives {wrong[0].name} another shape than "
            f"{_shape(wrong[0])} ({_versions()} takes some poolings for SAME that are not)",
            "where a pooling pads along one axis only, or ceil_mode adds a window along one, "
            "pad the image before it",
        )


def _shape(node: fx.Node) -> tuple[int, ...]:
    """What `ShapeProp` found; a max pooling with indices has two values, of one shape."""
    known = node.meta["tensor_meta"]
    return tuple((known[0] if type(known) is tuple else known).shape)
