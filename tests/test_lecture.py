"""The lecture: its worked examples, its shapes and its identities; and torch's meaning of pads."""

import json
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.convolution import (
    Window,
    average_pool,
    compose,
    convolve,
    cross_correlate,
    cross_correlate_unrolled,
    full_pads,
    max_pool,
    same_pads,
    sum_pool,
    window_counts,
)
from pipeline.graph import output_size, same_padding

LECTURE = json.loads((Path(__file__).parent / "lecture_examples.json").read_text())
OPERATORS = {
    "cross_correlation2d": [cross_correlate, cross_correlate_unrolled],
    "convolution2d": [convolve],
    "max_pool2d": [max_pool],
    "avg_pool2d": [average_pool],
}


def image(rows):
    return np.array(rows, np.int64)[None, None]


@pytest.mark.parametrize("example", LECTURE["operators"], ids=lambda example: example["name"])
def test_worked_examples(example):
    stride = tuple(example.get("stride", (1, 1)))
    pads = tuple(example.get("padding", (0, 0))) * 2
    for operator in OPERATORS[example["op"]]:
        if "kernel" in example:
            found = operator(image(example["input"]), image(example["kernel"]), stride, pads)
        else:
            window = Window(tuple(example["kernel_size"]), stride, pads)
            found = operator(image(example["input"]), window)
        assert found[0, 0].tolist() == example["output"]


@pytest.mark.parametrize("example", LECTURE["shapes"], ids=lambda example: example["name"])
def test_shapes(example):
    before = example.get("pad_top_left", example.get("padding", (0, 0)))
    after = example.get("pad_bottom_right", example.get("padding", (0, 0)))
    stride, kernel = example.get("stride", (1, 1)), example["kernel"]
    sizes = [
        reduce(
            lambda n, _, a=a: output_size(n, kernel[a], stride[a], before[a] + after[a]),
            range(example.get("layers", 1)),
            n,
        )
        for a, n in enumerate(example["input"])
    ]
    assert sizes == example["output"]
    if "pad_top_left" in example:
        assert [same_padding(k) for k in kernel] == list(zip(before, after, strict=True))


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-99, 100, shape)


seeds = st.integers(0, 2**32 - 1)
small = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def convolutions(draw):
    """Image and kernel of int64, unequal in all that can be unequal, and the other arguments."""
    groups, kernel = draw(st.integers(1, 3)), draw(small)
    per_group, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    stride, dilation = draw(small), draw(small)
    pads = draw(st.tuples(*[st.integers(0, 4)] * 4))
    for a in range(2):
        assume(output_size(size[a], kernel[a], 1, pads[a] + pads[a + 2], dilation[a]) >= 1)
    x = integers(draw(seeds), draw(st.integers(0, 3)), groups * per_group, *size)
    w = integers(draw(seeds), groups * outputs, per_group, *kernel)
    return x, w, stride, pads, dilation, groups


@given(convolutions())
def test_unrolled_is_direct(case):
    direct = cross_correlate(*case)
    unrolled = cross_correlate_unrolled(*case)
    assert direct.dtype == unrolled.dtype == np.int64
    np.testing.assert_array_equal(unrolled, direct)


@given(convolutions())
def test_direct_is_what_torch_computes(case):
    x, w, stride, (top, left, bottom, right), dilation, groups = case
    assume(len(x))
    padded = functional.pad(torch.tensor(x).double(), (left, right, top, bottom))
    # Integers this small are exact in float64, whatever the order of summation.
    expected = functional.conv2d(
        padded, torch.tensor(w).double(), stride=stride, dilation=dilation, groups=groups
    )
    np.testing.assert_array_equal(cross_correlate(*case), expected.numpy())


@given(convolutions())
def test_convolution_is_cross_correlation_with_the_kernel_flipped(case):
    x, w, *rest = case
    flipped = np.flip(w, (2, 3))
    np.testing.assert_array_equal(convolve(*case), cross_correlate(x, flipped, *rest))


@given(small, small, seeds)
def test_full_convolution_is_commutative(one, other, seed):
    f, g = integers(seed, 1, 1, *one), integers(seed + 1, 1, 1, *other)
    found = convolve(f, g, pads=full_pads(other))
    np.testing.assert_array_equal(found, convolve(g, f, pads=full_pads(one)))


def test_cross_correlation_is_not_commutative():
    f, g = image([[1, 2, 3]]), image([[4, 5]])
    found = cross_correlate(f, g, pads=full_pads((1, 2)))
    assert (found != cross_correlate(g, f, pads=full_pads((1, 3)))).any()


@pytest.mark.parametrize("operator", [convolve, cross_correlate])
@given(small, small, st.tuples(st.integers(8, 10), st.integers(8, 10)), seeds)
def test_stacked_kernels_compose(operator, one, other, size, seed):
    f, g1, g2 = integers(seed, 2, 3, *size), integers(seed + 1, 4, 3, *one), None
    g2 = integers(seed + 2, 2, 4, *other)
    composed = compose(g1, g2)
    assert composed.shape == (2, 3, one[0] + other[0] - 1, one[1] + other[1] - 1)
    stacked = operator(operator(f, g1), g2)
    np.testing.assert_array_equal(stacked, operator(f, composed))


