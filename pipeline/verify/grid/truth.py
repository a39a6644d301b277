"""What a cell's outputs must be, from PyTorch in float64, and whether they are.

The truth is the layer that was asked for, in the framework that networks are trained in; nothing of
an exported file goes into it but the int8 program's own integers and scales.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from deploy.runner.contract import Quantization

from ...program import constant, quantization_of
from ..bounds import SMOOTH, TINY, Bounded, U, exactly, gamma
from ..judge import against_bound, against_schemes
from ..judgement import Judgement
from ..rounding import Exact, snap
from ..schemes import Multiplier
from .cells import Cell, module_of

Array = npt.NDArray[Any]

INPUT = Quantization(1 / 255, -128)  # of every int8 cell
CURVES = {"sigmoid": SMOOTH["Sigmoid"], "tanh": SMOOTH["Tanh"]}
FLOAT64 = 2.0**-28  # float64 rounds 2**29 times finer than float32; reference and truth both do
TIE = 1e-9  # steps; as far as float64 may leave a half from where it belongs, see `snap`
OFF_GRID = 1e-4  # steps; 256 steps times a few roundings of 2**-24 are less


@dataclass(frozen=True)
class Truth:
    """One output: float64 with a bound for float32, integers (indices), or what int8 rounds.

    `scale` is the int8 output's.
    """

    exact: Bounded | Exact
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """N x ..."""
        return (self.exact.value if isinstance(self.exact, Bounded) else self.exact.real).shape


def random_pixels(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """6 x C x H x W, always the same."""
    return np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)


def inputs_for(cell: Cell) -> Array:
    """N x C x H x W of what tells layers apart, as float32 or, for an int8 cell, int8.

    Random signed values; constants, which show what padding adds; and impulses in each channel,
    in corners and inside, which show where each tap is. int8 has its extremes as well.
    """
    channels, height, width = cell.shape
    impulses = np.zeros((2 * channels, *cell.shape), np.int64)
    corners = itertools.cycle(((0, 0), (height - 1, 0), (height // 2, width // 2), (1, width - 1)))
    for number, (row, column) in zip(range(len(impulses)), corners, strict=False):
        impulses[number, number % channels, row, column] = (-1) ** (number // channels)
    if cell.precision == "int8":
        random = random_pixels(cell.shape).astype(np.int64) - 128
        constants = [np.full((1, *cell.shape), value) for value in (-128, -1, 127)]
        extremes = np.where(random > 0, 127, -128)
        return np.concatenate((random, extremes, *constants, impulses * 127)).astype(np.int8)
    normal = np.random.default_rng(0).standard_normal((6, *cell.shape))
    ones = np.ones((1, *cell.shape))
    return np.concatenate((normal, -ones, ones, impulses * 1.5)).astype(np.float32)


def float_truths(cell: Cell, values: Array) -> list[Truth]:
    """Each output of an fp32 cell on `values`, N x C x H x W float32."""
    images = torch.from_numpy(values).double()
    return [Truth(result) for result in _bounded(cell, module_of(cell).double(), images)]


def int8_truth(cell: Cell, program: fx.GraphModule, output: fx.Node, values: Array) -> Truth:
    """The output of an int8 cell on `values`, N x C x H x W int8 of quantization `INPUT`.

    The integers of the weights and the output's quantization are read off the program, in which
    `output` is the cell's dequantized result.
    """
    step, zero_point = quantization_of(program, output)
    scale, input_scale = float(np.float32(step)), float(np.float32(INPUT.scale))  # as in files
    steps = torch.from_numpy(values).double() - INPUT.zero_point
    module = module_of(cell).double()
    multiplier = accumulator = None
    factor: Any = 1.0
    if cell.operator == "conv":
        layer: Any = output.args[0].args[0]  # type: ignore[union-attr]  # quantized, and that again
        given = [node for node in layer.args[1:3] if isinstance(node, fx.Node)]
        for parameter, node in zip(module.parameters(), given, strict=True):
            parameter.data = constant(program, node.args[0]).double()
        weight_scales = constant(program, given[0].args[1]).numpy()
        multiplier = Multiplier.of(np.asarray(input_scale), weight_scales, scale)
        multiplier = multiplier.reshape((-1, 1, 1))
        factor = multiplier.exact
    elif cell.operator in CURVES:
        steps, factor = steps * input_scale, 1 / scale
    else:
        assert (scale, zero_point) == (input_scale, INPUT.zero_point), "pooling has one scale"
    (sums,) = _bounded(cell, module, steps)
    accumulator = sums.value if multiplier is not None else None
    real = snap(sums.value * factor)
    # As in `rounding.exact_of`: both scales of each product, and two requantizations.
    reach = (sums.error + gamma(4) * sums.magnitude) * factor + 2 * U * np.abs(real)
    return Truth(Exact(real, reach, zero_point, -128, 127, accumulator, multiplier), scale)


def _bounded(cell: Cell, module: nn.Module, images: Tensor) -> list[Bounded]:
    """Each output in float64, with the bound that `verify.bounds` gives such a layer."""
    with torch.inference_mode():
        outputs = module(images)
        if isinstance(outputs, tuple):
            return [exactly(output.numpy()) for output in outputs]
        value = outputs.numpy()
        if cell.operator in CURVES:
            error = CURVES[cell.operator].roundings * U * np.maximum(1, np.abs(value))
            return [Bounded(value, error, error, np.abs(value))]
        if cell.operator not in ("conv", "avg-pool"):
            return [exactly(value)]
        magnitude = _changed(module, torch.abs)(images.abs()).numpy()
        there = _changed(module, _nonzero)
        if cell.operator == "avg-pool":  # counts what a window adds up, and then it divides
            there = nn.AvgPool2d(**cell.options | {"divisor_override": 1})
        n = np.rint(there(_nonzero(images)).numpy()) + (cell.operator == "avg-pool")
    error = gamma(n) * magnitude + n * TINY
    return [Bounded(value, error, error, magnitude)]


def _changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    module = copy.deepcopy(module)
    for parameter in module.parameters():
        parameter.data = change(parameter.data)
    return module


def _nonzero(values: Tensor) -> Tensor:
    return (values != 0).double()


def judge_output(truth: Truth, found: Array, finely: bool = False) -> Judgement:
    """Judge one output, N x ...: float32 or float64 real numbers, or int64 indices.

    `finely` is for a runtime that computes in float64: only its own roundings may show, and in int8
    the side to which an exact half goes.
    """
    exact = truth.exact
    if found.shape != truth.shape:
        return Judgement(problem=f"shape {found.shape}, expected {truth.shape}")
    if not found.size:
        return Judgement(problem="nothing to compare")
    if isinstance(exact, Bounded):
        if (exact.value.dtype.kind == "i") != (found.dtype.kind == "i"):
            return Judgement(problem=f"dtype {found.dtype}, expected {exact.value.dtype}")
        if finely:
            exact = exact._replace(error=exact.error * FLOAT64, likely=exact.likely * FLOAT64)
        return against_bound(exact, found)
    if not np.isfinite(found).all():
        return Judgement(problem="NaN or infinity")
    steps = found.astype(np.float64) / truth.scale + exact.zero_point
    integers: Array = np.rint(steps)
    if np.abs(steps - integers).max() > OFF_GRID:
        return Judgement(problem="values that are no multiples of the output's scale")
    if finely:
        tie = np.full(exact.real.shape, TIE)
        exact = replace(exact, reach=tie, accumulator=None, multiplier=None)
    return against_schemes(exact, integers)
