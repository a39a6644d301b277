"""Every named rounding against a slow one in Python's integers, and inputs that tell them apart."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_layers import Exported, export
from torch import nn

from pipeline.verify import cases
from pipeline.verify.judge import against_schemes, judge
from pipeline.verify.layers import Layer, Network
from pipeline.verify.rounding import Exact, exact_of, linear_of, snap
from pipeline.verify.runtimes import JUDGED, Runtimes
from pipeline.verify.schemes import (
    EXACT,
    FLOAT32,
    INTEGER_AWAY,
    INTEGER_MEAN,
    REQUANTIZATIONS,
    ROUNDINGS,
    Multiplier,
    double_precision,
    integer_mean,
    single_round,
)
from pipeline.verify.subject import LayerVerdict, isolate

Array = npt.NDArray[Any]


# --- The definitions once more, in integers and fractions -----------------------------------------


def toward_zero(numerator: int, denominator: int) -> int:
    """C's integer division."""
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient


def saturating_rounding_doubling_high_mul(a: int, b: int) -> int:
    """gemmlowp/fixedpoint/fixedpoint.h."""
    if a == b == -(2**31):
        return 2**31 - 1
    product = a * b
    nudge = 2**30 if product >= 0 else 1 - 2**30
    return toward_zero(product + nudge, 2**31)


