"""ONNX, through torch.onnx: one file, weights inside, int8 weights and int32 biases as integers."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from deploy.runner.backends.onnxruntime import CONTRACT_KEY
from deploy.runner.contract import Contract
from deploy.runner.quiet import quiet

from ..errors import BadInput, first_line
from ..program import aten, decomposed, fold, unpacked
from .c.lowering import KEPT

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "image", "scores"
WEIGHTED = {"Conv", "Gemm", "MatMul"}
OF_INT16 = 21  # the first opset that quantizes to int16
# What onnxruntime moves a DequantizeLinear past (its QDQPropagation), and what it makes of these.
PASSED = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"}


def export(
    module: fx.GraphModule, contract: Contract, path: Path, taps: tuple[str, ...] = ()
) -> None:
    """Write `module` as ONNX: float32 `image` N x C x H x W in [0, 1] to float32 `scores`.

    `taps` names the further outputs of a program with taps. The batch is dynamic, and the contract
    is in the file's metadata. Checked by onnx.checker with full shape inference. Raises BadInput
    where torch.onnx refuses the network or is known to write it wrongly.
    """
    import onnx

    _refuse_divisors(module, path)
    module = unpacked(module) if contract.precision == "fp16" else copy.deepcopy(module)
    # A quantize node before a constant is a constant integer.
    to_integer = decomposed.quantize_per_channel.default
    fold(module, [node for node in module.graph.nodes if node.target is to_integer])
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (torch.zeros(2, *contract.input_shape),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT, *(f"tap_{name}" for name in taps)],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
                opset_version=OF_INT16 if contract.precision == "int16x8" else None,
            )
    except Exception as error:  # the exporter reports what it cannot do in many exception types
        raise BadInput(
            f"{path.name}: torch.onnx refuses this network ({first_line(error)})",
            "leave out --format onnx, or change the layer that it names",
        ) from error
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # stack traces: paths of the machine that exported
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    _unshare_zero_points(model.graph)
    if contract.precision == "int8":
        _keep_float_weights(model.graph)
    if contract.precision == "fp16":
        _store_halves(model.graph)
    del model.metadata_props[:], model.graph.metadata_props[:]
    model.metadata_props.add(key=CONTRACT_KEY, value=contract.to_json())
    model.producer_name, model.producer_version = "pipeline", contract.pipeline_version
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BadInput(
            f"{path.name}: torch.onnx {torch.__version__} wrote a graph that is not valid "
            f"({' '.join(str(error).split())})",
            "change the layer that it names; ceil_mode of a pooling whose last window would begin "
            "in the padding does this",
        ) from error
    path.write_bytes(model.SerializeToString(deterministic=True))


def _unshare_zero_points(graph: onnx.GraphProto) -> None:
    """Give each dequantized constant zero points of its own: onnxruntime 1.31.1 fails to load
    files in which several share them, where it makes int8 weights uint8 (x86 without VNNI).
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        name = node.input[2]
        if name in taken:
            own = graph.initializer.add()
            own.CopyFrom(constants[name])
            own.name = node.input[2] = f"{node.input[0]}_zero_point"
        taken.add(name)


def _keep_float_weights(graph: onnx.GraphProto) -> None:
    """Put a Sum of one, which is what it is given, before each layer that stayed in float after an
    int8 value.

    onnxruntime 1.31.1 makes int8 of float weights of a Conv or Gemm whose input is dequantized
    (its WeightBiasQuantization), and takes any Identity away before it does.
    """
    import onnx

    constants = {tensor.name for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    nodes = []
    for node in graph.node:
        if node.op_type in WEIGHTED and node.input[1] in constants:
            source = producers.get(node.input[0])
            while source is not None and source.op_type in PASSED:
                source = producers.get(source.input[0])
            if source is not None and source.op_type == "DequantizeLinear":
                kept = f"{node.input[0]}_of_{node.output[0]}"
                nodes.append(onnx.helper.make_node("Sum", [node.input[0]], [kept], f"{KEPT}{kept}"))
                node.input[0] = kept
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _store_halves(graph: onnx.GraphProto) -> None:
    """Store the weights, which are halves, as float16, each behind a Cast.

    torch.onnx, given that program, makes float32 of the smaller ones.
    """
    import onnx

    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = [node.input[1] for node in graph.node if node.op_type in WEIGHTED]
    casts = []
    for name in dict.fromkeys(weights):
        if name in constants:
            half = onnx.numpy_helper.to_array(constants[name]).astype(np.float16)
            constants[name].CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            to = {"to": onnx.TensorProto.FLOAT}
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], **to))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _refuse_divisors(module: fx.GraphModule, path: Path) -> None:
    """torch.onnx 2.13.0 leaves divisor_override out of the file, in silence."""
    for node in module.graph.nodes:
        if node.target is aten.avg_pool2d.default:
            divisor = dict(enumerate(node.args)).get(6, node.kwargs.get("divisor_override"))
            if divisor is not None:
                raise BadInput(
                    f"{path.name}: {node.name} has divisor_override {divisor}, which ONNX's "
                    f"AveragePool does not have and torch.onnx leaves out",
                    "leave divisor_override out and multiply the mean by a constant instead",
                )
