"""Float32 bounds: no sum in any order leaves them, and one weight that is off by 2^-20 does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from pipeline.errors import BadInput
from pipeline.verify import bounds, cases
from pipeline.verify.bounds import Bounded, U, evaluate_layers, exactly, gamma
from pipeline.verify.judge import against_bound, judge
from pipeline.verify.layers import IMAGE, Network, read_network
from pipeline.verify.runtimes import Configuration, Runtimes

Array = npt.NDArray[Any]
OPSET = 20


def network_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: Mapping[str, Array],
    result: Sequence[int | None],
) -> Network:
    """A float network of one input, `image` of N x `shape`, and one output, `y`."""
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", float32, ["n", *shape])],
        [helper.make_tensor_value_info("y", float32, ["n", *result])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    return read_network(helper.make_model(graph, opset_imports=opset, ir_version=10))


def single(
    operator: str, *inputs: Array, known: Sequence[Array] = (), **attributes: Any
) -> Bounded:
    """One operator's value and bound from exact `inputs` and constants."""
    names = [f"x{i}" for i in range(len(inputs))]
    constants = {f"c{i}": value for i, value in enumerate(known)}
    node = helper.make_node(operator, [*names, *constants], ["y"], **attributes)
    given = {name: exactly(value) for name, value in zip(names, inputs, strict=True)}
    exact = {n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in constants.items()}
    return evaluate_layers([node], given, OPSET, exact)["y"]


def decades(random: np.random.Generator, *shape: int, wide: float = 6) -> Array:
    """float32 of random sign, with as many small as large magnitudes."""
    magnitudes = 10.0 ** random.uniform(-wide, wide, shape)
    return (magnitudes * random.choice([-1, 1], shape)).astype(np.float32)


# --- Sums -----------------------------------------------------------------------------------------


def in_turn(terms: Array, start: Array) -> Array:
    """float32 N x n added up from the left."""
    total = start
    for column in terms.T:
        total = total + column
    return total


def lanes(terms: Array, start: Array) -> Array:
    """As vector units do it: eight sums side by side, added up at the end."""
    padded = np.pad(terms, ((0, 0), (0, -terms.shape[1] % 8))).reshape(len(terms), -1, 8)
    sums = padded[:, 0]
    for part in range(1, padded.shape[1]):
        sums = sums + padded[:, part]
    return in_turn(sums, start)


def pairwise(terms: Array, start: Array) -> Array:
    """The bias comes last."""
    while terms.shape[1] > 1:
        odd = terms[:, -1:] if terms.shape[1] % 2 else terms[:, :0]
        terms = np.concatenate([terms[:, :-1:2] + terms[:, 1::2], odd], axis=1)
    return terms[:, 0] + start


ROWS = 1200
SIZES = (1, 2, 3, 4, 7, 16, 25, 60, 150, 400)


def sums() -> Iterator[tuple[Array, Array, Array | None]]:
    """(x N x n, weights n, bias or None): over many decades, and such that nearly all cancels."""
    random = np.random.default_rng(0)
    for n in SIZES:
        for number in range(4):
            w = decades(random, n, wide=3 if number % 2 else 6)
            x = decades(random, ROWS, n, wide=3 if number % 2 else 6)
            if number >= 2 and n > 1:
                half = n // 2
                mirrored = -x[:, :half].astype(np.float64) * w[:half] / w[half : 2 * half]
                x[:, half : 2 * half] = mirrored.astype(np.float32)
            yield x, w, decades(random, 1, wide=4) if number % 2 else None