def rounding_divide_by_pot(x: int, exponent: int) -> int:
    """gemmlowp/fixedpoint/fixedpoint.h."""
    mask = 2**exponent - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """tensorflow/lite/kernels/internal/quantization_util.cc."""
    fraction, shift = math.frexp(real)
    scaled = Fraction(fraction) * 2**31
    mantissa = math.floor(scaled + Fraction(1, 2))
    return (mantissa // 2, shift + 1) if mantissa == 2**31 else (mantissa, shift)


def slow_double(total: int, real: float) -> int:
    mantissa, shift = quantize_multiplier(real)
    high = saturating_rounding_doubling_high_mul(total * 2 ** max(shift, 0), mantissa)
    return rounding_divide_by_pot(high, max(-shift, 0))


def slow_single(total: int, real: float) -> int:
    """MultiplyByQuantizedMultiplier where TFLITE_SINGLE_ROUNDING is set."""
    mantissa, shift = quantize_multiplier(real)
    return math.floor(Fraction(total * mantissa, 2 ** (31 - shift)) + Fraction(1, 2))


def slow_double_up(total: int, real: float) -> int:
    """ruy on x86: both roundings halves up."""
    mantissa, shift = quantize_multiplier(real)
    high = math.floor(Fraction(total * 2 ** max(shift, 0) * mantissa, 2**31) + Fraction(1, 2))
    return math.floor(Fraction(high, 2 ** max(-shift, 0)) + Fraction(1, 2))


def slow_half_even(total: int, real: float) -> int:
    return round(Fraction(float(np.float32(total) * np.float32(real))))


def slow_float_away(total: int, real: float) -> int:
    product = Fraction(float(np.float32(total) * np.float32(real)))
    size = math.floor(abs(product) + Fraction(1, 2))
    return size if product >= 0 else -size


def slow_float64_away(total: int, real: float) -> int:
    product = Fraction(total * real)  # a float64
    size = math.floor(abs(product) + Fraction(1, 2))
    return size if product >= 0 else -size


SLOW = {
    "float half even": slow_half_even,
    "single round": slow_single,
    "double round": slow_double,
    "double round up": slow_double_up,
    "float round away": slow_float_away,
    "float64 round away": slow_float64_away,
}


def multiplier(real: float) -> Multiplier:
    """A scale that float32 keeps."""
    return Multiplier(np.array([real]), np.array([real], np.float32))


# Products of three float32 scales, with float32's own 24 bits.
MULTIPLIERS = st.floats(2.0**-14, 1.75, width=32)
# What keeps the result within a few times the range of int8, as accumulators do.
RESULTS = st.integers(-800, 800)


def test_every_scheme_has_its_definition_here() -> None:
    assert set(SLOW) == set(REQUANTIZATIONS)


@pytest.mark.parametrize("scheme", SLOW)
@settings(max_examples=300)
@given(st.lists(st.tuples(RESULTS, st.integers(-2, 2)), min_size=1, max_size=30), MULTIPLIERS)
@example([(0, 0), (1, 0), (-1, 0), (127, 1), (-128, -1)], 0.5)
@example([(0, 0), (3, 0), (-3, 0), (5, 0), (-5, 0)], 2.0**-10)
@example([(0, 0), (3, 0), (-3, 0)], 1.5)
@example([(101, 0), (-101, 1)], float(np.nextafter(np.float32(0.5), np.float32(0))))
def test_a_scheme_is_its_definition(scheme: str, near: list[tuple[int, int]], real: float) -> None:
    """On accumulators at and around halves: near is (twice the result, steps beside it)."""
    totals = [round(twice / 2 / real) + beside for twice, beside in near]
    found = REQUANTIZATIONS[scheme](np.array(totals, np.float64), multiplier(real))
    assert [int(value) for value in found] == [SLOW[scheme](total, real) for total in totals]


@pytest.mark.parametrize("scheme", SLOW)
def test_ties_are_rounded_as_the_scheme_is_named(scheme: str) -> None:
    """0.5, 1.5, 2.5 and their negatives, exactly."""
    totals = np.array([1, 3, 5, -1, -3, -5], np.float64)
    expected = {
        "float half even": [0, 2, 2, 0, -2, -2],
        "single round": [1, 2, 3, 0, -1, -2],
        "double round": [1, 2, 3, -1, -2, -3],
        "double round up": [1, 2, 3, 0, -1, -2],
        "float round away": [1, 2, 3, -1, -2, -3],
        "float64 round away": [1, 2, 3, -1, -2, -3],
    }[scheme]
    for power in (2.0**-2, 2.0**-9):
        found = REQUANTIZATIONS[scheme](totals * 0.5 / power, multiplier(power))
        assert found.astype(int).tolist() == expected


@given(st.integers(1, 4096), st.lists(st.integers(-(2**20), 2**20), min_size=1))
@example(4, [2, 6, 10, -2, -6, -10])
@example(7, [1, 3, 4, -3, -4])
@example(49, [24, 25, -24, -25])
def test_the_integer_mean_is_that_of_tflite(count: int, totals: list[int]) -> None:
    """reference/integer_ops/mean.h: 1 / count in fixed point, with a shift that fits 32 bits."""
    shift = min(63 - (64 - count.bit_length()), 32)
    assert shift <= 31 + shift
    mantissa = (2**30 << shift) // count
    exponent = 1 - shift
    expected = []
    for total in totals:
        high = saturating_rounding_doubling_high_mul(total * 2 ** max(exponent, 0), mantissa)
        expected.append(rounding_divide_by_pot(high, max(-exponent, 0)))
    assert integer_mean(np.array(totals, np.float64), count, 1.0).astype(int).tolist() == expected
    for total, mean in zip(totals, expected, strict=True):
        # Rounded twice: first at a half of a half step, at worst.
        assert abs(Fraction(total, count) - mean) <= Fraction(3, 4) + Fraction(abs(total), 2**29)


@given(st.lists(st.floats(-300, 300), min_size=1))
@example([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
@example([0.49999999999999994, -0.49999999999999994])
def test_halves_of_real_results_go_where_the_name_says(values: list[float]) -> None:
    real = snap(np.array(values))
    half = Fraction(1, 2)
    for name, slow in {
        "half even": round,
        "half away": lambda x: int(math.copysign(math.floor(abs(x) + half), x)),
        "half up": lambda x: math.floor(x + half),
    }.items():
        found = ROUNDINGS[name](real)
        assert found.astype(int).tolist() == [slow(Fraction(float(x))) for x in real]


def test_what_float64_leaves_of_a_half_is_a_half() -> None:
    assert snap(np.array([2.5 + 2**-40, -1.5 - 2**-40, 7 - 2**-45, 0.1])).tolist() == [
        *(2.5, -1.5, 7.0, 0.1)
    ]
    assert snap(np.array([2.5 + 1e-6]))[0] != 2.5


# --- Labels ---------------------------------------------------------------------------------------


def exact(real: list[float], zero_point: int = 0, reach: float = 1e-6, **more: Any) -> Exact:
    values = np.array([real])
    return Exact(values, np.full(values.shape, reach), zero_point, -128, 127, **more)


def int8(*values: int) -> Array:
    return np.array([values], np.int8)


def test_average_pooling_tells_its_roundings_apart() -> None:
    """Means of four integers, zero point 3: at -2.5 the integer's half is -0.5 away from zero."""
    means = exact([0.5, 1.5, -0.5, -2.5, -5.5, 0.25], zero_point=3, reach=0.0)
    found = {
        "half even": int8(3, 5, 3, 1, -3, 3),
        "half away": int8(4, 5, 2, 0, -3, 3),
        "half up": int8(4, 5, 3, 1, -2, 3),
        INTEGER_AWAY: int8(4, 5, 3, 1, -3, 3),
    }
    for name, values in found.items():
        judgement = against_schemes(means, values)
        assert judgement.passed and judgement.fingerprint == name
        assert judgement.telling == 4
    assert not against_schemes(means, int8(3, 5, 2, 1, -3, 3)).passed


def test_an_integer_mean_has_a_label_of_its_own() -> None:
    """A truncated reciprocal of 7 takes an exact result below its half."""
    totals = np.arange(-900, 900)
    real = totals / 14 * 2
    mean = Exact(real[None], np.zeros((1, len(real))), 0, -128, 127, count=7)
    scheme = mean.schemes()[INTEGER_MEAN]
    assert against_schemes(mean, scheme.astype(np.int8)).passed


def test_one_element_off_by_one_step_is_outside() -> None:
    result = exact([0.3, 2.5, -7.9, 100.0])
    right = int8(0, 2, -8, 100)
    assert against_schemes(result, right).passed
    for place, step in itertools.product(range(4), (-1, 1)):
        wrong = right.copy()
        wrong[0, place] += step
        judgement = against_schemes(result, wrong, first=40)
        if (place, step) == (1, 1):  # 3 for 2.5, that is halves away
            assert judgement.passed
            continue
        assert (judgement.outside, judgement.passed) == (1, False)
        assert "unexplained" in judgement.fingerprint
        worst = judgement.first_outside
        assert worst is not None and worst.position == (40, place)
        assert worst.found == wrong[0, place]
        assert judgement.histogram == {0: 3, step: 1}


def test_schemes_may_not_be_mixed() -> None:
    """Each element is what some scheme gives, but not all are what one gives."""
    result = exact([0.5, 2.5, -0.5], reach=0.0)
    assert against_schemes(result, int8(0, 2, 0)).passed
    assert against_schemes(result, int8(0, 3, 0)).outside == 1


def test_float32_is_a_reason_only_within_its_reach() -> None:
    near = exact([2.4999999, 1.2], reach=1e-6)
    judgement = against_schemes(near, int8(3, 1))
    assert judgement.passed and judgement.fingerprint == FLOAT32
    assert not against_schemes(exact([2.4999999, 1.2], reach=1e-9), int8(3, 1)).passed
    assert not against_schemes(near, int8(2, 2)).passed


def test_results_beyond_the_range_saturate() -> None:
    result = exact([126.5, 127.4, 300.0, -300.0, -128.5], zero_point=0)
    assert against_schemes(result, int8(126, 127, 127, -128, -128)).passed
    assert against_schemes(result, int8(126, 127, 44, -128, -128)).outside == 1  # wrapped
    total = np.array([[1000.0, -1000.0]])
    scaled = exact([500.0, -500.0], zero_point=5, accumulator=total, multiplier=multiplier(0.5))
    for values in scaled.schemes().values():
        assert values.tolist() == [[127, -128]]


def test_where_there_is_nothing_to_tell_the_label_says_exact() -> None:
    judgement = against_schemes(exact([3.0, -4.0]), int8(3, -4))
    assert (judgement.telling, judgement.fingerprint) == (0, EXACT)


# --- Inputs on which the schemes disagree ---------------------------------------------------------


class Various(nn.Module):
    """Groups, depthwise, unequal padding, strides, dilation and linear layers, H and W unequal."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(2, 1)),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, groups=4, padding=1),
            nn.Conv2d(12, 12, (2, 3), groups=12, stride=(1, 2)),
            nn.Conv2d(12, 6, 3, dilation=(1, 2), padding=(0, 2)),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 20),
            nn.ReLU6(),
            nn.Linear(20, 7),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(x)
        return scores


@pytest.fixture(scope="module")
def various() -> Exported:
    torch.manual_seed(6)
    return export(Various(), (3, 11, 13), "int8")


def weighted(network: Network) -> list[Layer]:
    found = [layer for layer in network.layers if linear_of(layer, network) is not None]
    assert len(found) == 6
    return found


def given_to(layer: Layer, network: Network) -> tuple[str, tuple[int, ...]]:
    (name,) = layer.inputs
    shapes = {known.name: known.shape for known in network.layers}
    return name, shapes.get(name, network.image_shape)


def fed(layer: Layer, network: Network, make: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """What is made for a weighted layer; the accumulators that it leads to, and the multiplier."""
    linear = linear_of(layer, network)
    assert linear is not None
    name, shape = given_to(layer, network)
    made = make(layer, linear, shape, np.random.default_rng(0))
    assert made.dtype == np.int8 and made.shape[1:] == shape
    result = exact_of(layer, network, {name: made})
    assert result.accumulator is not None and result.multiplier is not None
    return made, result.accumulator, result.multiplier


@pytest.mark.parametrize("shift", [1, -1])
def test_a_bias_that_is_one_off_is_seen_in_what_weighted_layers_are_fed(
    various: Exported, shift: int
) -> None:
    network = various.reference().network
    for layer in weighted(network):
        _, accumulator, multiplier = fed(layer, network, cases.beside_halves)
        scheme = REQUANTIZATIONS["float half even"]
        moved = scheme(accumulator + shift, multiplier) != scheme(accumulator, multiplier)
        channels = np.moveaxis(moved, 1, 0).reshape(moved.shape[1], -1)
        assert channels.any(axis=1).all(), layer.name


def test_schemes_disagree_on_what_weighted_layers_are_fed(various: Exported) -> None:
    network = various.reference().network
    told: Counter[tuple[str, str]] = Counter()
    for layer in weighted(network):
        made, accumulator, multiplier = fed(layer, network, cases.disagreements)
        rounded = {n: scheme(accumulator, multiplier) for n, scheme in REQUANTIZATIONS.items()}
        unlike = {
            (one, other): rounded[one] != rounded[other]
            for one, other in itertools.combinations(rounded, 2)
        }
        told.update(pair for pair, where in unlike.items() if where.any())
        assert unlike["float half even", "double round"].any(), layer.name
        assert unlike["double round", "double round up"].any(), layer.name
        # Each input was made for one accumulator, and that is where it leads.
        reached = sum(unlike.values()).reshape(len(made), -1).any(axis=1)
        assert reached.all(), layer.name
    # Schemes that hardly ever differ do so somewhere; but these two only where a sum is a half,
    # which is seen to by `cases.beside_halves`, where a network has one.
    same = {("single round", "float64 round away")}
    assert set(told) | same == set(itertools.combinations(REQUANTIZATIONS, 2))


def test_the_accumulators_are_those_of_plain_integers(various: Exported) -> None:
    """By PyTorch, which pads with the zero point taken off already."""
    network = various.reference().network
    random = np.random.default_rng(1)
    for layer in weighted(network):
        linear = linear_of(layer, network)
        assert linear is not None
        name, shape = given_to(layer, network)
        x = random.integers(-128, 128, (3, *shape)).astype(np.int8)
        result = exact_of(layer, network, {name: x})
        centred = torch.from_numpy(x.astype(np.float64) - linear.zero_point)
        weight = torch.from_numpy(linear.weight)
        assert linear.bias is not None
        bias = torch.from_numpy(linear.bias)
        attributes = {a.name: list(a.ints) or a.i for a in linear.node.attribute}
        if linear.node.op_type == "Gemm":
            expected = nn.functional.linear(centred.flatten(1), weight, bias)
        else:
            top, left, bottom, right = attributes["pads"]
            padded = nn.functional.pad(centred, (left, right, top, bottom))
            expected = nn.functional.conv2d(
                *(padded, weight, bias, tuple(attributes["strides"])),
                dilation=tuple(attributes["dilations"]),
                groups=attributes["group"],
            )
        assert result.accumulator is not None
        assert np.array_equal(result.accumulator, expected.numpy())


# By kind of layer: schemes one of which reproduces every element.
KNOWN: dict[str, dict[str, set[str]]] = {
    "litert xnnpack": {"conv": {"float half even"}, "linear": {"float half even"}},
    "litert reference": {"conv": {"double round"}, "linear": {"single round"}},
    "litert builtin": {
        "conv": {"double round", "double round up"},
        "linear": {"double round", "double round up"},
    },
    "onnxruntime all": {"conv": {"float half even"}, "linear": {"float half even"}},
    "onnxruntime disabled": {},  # computes in float32, and then whatever is near enough may fit
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_element_of_a_runtime_is_explained(name: str, various: Exported) -> None:
    """Each layer alone, on inputs of which dozens tell one scheme from another."""
    configurations = itertools.chain(*JUDGED.values())
    configuration = next(known for known in configurations if known.name == name)
    file = various.reference() if configuration.runtime == "onnxruntime" else various.lite()
    network = various.reference().network
    random = np.random.default_rng(2)
    unexplained = {}
    with Runtimes() as runtimes:
        for layer in weighted(network):
            source, shape = given_to(layer, network)
            real = {source: random.integers(-128, 128, (2, *shape)).astype(np.int8)}
            inputs = cases.isolated_inputs(layer, network, real, 0)
            verdict = LayerVerdict(layer)
            isolate(verdict, network, file, configuration, runtimes, inputs)
            judgement = verdict.isolated
            assert judgement is not None and judgement.problem is None
            assert judgement.telling > 10
            if not judgement.passed:
                unexplained[layer.name] = judgement.outside
                continue
            expected = KNOWN[name].get(layer.kind.split(" + ")[0])
            assert expected is None or expected & set(judgement.reproducing), layer.name
    assert not unexplained


def test_a_step_in_one_weight_or_bias_is_unexplained(various: Exported) -> None:
    """What a layer with another integer computes is no scheme's result of the original."""
    network = various.reference().network
    for layer in weighted(network):
        linear = linear_of(layer, network)
        assert linear is not None
        name, shape = given_to(layer, network)
        random = np.random.default_rng(3)
        real = {name: random.integers(-128, 128, (2, *shape)).astype(np.int8)}
        inputs = cases.isolated_inputs(layer, network, real, 0)
        result = exact_of(layer, network, inputs)
        assert judge(layer, network, inputs, result.nearest.astype(np.int8)).outside < 5
        assert result.accumulator is not None and result.multiplier is not None
        moved = result.accumulator.copy()
        moved[:, :1] += 64  # some steps of the accumulator in one channel
        scheme = REQUANTIZATIONS["float half even"](moved, result.multiplier)
        wrong = result.clamp(scheme + result.zero_point).astype(np.int8)
        assert not judge(layer, network, inputs, wrong).passed, layer.name


def test_a_sum_that_is_a_half_tells_float64_from_a_fixed_point() -> None:
    """A sixth is less than itself in 31 bits, and three of it are less than a half."""
    multiplier = Multiplier.of(np.float64(1), np.float64(1), 6.0)
    sums = np.array([3, -3, 9, 8])
    assert single_round(sums, multiplier).tolist() == [0, 0, 1, 1]
    assert double_precision(sums, multiplier).tolist() == [1, -1, 2, 1]
