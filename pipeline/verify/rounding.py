"""How a runtime rounds an int8 layer: which named scheme reproduces its integers bit for bit.

A layer's exact result is computed from the integers that it was given. Convolution and linear
layers have integer accumulators, which a runtime multiplies by s_x s_w / s_y and rounds; how, is
the scheme. Other layers have a real result that is rounded. A runtime that computes an int8 layer
in float32 sums in an order of its own: there every integer must be reachable within the float32
bound of `bounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ..reference import compute
from .bounds import Bounded, U, as_given, evaluate_layers, exactly, gamma
from .fixed_point import half_away
from .int16 import KERNELS
from .layers import Layer, Network, float_part
from .schemes import (
    INTEGER_AWAY,
    INTEGER_MEAN,
    REQUANTIZATIONS_OF,
    ROUNDINGS,
    Multiplier,
    double_round_by_eights,
    half_even,
    integer_mean,
)

Array = npt.NDArray[Any]


DEQUANTIZE = "DequantizeLinear"


@dataclass(frozen=True)
class Linear:
    """A convolution or linear layer in integers, as the ONNX file says it.

    `weight` and `bias` are the integers, `input_scale` and `zero_point` those of the input; `dtype`
    is that of the values.
    """

    node: onnx.NodeProto
    weight: Array
    bias: Array | None
    input_scale: float
    zero_point: int
    multiplier: Multiplier
    dtype: str


@dataclass(frozen=True)
class Exact:
    """What is known of a layer's result before it is rounded, to `dtype`, and clamped.

    `real` is the exact result in steps, without the zero point; `reach` how far float32 arithmetic
    may take it; `accumulator` the exact sum, where the layer has one; `count` how many integers
    are averaged, and `ratio` their scale by that of the mean. `low` and `high` clamp, zero point
    included. Where layers are computed as one and only some of the accumulator's integers go on,
    `pick` says which; `real` and `reach` are picked already. `named` has what further schemes make
    of it.
    """

    real: Array
    reach: Array
    zero_point: int
    low: int
    high: int
    accumulator: Array | None = None
    multiplier: Multiplier | None = None
    count: int | None = None
    ratio: float = 1.0
    depthwise: bool = False
    pick: Callable[[Array], Array] | None = None
    dtype: str = "int8"
    named: Mapping[str, Array] = field(default_factory=dict)

    def schemes(self) -> dict[str, Array]:
        """What each named scheme makes of it, clamped, zero point included."""
        if self.accumulator is not None and self.multiplier is not None:
            found = {
                name: scheme(self.accumulator, self.multiplier) + self.zero_point
                for name, scheme in REQUANTIZATIONS_OF[self.dtype].items()
            }
            if self.depthwise and self.dtype == "int8":
                by_eights = double_round_by_eights(self.accumulator, self.multiplier)
                found["double round up"] = by_eights + self.zero_point
        else:
            found = {name: scheme(self.real) for name, scheme in ROUNDINGS.items()}
            found[INTEGER_AWAY] = half_away(self.real + self.zero_point) - self.zero_point
            if self.count is not None:
                total = np.rint(self.real * self.count / self.ratio)
                found[INTEGER_MEAN] = integer_mean(total, self.count, self.ratio)
            found |= self.named
            found = {name: values + self.zero_point for name, values in found.items()}
        found = {name: self.clamp(values) for name, values in found.items()}
        if self.pick is not None:
            found = {name: self.pick(values) for name, values in found.items()}
        return found

    def clamp(self, integers: Array) -> Array:
        """Into the range of the output."""
        return np.clip(integers, self.low, self.high)

    @property
    def nearest(self) -> Array:
        """The exact result to the nearest integer, halves to even: what the reference goes on
        with.
        """
        return self.clamp(half_even(self.real) + self.zero_point)


def exact_of(layer: Layer, network: Network, given: Mapping[str, Array | Bounded]) -> Exact:
    """Compute a layer with an integer value from its inputs, integers or floats, by layer name.
    N x ... each.
    """
    assert layer.quantization is not None
    scale, zero_point = float(layer.quantization.scale), layer.quantization.zero_point
    *nodes, last = layer.nodes
    # What an int8 layer's own dequantizations round is a part of `reach`, below.
    enter = inputs_of if float_part(layer, network) is not None else exact_inputs
    values = enter(network, given)
    known = network.constants
    values = evaluate_layers(nodes, values, network.opset, known)
    result = values[last.input[0]]
    real = snap(result.value / scale)
    dtype = layer.quantization.dtype
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    # Inputs and weights are rounded when they are dequantized, the quotient when it is quantized.
    reach = (result.error + gamma(4) * result.magnitude) / scale + 2 * U * np.abs(real)
    linear = linear_of(layer, network)
    if linear is None:
        if any(node.op_type in ("Add", "Sub") for node in nodes):
            # ONNX Runtime adds integers times s / s_y, and what their zero points come to apart.
            sizes = sum(256 * scale_of(network, name) for name in given)
            reach = reach + gamma(6) * sizes / scale
        means = [n for n in nodes if n.op_type in ("ReduceMean", "GlobalAveragePool")]
        count, ratio = None, 1.0
        if len(means) == 1 and len(given) == 1 and scale_of(network, *given):
            ratio = scale_of(network, *given) / scale
            count = values[means[0].input[0]].value.size // values[means[0].output[0]].value.size
        named = {}
        for node in nodes if dtype == "int16" else ():
            if node.op_type in KERNELS:
                operands = _operands(node, nodes, values, known)
                ends = _clamped(nodes, known, scale, zero_point, low, high)
                for name, kernel in KERNELS[node.op_type].items():
                    named[name] = np.clip(kernel(*operands, scale), *ends)
        return Exact(
            *(real, reach, zero_point, low, high),
            count=count,
            ratio=ratio,
            dtype=dtype,
            named=named,
        )
    x = np.rint(values[linear.node.input[0]].value / linear.input_scale)
    bias = [linear.bias] if linear.bias is not None else []
    accumulator = compute(linear.node, [x, linear.weight, *bias], network.opset)[0]
    low, high = _clamped(nodes, known, scale, zero_point, low, high)
    real = snap(accumulator * linear.multiplier.exact)
    depthwise = linear.node.op_type == "Conv" and linear.weight.shape[1] == 1 < len(linear.weight)
    return Exact(
        *(real, reach, zero_point, low, high, accumulator, linear.multiplier),
        depthwise=depthwise,
        dtype=dtype,
    )


def _clamped(
    nodes: Sequence[onnx.NodeProto],
    known: Mapping[str, Array],
    scale: float,
    zero_point: int,
    low: int,
    high: int,
) -> tuple[int, int]:
    """The range of the integers, where a sum is clamped before it is quantized."""
    for node in nodes:
        if node.op_type == "Relu":
            low = max(low, zero_point)
        elif node.op_type == "Clip":
            for name, ends in zip(node.input[1:], ("low", "high"), strict=False):
                if not name:
                    continue
                end = int(half_even(known[name] / scale)) + zero_point
                low, high = (max(low, end), high) if ends == "low" else (low, min(high, end))
    return low, high


def _operands(
    node: onnx.NodeProto,
    nodes: Sequence[onnx.NodeProto],
    values: Mapping[str, Bounded],
    known: Mapping[str, Array],
) -> tuple[list[Array], list[float]]:
    """The int16 integers of an operator's inputs, constants among them, and their scales."""
    producers = {each.output[0]: each for each in nodes}
    steps, scales = [], []
    for name in node.input:
        source = producers[name]
        while source.op_type != DEQUANTIZE:  # what moves them about has them first
            source = producers[source.input[0]]
        scales.append(float(known[source.input[1]].item()))
        value = values[name].value if name in values else known[name]
        steps.append(np.rint(value / scales[-1]).astype(np.int64))
    return steps, scales


