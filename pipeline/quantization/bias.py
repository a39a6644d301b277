"""Bias correction: rounding shifts the mean of what a layer computes; its bias takes that back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", the
empirical form of appendix D: b <- b - (E[int8 output] - E[float output]), over the calibration
images, each layer after those before it. The corrected value is quantized as any bias is, to int32
with the scale of input times weight, so every runtime still has the same integer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..program import WEIGHTED, attribute


class _Means(fx.Interpreter):
    """Runs a program and adds up what its weighted layers compute, per output channel."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target in WEIGHTED:
            rows = (value.movedim(1, -1) if value.dim() == 4 else value).flatten(0, -2).double()
            self.sums[n.name] = self.sums.get(n.name, 0) + rows.sum(0)
            self.counts[n.name] = self.counts.get(n.name, 0) + len(rows)
        return value


def means(module: fx.GraphModule, pixels: Tensor) -> dict[str, Tensor]:
    """The mean of each weighted layer's output, float64, one value per channel."""
    interpreter = _Means(module)
    with torch.no_grad():
        for images in pixels.split(256):
            interpreter.run(images.float() / 255)
    return {name: interpreter.sums[name] / interpreter.counts[name] for name in interpreter.sums}


def correct(int8: fx.GraphModule, wanted: dict[str, Tensor], pixels: Tensor) -> None:
    """Change an int8 program's biases, in place, so that its layers' means are those wanted."""
    for node in int8.graph.nodes:
        if node.target not in WEIGHTED or len(node.args) < 3 or node.args[2] is None:
            continue
        bias = node.args[2]
        while bias.op != "get_attr":
            bias = bias.args[0]
        found = attribute(int8, bias)
        with torch.no_grad():
            found.copy_(found - (means(int8, pixels)[node.name] - wanted[node.name]).to(found))