def test_no_float32_sum_in_any_order_leaves_its_bound() -> None:
    random = np.random.default_rng(1)
    counted, nearest = 0, 0.0
    for x, w, bias in sums():
        constants = [w[:, None]] if bias is None else [w[:, None], bias]
        result = single("Gemm", x, known=constants)
        products = x.astype(np.float64) * w.astype(np.float64)  # 48 bits: exact
        offset = 0.0 if bias is None else float(bias[0])
        exact = np.array([math.fsum([*row, offset]) for row in products.tolist()])
        for order in (in_turn, lanes, pairwise):
            terms = random.permuted(x * w, axis=1)
            found = order(terms, np.full(len(x), offset, np.float32))
            off = np.abs(found.astype(np.float64) - exact)
            assert (off <= result.error[:, 0]).all(), (order.__name__, x.shape[1], bias)
            assert against_bound(result, found[:, None]).passed
            counted += found.size
            if x.shape[1] == 1 and bias is None:
                nearest = max(nearest, float((off / result.error[:, 0]).max()))
    assert counted >= 1e5
    assert 0.9 < nearest <= 1  # one product is one rounding: the bound leaves nothing over


def test_no_average_in_any_order_leaves_its_bound() -> None:
    random = np.random.default_rng(2)
    x = decades(random, 4000, 1, 3, 5, wide=4)
    result = single("AveragePool", x, kernel_shape=[3, 5])
    flat = random.permuted(x.reshape(-1, 15), axis=1)
    for order in (in_turn, lanes, pairwise):
        total = order(flat, np.zeros(len(flat), np.float32))
        for mean in (total / np.float32(15), total * (np.float32(1) / np.float32(15))):
            assert against_bound(result, mean.reshape(-1, 1, 1, 1)).passed


@pytest.mark.parametrize("include", [0, 1])
def test_averages_at_the_border_count_what_they_add_up(include: int) -> None:
    x = np.zeros((1, 1, 6, 8), np.float32)
    x[0, 0, 0, 0] = 1 / 3
    pads, kernel = [1, 2, 1, 2], [3, 5]
    result = single("AveragePool", x, kernel_shape=kernel, pads=pads, count_include_pad=include)
    assert (result.error <= 5 * U * np.abs(result.value) + 1e-40).all()
    averaged = nn.functional.avg_pool2d(
        torch.from_numpy(x), kernel, 1, pads[:2], count_include_pad=bool(include)
    )
    assert against_bound(result, averaged.numpy()).passed


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (-1.0, 1.0), (1.0, -3.0), (0.1, 0.1)])
def test_factors_of_a_gemm_neither_shrink_nor_turn_its_bound(alpha: float, beta: float) -> None:
    random = np.random.default_rng(3)
    x, w, b = decades(random, 500, 60), decades(random, 60, 1), decades(random, 1)
    result = single("Gemm", x, known=[w, b], alpha=alpha, beta=beta)
    plain = single("Gemm", x, known=[w, b])
    least = min(abs(alpha), abs(beta)) * plain.error
    assert (result.error >= least * (1 - 1e-9)).all()
    total = in_turn(x * w[:, 0], np.zeros(500, np.float32))
    found = np.float32(alpha) * total + np.float32(beta) * b
    assert against_bound(result, found[:, None]).passed


