"""From a float program and images to one of integers."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from ..program import plain
from .bias import correct, means
from .mixed import keep_in_float
from .observers import activation
from .rules import Int8Quantizer
from .rules_int16 import Int16x8Quantizer

QUANTIZERS = {"int8": Int8Quantizer, "int16x8": Int16x8Quantizer}


def check(exported: torch.export.ExportedProgram, precisions: Sequence[str]) -> None:
    """Refuse a network that has no form in one of these precisions. Raises BadInput."""
    for precision, quantizer in QUANTIZERS.items():
        if precision in precisions:
            prepare_pt2e(plain(exported.module()), quantizer())


def quantize(
    program: fx.GraphModule,
    pixels: Tensor,
    observer: str = "minmax",
    *,
    bias_correction: bool = False,
    keep: Collection[str] = (),
) -> fx.GraphModule:
    """The int8 program of a float program, calibrated on uint8 N x C x H x W training images.

    `observer` is one of OBSERVERS; the layers `keep` stay in float, see `mixed`. Weights that are
    quantized stay float values behind quantize nodes, so that one program serves all exporters.
    Raises BadInput.
    """
    quantizer = Int8Quantizer(activation(observer))
    return calibrated(program, pixels, quantizer, bias_correction=bias_correction, keep=keep)


def calibrated(
    program: fx.GraphModule,
    pixels: Tensor,
    quantizer: Int8Quantizer,
    *,
    bias_correction: bool = False,
    keep: Collection[str] = (),
) -> fx.GraphModule:
    """A float program by the rules of `quantizer`. See `quantize`."""
    prepared = prepare_pt2e(copy.deepcopy(program), quantizer)
    with torch.no_grad():
        for images in pixels.split(256):
            prepared(images.float() / 255)
    # Observers change no value, so the prepared program still computes what the float one does.
    wanted = means(prepared, pixels) if bias_correction else {}
    quantized = plain(convert_pt2e(prepared, fold_quantize=False))
    keep_in_float(quantized, keep)
    if bias_correction:
        correct(quantized, wanted, pixels)
    return quantized
