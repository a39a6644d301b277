"""The rules of the int16x8 program: the int8 program's weights, and int16 values between layers.

They are those that LiteRT has for 16-bit activations with 8-bit weights:

- weights: int8, as in the int8 program;
- activations: symmetric, one scale a tensor, zero point 0, in [-32768, 32767];
- bias: an integer with the scale of input times weight, which TFLite stores as int64;
- the input: scale 1/255, zero point 0, so a pixel byte is the quantized input;
- sigmoid and tanh: 1/32768;
- neither softmax, nor concatenation, nor the sum with a constant: TFLite's softmax looks up
  exponentials, which the verifier does not know, and the converter refuses the others.

A scale is no power of two but the prescribed ones: with some of those the built-in kernels of
sigmoid and tanh compute in another way than the reference ones.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import MinMaxObserver
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationSpec

from ..errors import BadInput
from ..program import aten
from .observers import SMALLEST_SCALE
from .rules import CONCATENATED, SUMS, Int8Quantizer

GRID = (-32768, 32767, torch.per_tensor_symmetric)


class _Observer(MinMaxObserver):  # type: ignore[misc]  # torchao is untyped
    """Widens a range whose scale is, for TFLite, a power of two: log2 within 1e-3 of an integer."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """See torchao's observers."""
        scale, zero_point = super().calculate_qparams()
        power = scale.double().log2()
        return torch.where((power - power.round()).abs() < 2e-3, 1.003 * scale, scale), zero_point


def _fixed(scale: float) -> FixedQParamsQuantizationSpec:
    return FixedQParamsQuantizationSpec(torch.int16, scale, 0, *GRID)


class Int16x8Quantizer(Int8Quantizer):
    """The int8 rules with the values above; without operators whose int16 kernels are not known."""

    precision = "int16x8"
    constant = QuantizationSpec(torch.int16, _Observer.with_args(eps=SMALLEST_SCALE), *GRID)
    input = _fixed(1 / 255)
    fixed = MappingProxyType(
        {aten.sigmoid.default: _fixed(2.0**-15), aten.tanh.default: _fixed(2.0**-15)}
    )

    def known(self) -> set[Any]:
        """All operators with a rule."""
        return super().known() - CONCATENATED - {aten.softmax.int}

    def _annotate_call(self, node: fx.Node) -> None:
        if node.target in SUMS and any(n.op == "get_attr" for n in node.all_input_nodes):
            raise BadInput(
                f"int16x8: {node.name} adds a constant, which the TFLite converter cannot",
                "give --precision int8, or put the constant into a bias",
            )
        super()._annotate_call(node)
