"""How far float32 arithmetic may take a layer from its exact value: a running error analysis.

A layer is computed in float64 together with a bound on what any order of summation in float32 can
add. For a sum of n products (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1)

    |y - exact| <= gamma(n + 1) (|W| * |x| + |b|),   gamma(n) = n u / (1 - n u),   u = 2^-24,

where n counts the products that are not zero, since adding a zero is exact. What is exact in
float32 (max pooling, ReLU, reshaping) adds nothing. No tolerance is chosen by hand; those of
`SMOOTH` are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from ..errors import BadInput
from ..reference import compute

Array = npt.NDArray[Any]
U = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-149  # a result below the normal range is off by half of this, whatever its size
# Higham and Mary (2019), theorem 2.4: with independent roundings sqrt(n) stands for n, but for a
# probability of 2 n exp(-LAMBDA^2 / 2) at most. Beyond it a result is possible, and a warning.
LAMBDA = 6.0
ON_A_STEP = 511 * U  # of a step: the most that `as_given` puts a number of steps off


def gamma(n: Any) -> Any:
    """N u / (1 - n u): what n roundings in a row can amount to. Raises BadInput for n u >= 1/2."""
    if np.max(n, initial=0) * U >= 0.5:
        raise BadInput(f"a sum of {int(np.max(n))} products has no bound in float32")
    return n * U / (1 - n * U)


class Bounded(NamedTuple):
    """A value in float64; `error`, what float32 may be off by; `likely`, what it hardly exceeds;
    `magnitude`, the sum of the absolute values of the terms that the value was added up from.
    """

    value: Array
    error: Array
    likely: Array
    magnitude: Array


def exactly(value: Array) -> Bounded:
    """A given value: without error."""
    if value.dtype != np.int64:
        value = value.astype(np.float64)
    zero = np.zeros(value.shape)
    return Bounded(value, zero, zero, np.abs(value))


def as_given(value: Array, zero_point: int | None) -> Bounded:
    """What a layer in float is given: a float as it is, or int8 q. Of that float32 makes (q - z) s,
    rounded once, or, as LiteRT's built-in kernels do, q s - z s, rounded three times, but where q
    is z, and both products are the same.
    """
    known = exactly(value)
    if zero_point is None:
        return known
    sizes = np.abs(known.value) + abs(zero_point) + np.abs(known.value - zero_point)
    sizes = np.where(known.value == zero_point, 0.0, sizes)
    return known._replace(error=U * sizes, likely=U * sizes)


Inputs = Sequence[Bounded | None]
Evaluate = Callable[..., Array]


def _linear(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """Conv, Gemm and MatMul."""
    x, w, *rest = inputs
    assert x is not None and w is not None
    bias = rest[0] if rest else None
    alpha, beta = (abs(_attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    value = evaluate(x.value, w.value, *(b.value for b in rest if b))
    weight = np.abs(w.value)
    none = [np.zeros_like(b.value) for b in rest if b]

    def summed(left: Array, right: Array) -> Array:
        """Of sizes, whatever the sign of alpha."""
        return np.abs(evaluate(left, right, *none))

    magnitude = summed(np.abs(x.value), weight)
    if bias is not None:  # a convolution has one for each channel
        size = beta * np.abs(bias.value)
        conv = node.op_type == "Conv"
        magnitude = magnitude + (size.reshape(-1, *[1] * (value.ndim - 2)) if conv else size)
    n = np.rint(summed(_nonzero(x.value), _nonzero(weight)) / alpha) + (bias is not None)
    given, hardly = x.error, x.likely
    if given.any():  # what the inputs are off by, and roundings of that
        given, hardly = (summed(part, weight) for part in (x.error, x.likely))
    scaled = sum(factor != 1.0 for factor in (alpha, beta))
    return _rounded(value, magnitude, n + scaled, given, hardly)


def _rounded(value: Array, magnitude: Array, n: Any, given: Array, hardly: Array) -> Bounded:
    """The bound of n roundings of terms that are off by `given` already."""
    given, hardly = (
        np.broadcast_to(part, value.shape) if part.any() else np.zeros(value.shape)
        for part in (given, hardly)
    )
    worst = gamma(n) + n * 2.0**-52  # the reference itself is summed in float64
    likely = np.minimum(worst, LAMBDA * np.sqrt(n) * U)
    return Bounded(
        value,
        given + worst * (magnitude + given) + n * TINY,
        hardly + likely * (magnitude + hardly) + n * TINY,
        magnitude,
    )


def _mean(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """Average pooling and means: n - 1 additions, and a division or a rounded reciprocal."""
    x, *rest = inputs
    assert x is not None
    more = [r.value for r in rest if r]
    value, magnitude, given, hardly = (
        evaluate(part, *more) for part in (x.value, np.abs(x.value), x.error, x.likely)
    )
    if node.op_type == "AveragePool":
        size = math.prod(_attribute(node, "kernel_shape", ()))
    else:
        size = x.value.size // value.size
    n = np.ceil(evaluate(_nonzero(x.value), *more) * size - 1e-9) + 1
    return _rounded(value, magnitude, n, given, hardly)


def _moved(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """Reshape, Transpose, Pad, Concat: bounds go where their values go."""
    del node

    def moved(part: int) -> Array:
        return evaluate(*(x if x is None else x.value if _is_index(x) else x[part] for x in inputs))

    return Bounded(*(moved(part) for part in range(4)))


def _sum_of_one(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """What it is given."""
    if len(inputs) != 1:
        raise BadInput(f"{node.name}: no rounding bound is known for a Sum of several")
    return _moved(node, inputs, evaluate)


def _is_index(given: Bounded) -> bool:
    """Shapes, pads and axes are no values."""
    return given.value.dtype == np.int64


def _max_pool(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """Exact; the largest of a window is off by no more than the most that one of them is."""
    del node
    (x,) = inputs
    assert x is not None
    return Bounded(*(evaluate(part) for part in x))


def _clamp(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """ReLU and clipping: exact, and they bring no two values further apart."""
    del node
    x, *limits = inputs
    assert x is not None
    value = evaluate(x.value, *(None if limit is None else limit.value for limit in limits))
    return x._replace(value=value)


def _sum(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """Add and Sub: one rounding of the sum; terms that are constants may be merged before."""
    del node
    a, b = inputs
    assert a is not None and b is not None
    value = evaluate(a.value, b.value)
    total, given, hardly = (
        x + y for x, y in ((a.magnitude, b.magnitude), (a.error, b.error), (a.likely, b.likely))
    )
    rounding = U * np.abs(value)
    for term, bias in ((a, b), (b, a)):
        # A bias that a runtime merges may be where the sum begins: it is rounded as its terms are.
        if term.error.any() and not bias.error.any():
            size = np.abs(bias.value)
            given = given + _relative(term.error, term.magnitude) * size
            hardly = hardly + _relative(term.likely, term.magnitude) * size
    return Bounded(value, given * (1 + U) + rounding, hardly * (1 + U) + rounding, total)


def _product(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """Mul, and Div by a constant, which may be multiplying by a rounded reciprocal."""
    a, b = inputs
    assert a is not None and b is not None
    value = evaluate(a.value, b.value)
    if node.op_type == "Div":
        if b.error.any():
            raise BadInput("Div by a computed value: no bound is known")
        b = exactly(1 / b.value)
    # A factor may be merged into the sum before it: then each term is rounded.
    roundings = gamma(2) * (a.magnitude * b.magnitude) + TINY

    def off(x: Array, y: Array) -> Array:
        return np.asarray(np.abs(a.value) * y + x * np.abs(b.value) + x * y)

    return Bounded(
        value,
        off(a.error, b.error) + roundings,
        off(a.likely, b.likely) + roundings,
        a.magnitude * b.magnitude,
    )


def _normalised(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """BatchNormalization, on its own or merged into the weights before it: eight roundings."""
    x, scale, shift, mean, variance = (given for given in inputs if given is not None)
    value = evaluate(*(given.value for given in (x, scale, shift, mean, variance)))
    shape = (-1, *[1] * (x.value.ndim - 2))
    epsilon = _attribute(node, "epsilon", 1e-5)
    factor = np.abs(scale.value / np.sqrt(variance.value + epsilon)).reshape(shape)
    offset = factor * np.abs(mean.value).reshape(shape) + np.abs(shift.value).reshape(shape)
    magnitude = factor * x.magnitude + offset
    # Merged, the offset may be where a sum begins: it is rounded as the sum's terms are.
    error, likely = (part + _relative(part, x.magnitude) * offset / factor for part in x[1:3])
    return _rounded(value, magnitude, 8, factor * error, factor * likely)


@dataclass(frozen=True)
class Smooth:
    """An elementwise function: its steepest slope, and the largest error that was seen in any
    runtime, in units of u max(1, |y|) (`python benchmarks/activations.py`). Twice that is allowed.
    """

    slope: float
    measured: float

    @property
    def roundings(self) -> float:
        """What is allowed, in the same units."""
        return 2 * self.measured


SMOOTH = {
    "Sigmoid": Smooth(0.25, 2.8),
    "Tanh": Smooth(1.0, 5.2),
    "Gelu": Smooth(1.13, 17.7),
    "Elu": Smooth(1.0, 1.3),
    "HardSigmoid": Smooth(0.2, 1.3),
    "HardSwish": Smooth(1.5, 3.1),
    "LeakyRelu": Smooth(1.0, 1.0),
    # Besides, n exponentials are summed: n roundings more.
    "Softmax": Smooth(0.5, 6.3),
    "LogSoftmax": Smooth(2.0, 6.4),
}


def _smooth(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    x, *rest = inputs
    assert x is not None
    value = evaluate(x.value, *(r.value for r in rest if r))
    rule = SMOOTH[node.op_type]
    given, hardly, summed = x.error, x.likely, 0
    if node.op_type in ("Softmax", "LogSoftmax"):  # every score counts for every probability
        axis = _attribute(node, "axis", -1)
        summed = value.shape[axis]
        given, hardly = (np.max(part, axis=axis, keepdims=True) for part in (given, hardly))
    slope = max(rule.slope, abs(_attribute(node, "alpha", 0.0)))
    own = (rule.roundings + summed) * U * np.maximum(1, np.abs(value))
    return Bounded(value, slope * given + own, slope * hardly + own, np.abs(value))


def _dequantized(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """(q - z) s. That float32 rounds it is in the error of q, see `as_given`, or else it is counted
    where the result is quantized.
    """
    del evaluate
    scale, zero_point = _parameters(node, inputs)
    q = inputs[0]
    assert q is not None
    value = (q.value - zero_point) * scale
    return Bounded(value, q.error * scale, q.likely * scale, np.abs(value))


def _quantized(node: onnx.NodeProto, inputs: Inputs, evaluate: Evaluate) -> Bounded:
    """Inside a layer values are only quantized anew with the scale that they have already: nothing
    is rounded, and nothing clamped.
    """
    del evaluate
    scale, zero_point = _parameters(node, inputs)
    x = inputs[0]
    assert x is not None
    steps = np.rint(x.value / scale)
    off = np.abs(x.value / scale - steps).max(initial=0)
    if off > 1e-6 or (x.error / scale).max(initial=0) > ON_A_STEP:
        raise BadInput(f"{node.name} rounds in the middle of a layer: it cannot be followed")
    value = steps + zero_point
    return Bounded(value, x.error / scale, x.likely / scale, np.abs(value))


def _parameters(node: onnx.NodeProto, inputs: Inputs) -> tuple[float, float]:
    """Scale and zero point of an activation. Raises BadInput for one scale a channel."""
    _, scale, *rest = inputs
    assert scale is not None
    zero_point = rest[0].value if rest and rest[0] is not None else np.zeros(1)
    if scale.value.size != 1 or zero_point.size != 1:
        raise BadInput(f"{node.name}: an activation with several scales is not known")
    return scale.value.item(), zero_point.item()


RULES: dict[str, Callable[[onnx.NodeProto, Inputs, Evaluate], Bounded]] = {
    "DequantizeLinear": _dequantized,
    "QuantizeLinear": _quantized,
    **dict.fromkeys(("Conv", "Gemm", "MatMul"), _linear),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), _mean),
    **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Pad"), _moved),
    **dict.fromkeys(("Concat", "Identity", "Dropout", "Expand", "Slice"), _moved),
    **dict.fromkeys(("Relu", "Clip"), _clamp),
    **dict.fromkeys(("Add", "Sub"), _sum),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(SMOOTH, _smooth),
    "MaxPool": _max_pool,
    "Sum": _sum_of_one,
    "BatchNormalization": _normalised,
}


def evaluate_layers(
    nodes: Sequence[onnx.NodeProto],
    given: dict[str, Bounded],
    opset: int,
    known: dict[str, Array],
) -> dict[str, Bounded]:
    """Every value of `nodes`, which are in order, from `given` values and the constants `known`.

    Raises BadInput by name for an operator without a rule.
    """
    values = dict(given)

    def of(name: str) -> Bounded | None:
        if not name:
            return None
        if name not in values:
            values[name] = exactly(known[name])
        return values[name]

    for node in nodes:
        if node.output[0] in known:
            continue
        inputs = [of(name) for name in node.input]

        def evaluate(*arrays: Array | None, node: onnx.NodeProto = node) -> Array:
            output: Array = compute(node, arrays, opset)[0]
            return output

        if all(name in known or not name for name in node.input):
            known[node.output[0]] = evaluate(*(known.get(name) for name in node.input))
            continue
        if node.op_type not in RULES:
            raise BadInput(
                f"{node.op_type} ({node.name}): no rounding bound is known",
                f"known are {', '.join(sorted(RULES))}",
            )
        values[node.output[0]] = RULES[node.op_type](node, inputs, evaluate)
    return values


def _relative(error: Array, magnitude: Array) -> Array:
    """What a sum is off by as a part of the size of its terms; 0 where there are none."""
    zero = np.zeros(np.broadcast_shapes(error.shape, magnitude.shape))
    return np.divide(error, magnitude, out=zero, where=magnitude > 0)


def _nonzero(array: Array) -> Array:
    return np.asarray(array != 0, np.float64)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)
