"""The rules of the int8 program.

They are LiteRT's int8 specification (ai.google.dev/edge/litert, "8-bit quantization
specification"), expressed as a torchao Quantizer:

- weights: symmetric, per output channel, in [-127, 127];
- activations: asymmetric, one scale and zero point a tensor, in [-128, 127];
- bias: int32 with the scale of input times weight. Quantized in the program, and not left for each
  converter to do, it is the same integer in every runtime;
- the input: scale 1/255, zero point -128, so a pixel byte minus 128 is the quantized input;
- pooling and reshaping: output parameters are the input's;
- sigmoid and softmax 1/256, -128; tanh 1/128, 0;
- a ReLU right after conv, linear or a sum is quantized with it, as one; any other shares its
  input's parameters, since a converter may fuse it into a pooling, which has one set;
- what is concatenated shares one set of parameters;
- dividing by a constant is multiplying by its reciprocal: there is no int8 division.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from ..errors import BadInput
from ..program import TRANSPARENT, WEIGHTED, aten, attribute
from .observers import SMALLEST_SCALE, activation

ANNOTATION = "quantization_annotation"
WEIGHT = QuantizationSpec(
    torch.int8,
    PerChannelMinMaxObserver.with_args(eps=SMALLEST_SCALE),
    -127,
    127,
    torch.per_channel_symmetric,
    ch_axis=0,
)

MINMAX = activation("minmax")


def _fixed(scale: float, zero_point: int) -> FixedQParamsQuantizationSpec:
    return FixedQParamsQuantizationSpec(
        torch.int8, scale, zero_point, -128, 127, torch.per_tensor_affine
    )


# Operators by the rule that quantizes them.
FUSED = {
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
}
SUMS = {aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor}
OWN_OUTPUT = {aten.mul.Tensor, aten.mean.dim}
FIXED_OUTPUT = {aten.sigmoid.default, aten.softmax.int, aten.tanh.default}
SHAPES = {aten.sym_size.int}  # numbers about tensors, not tensors
SHARED = (TRANSPARENT - SHAPES) | {
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
}
CONCATENATED = {aten.cat.default}
# Folded into the convolution before it by prepare_pt2e, so it needs no rule of its own.
FOLDED = {aten.batch_norm.default}


class Int8Quantizer(Quantizer):  # type: ignore[misc]  # torchao is untyped
    """Annotates each node of a float program by the rules above; refuses operators it has none for.

    `roots` maps a node to the node whose quantization parameters its value has: itself, or the one
    it shares them with.
    """

    # litert_torch asks its quantizer for this and nothing else.
    global_config = SimpleNamespace(is_dynamic=False)
    precision = "int8"
    constant = MINMAX  # what is added or multiplied
    input = _fixed(1 / 255, -128)
    fixed: Mapping[Any, FixedQParamsQuantizationSpec] = {
        aten.sigmoid.default: _fixed(1 / 256, -128),
        aten.softmax.int: _fixed(1 / 256, -128),
        aten.tanh.default: _fixed(1 / 128, 0),
    }

    def __init__(self, activation: Any = None, weight: Any = WEIGHT) -> None:
        self.activation = activation or self.constant
        self.weight = weight
        self.roots: dict[fx.Node, fx.Node] = {}

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """Numbers that are added or multiplied become constants, which can be quantized."""
        for node in list(model.graph.nodes):
            if node.target not in SUMS | OWN_OUTPUT | {aten.div.Tensor} or len(node.args) < 2:
                continue
            operand = node.args[1]
            if isinstance(operand, (int, float)):
                value = torch.tensor(float(operand))
            elif isinstance(operand, fx.Node) and operand.op == "get_attr":
                value = attribute(model, operand).detach()
            else:
                continue
            if node.target is aten.div.Tensor:
                node.target, value = aten.mul.Tensor, 1 / value
            if len(node.kwargs):
                raise BadInput(
                    f"{self.precision}: {node.name} has {node.kwargs}, which has no rule"
                )
            rank = node.args[0].meta["val"].dim()
            name = f"operand_of_{node.name}"
            model.register_buffer(name, value.reshape([1] * rank) if value.dim() == 0 else value)
            with model.graph.inserting_before(node):
                node.update_arg(1, model.graph.get_attr(name))
        model.recompile()
        return model

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """See torchao's Quantizer. Raises BadInput for an operator without a rule."""
        for node in model.graph.nodes:
            if node.op == "placeholder":
                self._annotate(node, {}, self.input)
            elif node.op == "call_function" and node.target not in SHAPES:
                self._annotate_call(node)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check: `annotate` has refused what it does not know."""

    def _annotate(self, node: fx.Node, inputs: dict[fx.Node, Any], output: Any) -> None:
        node.meta[ANNOTATION] = QuantizationAnnotation(inputs, output, _annotated=True)
        if output is not None:
            self.roots[node] = node

    def _shared(self, node: fx.Node) -> SharedQuantizationSpec:
        if node not in self.roots:
            raise BadInput(
                f"{self.precision}: {node.name} ({node.target}) has no quantized input to work on"
            )
        return SharedQuantizationSpec(self.roots[node])

    def _refusal(self, node: fx.Node) -> BadInput:
        known = sorted({str(op).split(".")[1].rstrip("_") for op in self.known()})
        return BadInput(
            f"{self.precision}: no quantization rule for {node.target} ({node.name})",
            f"give --precision fp32, or change the layer; known are {', '.join(known)}",
        )

    def _annotate_call(self, node: fx.Node) -> None:
        if node.target not in self.known():
            raise self._refusal(node)
        operands = [arg for arg in node.args if isinstance(arg, fx.Node) and arg in self.roots]
        if node.target in WEIGHTED:
            self._annotate_weighted(node)
        elif node.target in FUSED:
            (source,) = node.all_input_nodes
            if source.target in WEIGHTED | SUMS | FOLDED and source not in self.roots:
                self._annotate(node, {}, self.activation)
            else:
                self._annotate_shared(node, source)
        elif node.target in SUMS | OWN_OUTPUT and operands:
            alone = node.target in OWN_OUTPUT or not _feeds_one(node, FUSED)
            inputs: dict[fx.Node, Any] = {operand: self._shared(operand) for operand in operands}
            constants = [n for n in node.all_input_nodes if n.op == "get_attr"]
            inputs |= dict.fromkeys(constants, self.constant)
            self._annotate(node, inputs, self.activation if alone else None)
        elif node.target in FIXED_OUTPUT:
            source = node.all_input_nodes[0]
            self._annotate(node, {source: self._shared(source)}, self.fixed[node.target])
        elif node.target in SHARED:
            self._annotate_shared(node, node.all_input_nodes[0])
        elif node.target in CONCATENATED:
            self._annotate_concatenated(node)
        elif node.target in FOLDED:
            if node.all_input_nodes[0].target not in WEIGHTED:
                raise BadInput(
                    f"{self.precision}: {node.name} stands after no convolution to fold it into"
                )
            if not _feeds_one(node, FUSED):
                self._annotate(node, {}, self.activation)
        else:
            raise self._refusal(node)

    def _annotate_shared(self, node: fx.Node, source: fx.Node) -> None:
        self._annotate(node, {source: self._shared(source)}, self._shared(source))
        self.roots[node] = self.roots[source]

    def _annotate_concatenated(self, node: fx.Node) -> None:
        """Every part takes the first one's parameters, which then span the values of all."""
        parts = node.all_input_nodes
        first, *others = dict.fromkeys(self.roots[part] for part in parts)
        for root in (first, *others) if others else ():
            if root.meta[ANNOTATION].output_qspec is not self.activation:
                raise BadInput(
                    f"{self.precision}: {node.name} concatenates {root.name}, whose parameters are "
                    "fixed",
                    "give --precision fp32",
                )
        for root in others:
            root.meta[ANNOTATION].output_qspec = SharedQuantizationSpec(first)
            self.roots |= {n: first for n, known in self.roots.items() if known is root}
        self._annotate(node, {part: self._shared(part) for part in parts}, self._shared(parts[0]))
        self.roots[node] = first

    def known(self) -> set[Any]:
        """All operators with a rule."""
        return WEIGHTED | FUSED | SUMS | OWN_OUTPUT | FIXED_OUTPUT | SHARED | CONCATENATED | FOLDED

    def _annotate_weighted(self, node: fx.Node) -> None:
        source, weight = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        inputs: dict[fx.Node, Any] = {source: self._shared(source), weight: self.weight}
        bias = node.args[2] if len(node.args) > 2 else None
        if isinstance(bias, fx.Node):
            inputs[bias] = DerivedQuantizationSpec(
                [(source, node), (weight, node)],
                _bias_parameters,
                torch.int32,
                -(2**31),
                2**31 - 1,
                torch.per_channel_symmetric,
                ch_axis=0,
            )
        self._annotate(node, inputs, None if _feeds_one(node, FUSED | FOLDED) else self.activation)


def _feeds_one(node: fx.Node, targets: set[Any]) -> bool:
    """Whether the node's only user is one of these operators."""
    return len(node.users) == 1 and next(iter(node.users)).target in targets


def _bias_parameters(observers: list[Any]) -> tuple[Tensor, Tensor]:
    """Scale of input times scale of weight, per channel; zero point 0."""
    (input_scale, _), (weight_scale, _) = (observer.calculate_qparams() for observer in observers)
    return input_scale * weight_scale, torch.zeros_like(weight_scale, dtype=torch.int32)