def test_a_bias_of_its_own_may_be_where_the_sum_begins() -> None:
    """MatMul and Add are merged by runtimes, some of which begin at the bias."""
    random = np.random.default_rng(4)
    x, w = decades(random, 2000, 200, wide=1), decades(random, 200, 1, wide=1)
    b = np.array([1e6], np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    known = {"w": w.astype(np.float64), "b": b.astype(np.float64)}
    result = evaluate_layers(nodes, {"x": exactly(x)}, OPSET, known)["y"]
    found = in_turn(x * w[:, 0], np.full(2000, b[0]))
    assert against_bound(result, found[:, None]).passed


def test_normalisation_in_whatever_form_stays_in_its_bound() -> None:
    random = np.random.default_rng(5)
    x = decades(random, 50, 4, 3, 5, wide=3)
    scale, shift, mean = (decades(random, 4, wide=2) for _ in range(3))
    variance = np.abs(decades(random, 4, wide=3))
    result = single(
        "BatchNormalization", x, known=[scale, shift, mean, variance], epsilon=float(2.0**-17)
    )
    s, b, m, v = (part[:, None, None] for part in (scale, shift, mean, variance))
    root = np.sqrt(v + np.float32(2.0**-17))
    factor = s / root
    forms = [(x - m) / root * s + b, (x - m) * factor + b, x * factor + (b - m * factor)]
    for found in forms:
        assert found.dtype == np.float32
        assert against_bound(result, found).passed


def test_the_probabilistic_bound_is_the_lower_one_for_long_sums_only() -> None:
    random = np.random.default_rng(6)
    for n, lower in ((4, False), (1000, True)):
        result = single("Gemm", decades(random, 100, n), known=[decades(random, n, 1)])
        assert (result.likely <= result.error).all()
        assert (result.likely < result.error / 2).all() == lower


def test_gamma_counts_roundings_and_refuses_what_has_no_bound() -> None:
    assert U <= gamma(1) <= U * (1 + 2 * U)
    assert gamma(2**22) > 0
    with pytest.raises(BadInput, match="no bound"):
        gamma(2**23)
    with pytest.raises(BadInput, match="no bound"):
        gamma(np.array([1.0, 2.0**24]))


# --- One weight -----------------------------------------------------------------------------------


def test_an_impulse_leaves_two_roundings() -> None:
    random = np.random.default_rng(7)
    w, b = (random.normal(size=s).astype(np.float32) for s in ((4, 3, 3, 2), (4,)))
    node = helper.make_node("Conv", ["image", "w", "b"], ["y"], strides=[2, 1], pads=[1, 0, 0, 1])
    network = network_of([node], (3, 9, 6), {"w": w, "b": b}, (4, 4, 6))
    (layer,) = network.layers
    given = cases.impulses(layer, (3, 9, 6), cases.AMPLITUDE, 0.0)
    result = evaluate_layers(
        layer.nodes, {"image": exactly(given)}, network.opset, network.constants
    )["y"]
    offset = np.abs(b.astype(np.float64))[:, None, None]
    products = result.magnitude - offset
    met = products > 1e-9
    assert met.any(axis=(0, 2, 3)).all()
    assert (result.error[met] <= (2.001 * U * result.magnitude)[met]).all()
    nothing = np.broadcast_to(1.001 * U * offset + 1e-40, met.shape)
    assert (result.error[~met] <= nothing[~met]).all()


def conv(
    shape: Sequence[int], image: Sequence[int], result: Sequence[int], **attributes: Any
) -> Any:
    return "Conv", tuple(shape), tuple(image), tuple(result), attributes


WEIGHTED = {
    "stride and padding": conv(
        (3, 2, 3, 2), (2, 9, 11), (3, 5, 12), strides=[2, 1], pads=[1, 1, 1, 1]
    ),
    "unequal padding": conv((3, 2, 2, 3), (2, 9, 8), (3, 10, 7), pads=[2, 0, 0, 1]),
    "dilation": conv((2, 2, 3, 2), (2, 12, 11), (2, 8, 8), dilations=[2, 3]),
    "groups": conv((4, 2, 2, 3), (4, 8, 9), (4, 7, 7), group=2),
    "depthwise": conv((6, 1, 3, 3), (3, 7, 10), (6, 7, 10), group=3, pads=[1, 1, 1, 1]),
    "pointwise": conv((5, 4, 1, 1), (4, 6, 7), (5, 3, 7), strides=[2, 1]),
    "kernel of nearly the image's size": conv((3, 2, 5, 4), (2, 6, 5), (3, 2, 2)),
    "kernel of the image's size": conv((3, 2, 5, 4), (2, 5, 4), (3, 1, 1)),
    "one row": conv((3, 2, 1, 5), (2, 1, 12), (3, 1, 8)),
    "linear": ("Gemm", (5, 14), (14,), (5,), {"transB": 1}),
    "linear on a picture": ("Gemm", (5, 2 * 4 * 5), (2, 4, 5), (5,), {"transB": 1}),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_that_is_off_by_a_millionth_is_found(name: str, relu: bool) -> None:
    """Whichever weight it is, by the values that a layer is fed alone."""
    operator, kernel, image, result, attributes = WEIGHTED[name]
    random = np.random.default_rng(8)
    weight = random.uniform(-0.5, 0.5, kernel).astype(np.float32)
    weight[np.abs(weight) < 1e-4] = 1e-4
    bias = random.uniform(-0.5, 0.5, kernel[0]).astype(np.float32)
    first, last = "image", "sum" if relu else "y"
    nodes = []
    constants = {"w": weight, "b": bias}
    if operator == "Gemm" and len(image) == 3:
        nodes = [helper.make_node("Reshape", ["image", "size"], ["flat"])]
        first, constants["size"] = "flat", np.array([-1, math.prod(image)])
    nodes.append(helper.make_node(operator, [first, "w", "b"], [last], **attributes))
    if relu:
        nodes.append(helper.make_node("Relu", [last], ["y"]))
    network = network_of(nodes, image, constants, result)
    (layer,) = network.layers
    real = {IMAGE: random.random((2, *image), np.float32)}
    inputs = cases.isolated_inputs(layer, network, real, 0)

    def run(changed: Array) -> Array:
        model = onnx.ModelProto.FromString(network.model.SerializeToString())
        tensor = next(i for i in model.graph.initializer if i.name == "w")
        tensor.CopyFrom(numpy_helper.from_array(changed, "w"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found: Array = session.run(None, {"image": inputs[IMAGE]})[0]
        return found

    assert judge(layer, network, inputs, run(weight)).passed
    missed = []
    for place in np.ndindex(weight.shape):
        changed = weight.copy()
        changed[place] *= np.float32(1 + 2.0**-20)
        if judge(layer, network, inputs, run(changed)).passed:
            missed.append(place)
    assert not missed


# --- What is exact, and what is measured ----------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "known", "attributes"),
    [
        ("Relu", [], {}),
        ("Clip", [np.float32(0), np.float32(6)], {}),
        ("MaxPool", [], {"kernel_shape": [2, 3], "strides": [1, 2], "pads": [1, 1, 0, 1]}),
        ("Reshape", [np.array([-1, 60])], {}),
        ("Flatten", [], {}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
        ("Pad", [np.array([0, 0, 1, 0, 0, 0, 0, 2]), np.float32(1.5)], {}),
        ("Slice", [np.array([1]), np.array([3]), np.array([2])], {}),
        ("Identity", [], {}),
    ],
)
def test_what_float32_does_exactly_has_no_bound_but_zero(
    operator: str, known: list[Array], attributes: dict[str, Any]
) -> None:
    random = np.random.default_rng(9)
    x = decades(random, 2, 3, 4, 5)
    result = single(operator, x, known=[np.asarray(k) for k in known], **attributes)
    assert not result.error.any() and not result.likely.any()
    exact = result.value.astype(np.float32)
    assert against_bound(result, exact).passed
    wrong = exact.copy()
    wrong.flat[-1] = np.nextafter(wrong.flat[-1], np.float32(np.inf))
    judgement = against_bound(result, wrong)
    assert (judgement.outside, judgement.passed) == (1, False)


def test_an_uncertainty_goes_where_its_value_goes() -> None:
    x = Bounded(*(np.full((1, 2, 3, 4), v) for v in (1.0, 0.25, 0.125, 1.0)))
    size, pads = np.array([1, 24]), np.array([0, 0, 0, 0, 0, 0, 1, 0])
    nodes = [
        helper.make_node("Pad", ["x", "pads", "one"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["largest"], kernel_shape=[2, 1], strides=[2, 1]),
        helper.make_node("Concat", ["largest", "largest"], ["both"], axis=1),
        helper.make_node("Reshape", ["x", "size"], ["flat"]),
    ]
    known = {"pads": pads, "one": np.array(1.0), "size": size}
    values = evaluate_layers(nodes, {"x": x}, OPSET, known)
    assert values["padded"].error.sum() == 24 * 0.25  # what was padded is exact
    assert (values["both"].error == 0.25).all() and values["both"].error.shape == (1, 4, 2, 4)
    assert (values["flat"].likely == 0.125).all()


@pytest.mark.parametrize("operator", ["Sin", "LRN", "Exp", "ConvTranspose", "Gru"])
def test_an_operator_without_a_bound_is_refused_by_name(operator: str) -> None:
    with pytest.raises(BadInput, match=operator):
        single(operator, np.ones((1, 2, 3, 4), np.float32))


class AllSmooth(nn.Module):
    """Every function of SMOOTH that PyTorch and LiteRT have, of N x 64."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        functional = nn.functional
        return (
            torch.sigmoid(x),
            torch.tanh(x),
            torch.softmax(x, 1),
            torch.log_softmax(x, 1),
            functional.gelu(x),
            functional.hardswish(x),
            functional.leaky_relu(x, 0.3),
        )


LITERT = ("Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Gelu", "HardSwish", "LeakyRelu")
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Softmax": {"axis": 1},
    "LogSoftmax": {"axis": 1},
    "LeakyRelu": {"alpha": float(np.float32(0.3))},
}


def dense() -> Array:
    """float32 N x 64: even steps around zero, every power of two, and far beyond saturation."""
    random = np.random.default_rng(10)
    powers = 2.0 ** np.arange(-120, 12, 0.25)
    values = np.concatenate(
        [
            np.linspace(-20, 20, 60_000),
            np.linspace(-110, 110, 20_000),
            powers,
            -powers,
            random.normal(0, 3, 8000),
            [0.0, 1e4, -1e4, 1e6, -1e6],
        ]
    )
    values = values[: len(values) // 64 * 64].astype(np.float32)
    return np.concatenate([values.reshape(-1, 64), random.permutation(values).reshape(-1, 64)])


@pytest.fixture(scope="module")
def smooth_exact() -> dict[str, Bounded]:
    return {name: single(name, dense(), **ATTRIBUTES.get(name, {})) for name in bounds.SMOOTH}


def roundings(result: Bounded, found: Array) -> float:
    """The largest error in u max(1, |y|)."""
    off = np.abs(found.astype(np.float64) - result.value)
    return float((off / (U * np.maximum(1, np.abs(result.value)))).max())


@pytest.mark.parametrize("kernels", ["all", "disabled"])
@pytest.mark.parametrize("name", bounds.SMOOTH)
def test_onnxruntime_keeps_the_stated_roundings(
    name: str, kernels: str, smooth_exact: dict[str, Bounded]
) -> None:
    node = helper.make_node(name, ["image"], ["y"], **ATTRIBUTES.get(name, {}))
    content = network_of([node], (64,), {}, (64,)).model.SerializeToString()
    with Runtimes() as runtimes:
        session = runtimes.open(Configuration("onnxruntime", kernels), content, "one.onnx")
        (found,) = session.run(dense())
    judgement = against_bound(smooth_exact[name], found)
    assert judgement.passed, (judgement.worst, roundings(smooth_exact[name], found))


@pytest.fixture(scope="module")
def smooth_tflite(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import litert_torch

    path = tmp_path_factory.mktemp("smooth") / "smooth.tflite"
    litert_torch.convert(AllSmooth(), (torch.zeros(1, 64),)).export(str(path))
    return path.read_bytes()


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
def test_litert_keeps_the_stated_roundings(
    kernels: str, smooth_tflite: bytes, smooth_exact: dict[str, Bounded], tmp_path: Path
) -> None:
    with Runtimes() as runtimes:
        session = runtimes.open(Configuration("litert", kernels), smooth_tflite, "smooth.tflite")
        outputs = session.run(dense())
    wrong = {}
    for name, found in zip(LITERT, outputs, strict=True):
        judgement = against_bound(smooth_exact[name], found)
        if not judgement.passed:
            wrong[name] = (roundings(smooth_exact[name], found), judgement.worst)
    assert not wrong


def test_pytorch_keeps_the_stated_roundings(smooth_exact: dict[str, Bounded]) -> None:
    with torch.inference_mode():
        outputs = AllSmooth()(torch.from_numpy(dense()))
    wrong = {
        name: roundings(smooth_exact[name], found.numpy())
        for name, found in zip(LITERT, outputs, strict=True)
        if not against_bound(smooth_exact[name], found.numpy()).passed
    }
    assert not wrong
