"""fp16 and dynamic: float programs whose weights are stored in fewer bits, and nothing else.

The weights W of convolutions and linear layers are

- fp16: the nearest float16;
- dynamic: int8, symmetric: q = round(W / s), s = max |W| / 127. A convolution's have one scale an
  output channel, as in the int8 program (`rules.WEIGHT`), a linear layer's one for all, since
  tflite-runtime 2.14 takes the first for all.

Biases stay float32, and so does all arithmetic of the program, on the float32 numbers that the
weights stand for. A normalisation is merged into the convolution before it, as converters do: its
weights would be others afterwards.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import Quantizer

from .. import __version__
from ..errors import BadInput
from ..program import WEIGHTED, aten, attribute, capture, decomposed, load, plain, saved
from ..run_folder import RunFolder
from .observers import SMALLEST_SCALE
from .rules import WEIGHT


class _NoActivation(Quantizer):  # type: ignore[misc]  # torchao is untyped
    """Leaves every value as it is: preparing then merges normalisations, and does nothing else."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """See torchao's Quantizer."""
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """See torchao's Quantizer."""


def with_small_weights(program: fx.GraphModule, precision: str) -> fx.GraphModule:
    """The fp16 or dynamic program of a float program. Raises BadInput for weights that float16
    cannot hold, and where there are none.
    """
    module = plain(prepare_pt2e(copy.deepcopy(program), _NoActivation()))
    weighted = [node for node in module.graph.nodes if node.target in WEIGHTED]
    stored: dict[fx.Node, fx.Node] = {}  # a weight may be used twice
    for node in weighted:
        weight = node.args[1]
        if weight.op != "get_attr":
            raise BadInput(f"{precision}: {node.name} computes its weight", "give fp32 or int8")
        if weight not in stored:
            value = attribute(module, weight).detach()
            linear = node.target is aten.linear.default
            stored[weight] = _stored(module, weight, value, precision, linear)
        node.update_arg(1, stored[weight])
    if not weighted:
        raise BadInput(f"{precision}: no convolution or linear layer has weights", "give fp32")
    module.graph.eliminate_dead_code()
    for weight in stored:  # saving the program would keep them
        owner, _, name = str(weight.target).rpartition(".")
        delattr(module.get_submodule(owner), name)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _stored(
    module: fx.GraphModule, node: fx.Node, value: Tensor, precision: str, linear: bool
) -> fx.Node:
    """The node that makes float32 of a small weight, which is put where `node` is."""

    def buffer(kind: str, content: Tensor) -> fx.Node:
        name = f"{node.name}_{kind}"
        module.register_buffer(name, content)
        made = module.graph.get_attr(name)
        made.meta["val"] = content
        return made

    with module.graph.inserting_before(node):
        if precision == "fp16":
            half = value.half()
            if not half.isfinite().all():
                raise BadInput(
                    f"fp16: {node.target} has a weight of {value.abs().max():g}, and float16 ends "
                    "at 65504",
                    "give --precision fp32",
                )
            arguments = (buffer("half", half), torch.float32)
            made = module.graph.call_function(aten.to.dtype, arguments)
        else:
            largest = value.abs().amax(tuple(range(1, value.dim())))
            if linear:
                largest = largest.max().expand_as(largest)
            scale = (largest / WEIGHT.quant_max).clamp(min=SMALLEST_SCALE)
            zero_point = torch.zeros(len(scale), dtype=torch.int64)
            rule = (WEIGHT.ch_axis, WEIGHT.quant_min, WEIGHT.quant_max, WEIGHT.dtype)
            integers = decomposed.quantize_per_channel.default(value, scale, zero_point, *rule)
            made = module.graph.call_function(
                decomposed.dequantize_per_channel.default,
                (
                    buffer("int8", integers),
                    buffer("scale", scale),
                    buffer("zero_point", zero_point),
                    *rule,
                ),
            )
    made.meta["val"] = value
    return made


def store_small(run: RunFolder, precision: str) -> bool:
    """Make a run's fp16 or dynamic program. Returns whether it was made now (else it was current).

    Raises Missing or BadInput.
    """
    source, target = run.artefact("fp32", "pt2"), run.artefact(precision, "pt2")
    path, config = run.need(source), {"pipeline": __version__}
    if not run.wants(target, config=config):
        return False
    module = with_small_weights(load(path), precision)
    with run.workspace() as work:
        (work / target).write_bytes(saved(capture(module, run.input_shape)))
        run.commit({target: work / target}, config, [source])
    return True
