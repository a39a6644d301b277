"""What an activation's range is taken to be, from the calibration images.

`minmax` is the smallest and the largest value seen. `percentile` leaves 0.01 % of the values out,
half of them at either end, and `mse` takes the range with the least squared error of quantization
(torchao's HistogramObserver, which searches it): both give up outliers for smaller steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationSpec

SMALLEST_SCALE = 2.0**-16  # a tensor that is constantly zero still needs a scale
KEPT = 0.9999


class PercentileObserver(HistogramObserver):  # type: ignore[misc]  # torchao is untyped
    """The range between quantiles that leave (1 - KEPT) / 2 of the values out at either end."""

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        """HistogramObserver asks this for its range: (smallest, largest) value."""
        part = self.histogram.double().cumsum(0)
        part = part / part[-1]
        edges = torch.linspace(float(self.min_val), float(self.max_val), len(part) + 1)
        first = int((part > (1 - KEPT) / 2).nonzero()[0])
        last = int((part >= 1 - (1 - KEPT) / 2).nonzero()[0])
        return edges[first], edges[last + 1]


# From the simplest on: among equals the first is taken.
OBSERVERS: dict[str, Any] = {
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
    "mse": HistogramObserver,
}


def activation(observer: str) -> QuantizationSpec:
    """Asymmetric, one scale and zero point a tensor, in [-128, 127]."""
    made = OBSERVERS[observer].with_args(eps=SMALLEST_SCALE)
    return QuantizationSpec(torch.int8, made, -128, 127, torch.per_tensor_affine)