@given(small, small, st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_same_pads_keep_the_size(kernel, dilation, size):
    x, w = integers(0, 1, 2, *size), integers(1, 3, 2, *kernel)
    y = cross_correlate(x, w, pads=same_pads(kernel, dilation), dilation=dilation)
    assert y.shape == (1, 3, *size)


def test_an_even_kernel_has_its_odd_row_and_column_first():
    assert same_pads((4, 2)) == (2, 1, 1, 0)
    picked = cross_correlate(image([[1, 2, 3]]), image([[7, 0]]), pads=same_pads((1, 2)))
    assert picked.tolist() == [[[[0, 7, 14]]]]


def test_padding_is_rows_then_columns():
    x, w = integers(0, 1, 1, 5, 7), integers(1, 1, 1, 3, 3)
    found = cross_correlate(x, w, pads=(2, 1, 2, 1))
    assert found.shape[2:] == (7, 7)
    layer = torch.nn.Conv2d(1, 1, 3, padding=(2, 1), bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(w).double()
    np.testing.assert_array_equal(found, layer(torch.tensor(x).double()).detach().numpy())


WINDOWS = [
    Window((2, 2), (2, 2)),
    Window((3, 2), (2, 3), (1, 1, 1, 1)),
    Window((3, 2), (2, 3), (1, 0, 1, 0)),
    Window((2, 3), (3, 2), (1, 1, 1, 1)),
    Window((5, 4), (3, 2), (2, 1, 2, 1)),
    Window((1, 1), (3, 3)),
]
SIZES = [(7, 9), (8, 6), (5, 5)]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_pools_are_torchs(window, size, ceil_mode):
    x = integers(0, 2, 3, *size)
    window = Window(window.kernel, window.stride, window.pads, ceil_mode=ceil_mode)
    given_ = torch.tensor(x).double(), window.kernel, window.stride, window.pads[:2]
    expected = functional.max_pool2d(*given_, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(max_pool(x, window), expected.numpy())
    for include in (False, True):
        expected = functional.avg_pool2d(*given_, ceil_mode=ceil_mode, count_include_pad=include)
        found = average_pool(x, window, count_include_pad=include)
        np.testing.assert_array_equal(found, expected.numpy())  # one division of exact sums


def test_dilated_max_pool_is_torchs():
    x = integers(0, 2, 3, 9, 11)
    window = Window((3, 2), (2, 1), (1, 1, 1, 1), (2, 3), ceil_mode=True)
    expected = functional.max_pool2d(
        torch.tensor(x).double(), (3, 2), (2, 1), 1, (2, 3), ceil_mode=True
    )
    np.testing.assert_array_equal(max_pool(x, window), expected.numpy())


def test_padding_is_never_the_largest():
    window = Window((2, 2), (1, 1), (1, 1, 1, 1))
    for dtype in (np.int64, np.float64, np.int8):
        x = np.full((1, 2, 2, 3), -5, dtype)
        assert max_pool(x, window).tolist() == np.full((1, 2, 3, 4), -5).tolist()


def test_what_a_window_holds():
    window = Window((3, 3), (3, 3), (1, 1, 1, 1), ceil_mode=True)
    assert window.sizes((2, 5)) == (1, 2)  # a third would begin in the padding
    assert window_counts((2, 5), window).tolist() == [[4, 6]]
    assert window_counts((2, 5), window, count_include_pad=True).tolist() == [[9, 9]]
    assert sum_pool(image([[1, 2], [3, 4]]), Window((2, 1), (1, 1), (1, 0, 0, 0))).tolist() == [
        [[[1, 2], [4, 6]]]
    ]
    beyond = Window((2, 2), (2, 2), ceil_mode=True)
    assert window_counts((3, 3), beyond, count_include_pad=True).tolist() == [[4, 2], [2, 1]]


@pytest.mark.parametrize(
    ("x", "w", "rest"),
    [
        ((1, 3, 5, 5), (2, 2, 3, 3), ()),
        ((1, 4, 5, 5), (3, 2, 3, 3), ((1, 1), (0,) * 4, (1, 1), 2)),
        ((1, 1, 2, 5), (1, 1, 3, 3), ()),
        ((1, 1, 5), (1, 1, 3), ()),
        ((1, 1, 5, 5), (1, 1, 3, 3), ((1, 0),)),
        ((1, 1, 5, 5), (1, 1, 3, 3), ((1, 1), (0, 0, -1, 0))),
    ],
    ids=["channels", "groups", "too small", "one-dimensional", "stride", "pads"],
)
@pytest.mark.parametrize("operator", [cross_correlate, cross_correlate_unrolled])
def test_what_does_not_fit(operator, x, w, rest):
    with pytest.raises(ValueError, match=r"fit|larger|images|positive|pads"):
        operator(integers(0, *x), integers(1, *w), *rest)


def test_narrow_integers_would_overflow():
    x = np.ones((1, 1, 3, 3), np.int8)
    with pytest.raises(TypeError, match="int8"):
        cross_correlate(x, x)