def inputs_of(network: Network, given: Mapping[str, Array | Bounded]) -> dict[str, Bounded]:
    """A layer's inputs, by the names of their values, with what float32 makes of int8 ones."""
    found = {}
    for name, value in given.items():
        quantization = network.quantizations[name]
        zero_point = None if quantization is None else quantization.zero_point
        known = value if isinstance(value, Bounded) else as_given(value, zero_point)
        found[network.values[name]] = known
    return found


def exact_inputs(network: Network, given: Mapping[str, Array | Bounded]) -> dict[str, Bounded]:
    """The same without that: int8 values are integers."""
    return {
        network.values[name]: value if isinstance(value, Bounded) else exactly(value)
        for name, value in given.items()
    }


def scale_of(network: Network, name: str) -> float:
    """The scale of a layer's value, or the image's; 0 for a float."""
    quantization = network.quantizations[name]
    return 0.0 if quantization is None else quantization.scale


def linear_of(layer: Layer, network: Network) -> Linear | None:
    """The layer's integers, if it is one convolution or linear layer and at most a clamp, with
    symmetric weights and a bias of scale s_x s_w.
    """
    weighted = [n for n in layer.nodes if n.op_type in ("Conv", "Gemm")]
    others = {n.op_type for n in layer.nodes} - {"Conv", "Gemm", "Relu", "Clip", "Reshape"}
    moving = {"QuantizeLinear", "DequantizeLinear", "Flatten", "Transpose", "Pad", "Squeeze"}
    if len(weighted) != 1 or others - moving:
        return None
    producers = {n.output[0]: n for n in layer.nodes}
    sources = [producers[name] for name in weighted[0].input if name in producers]
    if len(sources) < len(weighted[0].input) or {s.op_type for s in sources} != {DEQUANTIZE}:
        return None
    x, w, *rest = sources
    known = network.constants
    scales = [np.asarray(known[s.input[1]], np.float64) for s in (x, w)]
    integers = [known[s.input[0]].astype(np.float64) for s in (w, *rest)]
    assert layer.quantization is not None
    symmetric = all(not np.any(known[s.input[2]]) for s in (w, *rest) if len(s.input) > 2)
    bias = [np.asarray(known[s.input[1]], np.float64) for s in rest]
    if not symmetric or not all(np.allclose(b, scales[0] * scales[1], 1e-6, 0) for b in bias):
        return None
    shape = (-1,) if weighted[0].op_type == "Gemm" else (-1, 1, 1)
    multiplier = Multiplier.of(scales[0], scales[1].ravel(), layer.quantization.scale)
    return Linear(
        weighted[0],
        integers[0],
        integers[1] if rest else None,
        float(scales[0]),
        int(known[x.input[2]]) if len(x.input) > 2 else 0,
        multiplier.reshape(shape if multiplier.exact.size > 1 else (1,)),
        layer.quantization.dtype,
    )


def snap(real: Array) -> Array:
    """float64 leaves a half off by some 2**-50; it is put back where it belongs."""
    halves = np.rint(real * 2) / 2
    return np.where(np.abs(real - halves) < 1e-9, halves, real)
