"""How the range of an activation follows from the values that calibration saw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationSpec

SMALLEST_SCALE = 2.0**-16  # a tensor that is constantly zero still needs a scale
OUTSIDE = 0.0005  # of the values that a percentile leaves out on either side


class PercentileObserver(HistogramObserver):  # type: ignore[misc]  # torchao is untyped
    """All but the outermost values, which are clipped."""

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        """The range, in place of torchao's search for the least squared error."""
        part = self.histogram.cumsum(0) / self.histogram.sum()
        width = (self.max_val - self.min_val) / self.bins
        first = int((part < OUTSIDE).sum())  # the bin in which the values that are kept begin
        last = int((part < 1 - OUTSIDE).sum())  # and in which they end
        return self.min_val + width * first, self.min_val + width * (last + 1)


# From the simplest on: the smallest and largest value, a percentile, the least squared error.
OBSERVERS: dict[str, Any] = {
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
    "mse": HistogramObserver,
}


def activation(observer: str) -> QuantizationSpec:
    """int8 by this observer: asymmetric, one scale and zero point a tensor."""
    made = OBSERVERS[observer].with_args(eps=SMALLEST_SCALE)
    return QuantizationSpec(torch.int8, made, -128, 127, torch.per_tensor_affine)
