"""TFLite, through litert_torch, with the contract behind the flatbuffer as a zip archive."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path

import torch
from torch import fx

from deploy.runner.backends.tflite import CONTRACT_MEMBER
from deploy.runner.contract import Contract
from deploy.runner.quiet import quiet

from ..errors import BadInput, first_line
from ..program import constant, decomposed, fold

EPOCH = (1980, 1, 1, 0, 0, 0)  # the same file every time


def export(
    module: fx.GraphModule, contract: Contract, path: Path, taps: tuple[str, ...] = ()
) -> None:
    """Write `module` as TFLite: one image, 1 x C x H x W; int8 in and out where it is int8.

    `taps` names the further outputs of a program with taps; they come in the program's order.
    Raises BadInput when the converter refuses the program.
    """
    module = copy.deepcopy(module)
    if contract.precision == "int8":
        # The converter quantizes biases by itself and refuses quantized ones. Given the values that
        # the int32 biases stand for, it finds the same integers again.
        fold(module, [node for node in module.graph.nodes if _is_dequantized_bias(node)])
        _settle_weights(module)
    try:
        with quiet():
            import litert_torch
            from litert_torch.quantize.quant_config import QuantConfig

            from ..quantize import Int8Quantizer

            config = QuantConfig(pt2e_quantizer=Int8Quantizer())
            converted = litert_torch.convert(
                module,
                (torch.zeros(1, *contract.input_shape),),
                quant_config=config if contract.precision == "int8" else None,
            )
            converted.export(str(path))
    except Exception as error:  # the converter reports what it cannot do in many exception types
        raise BadInput(
            f"{path.name}: the TFLite converter refuses this network ({first_line(error)})",
            "leave out --format tflite, or change the layer that it names",
        ) from error
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(CONTRACT_MEMBER, EPOCH), contract.to_json())


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


def _is_dequantized_bias(node: fx.Node) -> bool:
    return node.target is decomposed.dequantize_per_channel.default and node.args[-1] is torch.int32
