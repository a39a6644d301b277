"""The reference against torch and ONNX Runtime, and what it refuses."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from pipeline.errors import BadInput
from pipeline.graph import output_size
from pipeline.reference import NEWEST, OLDEST, Reference, compute, execute

EPSILON = np.finfo(np.float64).eps


def evaluate(operator, *inputs, opset=NEWEST, outputs=1, **attributes):
    names = ["" if value is None else f"x{i}" for i, value in enumerate(inputs)]
    node = helper.make_node(operator, names, [f"y{i}" for i in range(outputs)], "n", **attributes)
    found = compute(node, inputs, opset)
    return found[0] if outputs == 1 else found


def real(seed, *shape, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def model(nodes, inputs, outputs, constants=(), opset=NEWEST):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(value, name) for name, value in dict(constants).items()],
    )
    # ONNX Runtime 1.31 reads no newer file format than 11.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def by_onnx_runtime(node, opset, **inputs):
    """What ONNX Runtime computes of one node with one output."""
    kinds = {n: helper.np_dtype_to_tensor_dtype(value.dtype) for n, value in inputs.items()}
    kind = kinds["zy"] if "zy" in kinds else kinds[node.input[0]]
    values = [(name, kinds[name], value.shape) for name, value in inputs.items()]
    made = model([node], values, [(node.output[0], kind, None)], opset=opset)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


# --- against torch ---------------------------------------------------------------------------

small = st.tuples(st.integers(1, 3), st.integers(1, 3))
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**32 - 1)


@given(sizes, small, small, small, st.tuples(*[st.integers(0, 3)] * 4), st.integers(1, 3), seeds)
def test_conv_is_torchs(size, kernel, stride, dilation, pads, groups, seed):
    top, left, bottom, right = pads
    for a in range(2):
        assume(output_size(size[a], kernel[a], 1, pads[a] + pads[a + 2], dilation[a]) >= 1)
    x = real(seed, 2, 2 * groups, *size)
    w, b = real(seed + 1, 3 * groups, 2, *kernel), real(seed + 2, 3 * groups)
    given_ = {"strides": stride, "dilations": dilation, "pads": pads, "group": groups}
    found = evaluate("Conv", x, w, b, **given_)

    def by_torch(*values):
        x, w, b = map(torch.tensor, values)
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, w, b, stride, 0, dilation, groups).numpy()

    # Two sums of n terms in any order differ by less than 2 n epsilon times that of magnitudes.
    terms = w[0].size + 1
    bound = 2 * terms * EPSILON * by_torch(np.abs(x), np.abs(w), np.abs(b))
    assert (np.abs(found - by_torch(x, w, b)) <= bound).all()


@given(sizes, small, small, st.tuples(st.integers(0, 1), st.integers(0, 1)), st.booleans(), seeds)
def test_pools_are_torchs(size, kernel, stride, pads, ceil_mode, seed):
    pads = tuple(min(p, k // 2) for p, k in zip(pads, kernel, strict=True))
    assume(all(n + 2 * p >= k for n, p, k in zip(size, pads, kernel, strict=True)))
    x = real(seed, 2, 3, *size)
    given_ = torch.tensor(x), kernel, stride, pads
    attributes = {"kernel_shape": kernel, "strides": stride, "pads": pads * 2}
    attributes["ceil_mode"] = int(ceil_mode)
    found, place = evaluate("MaxPool", x, outputs=2, **attributes)
    expected, within = functional.max_pool2d(*given_, ceil_mode=ceil_mode, return_indices=True)
    np.testing.assert_array_equal(found, expected.numpy())
    first = np.arange(6).reshape(2, 3, 1, 1) * size[0] * size[1]  # torch counts in each channel
    np.testing.assert_array_equal(place, within.numpy() + first)
    for include in (False, True):
        expected = functional.avg_pool2d(*given_, ceil_mode=ceil_mode, count_include_pad=include)
        found = evaluate("AveragePool", x, count_include_pad=int(include), **attributes)
        tolerance = 2 * 10 * EPSILON * np.abs(x).max()  # sums of up to 9 terms, and a division
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("storage_order", [0, 1])
def test_of_equal_maxima_the_first_counts_and_padding_never(storage_order):
    # Windows hold equal values, and those that padding might be worth.
    x = np.random.default_rng(3).choice([-np.inf, 0.0], (2, 3, 5, 4), p=[0.7, 0.3])
    attributes = {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1], "storage_order": storage_order}
    y, place = evaluate("MaxPool", x, outputs=2, **attributes)
    flat = x.swapaxes(2, 3).ravel() if storage_order else x.ravel()
    np.testing.assert_array_equal(flat[place], y)
    _, expected = functional.max_pool2d(
        torch.tensor(np.maximum(x, -1)), (3, 2), 1, (1, 1), return_indices=True
    )
    if not storage_order:  # torch has no other
        first = np.arange(6).reshape(2, 3, 1, 1) * 20
        np.testing.assert_array_equal(place, expected.numpy() + first)


ELEMENTWISE = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "HardSwish": functional.hardswish,
    "Gelu": functional.gelu,
    "Softplus": lambda x: functional.softplus(x, threshold=40),
}


@pytest.mark.parametrize("operator", ELEMENTWISE)
def test_elementwise_is_torchs_far_from_zero_too(operator):
    x = np.concatenate([real(0, 50), [0.0, -30.0, 30.0, -800.0, 800.0]])
    expected = ELEMENTWISE[operator](torch.tensor(x)).numpy()
    # Of the value, some roundings; of the input, what torch's own 1 + erf(x) cancels below zero.
    np.testing.assert_allclose(evaluate(operator, x), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("operator", [*ELEMENTWISE, "Softmax", "LogSoftmax", "LeakyRelu", "Elu"])
def test_the_dtype_is_the_inputs(operator, dtype):
    assert evaluate(operator, real(0, 3, 4, dtype=dtype)).dtype == dtype


@given(sizes, seeds)
def test_batch_normalization_is_torchs(size, seed):
    x, weight, bias, mean = real(seed, 2, 3, *size), *(real(seed + i, 3) for i in (1, 2, 3))
    variance = real(seed + 4, 3) ** 2
    expected = functional.batch_norm(
        *map(torch.tensor, (x, mean, variance, weight, bias)), eps=0.125
    ).numpy()
    found = evaluate("BatchNormalization", x, weight, bias, mean, variance, epsilon=0.125)
    # torch multiplies out x * a + b, so that what cancels is a * mean with some roundings.
    scale = np.abs(weight / np.sqrt(variance + 0.125))
    largest = (scale * (np.abs(mean) + np.abs(x).max()) + np.abs(bias)).max()
    assert np.abs(found - expected).max() <= 16 * EPSILON * largest


# --- against ONNX Runtime --------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds", [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")], ids=str
)
@pytest.mark.parametrize("group", [1, 2])
def test_q_linear_conv_is_onnx_runtimes(kinds, group):
    generator = np.random.default_rng(7)

    def integers(kind, *shape):
        limits = np.iinfo(kind)
        return generator.integers(limits.min, limits.max, shape, kind, endpoint=True)

    # Scales are powers of two: both sides round exact numbers, halves among them.
    inputs = {
        "x": integers(kinds[0], 3, 4, 9, 7),
        "sx": np.float32(0.5),
        "zx": np.array(3, kinds[0]),
        # Halved: x86 without VNNI saturates sums of larger ones, which are no constants here.
        "w": integers(kinds[1], 6, 4 // group, 3, 2) // np.array(2, kinds[1]),
        "sw": np.float32(2.0) ** -generator.integers(5, 9, 6).astype(np.float32),
        "zw": np.zeros(6, kinds[1]),
        "sy": np.float32(8),
        "zy": np.array(-5 if kinds[0] == "int8" else 100, kinds[0]),
        "b": generator.integers(-9999, 9999, 6, np.int32),
    }
    inputs |= {"sx": np.array(inputs["sx"]), "sy": np.array(inputs["sy"])}
    attributes = {"group": group, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}
    node = helper.make_node("QLinearConv", list(inputs), ["y"], **attributes)
    [found] = compute(node, list(inputs.values()), 13)
    expected = by_onnx_runtime(node, 13, **inputs)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == kinds[0]
    assert len(np.unique(found)) > 50  # not all saturated


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("operator", ["Conv", "MaxPool", "AveragePool"])
def test_auto_pad_is_onnx_runtimes(operator, auto_pad):
    inputs = {"x": real(0, 2, 3, 8, 11, dtype=np.float32)}
    attributes = {"auto_pad": auto_pad, "kernel_shape": [4, 2], "strides": [3, 2]}
    if operator == "Conv":
        inputs["w"] = real(1, 5, 3, 4, 2, dtype=np.float32)
        attributes["dilations"] = [1, 3] if auto_pad == "VALID" else [1, 1]
    node = helper.make_node(operator, list(inputs), ["y"], **attributes)
    [found] = compute(node, [value.astype(np.float64) for value in inputs.values()], 19)
    expected = by_onnx_runtime(node, 19, **inputs)
    assert found.shape == expected.shape
    # Sums of up to 24 products of single precision, each below 16.
    np.testing.assert_allclose(found, expected, rtol=0, atol=24 * 24 * 16 * 2.0**-24)


# --- integers --------------------------------------------------------------------------------


def test_quantize_rounds_halves_to_even_and_saturates():
    x = np.array([-1e9, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.0001, 1e9, np.inf])
    one = np.array(1.0)
    found = evaluate("QuantizeLinear", x, one, np.array(10, np.int8))
    assert found.tolist() == [-128, 8, 8, 10, 10, 12, 12, 13, 127, 127]
    assert evaluate("QuantizeLinear", x, one).dtype == np.uint8
    # The zero point is added to whole numbers: a float16 would round it away.
    half = np.array([0.5], np.float16)
    half = evaluate("QuantizeLinear", half, np.ones((), np.float16), np.array(4097, np.int16))
    assert half.tolist() == [4097]


def test_quantization_per_axis_and_back():
    x, scale = np.array([[[4, 4]], [[4, 4]]], np.float64), np.array([1, 0.5])
    zero = np.array([0, 100], np.int8)
    found = evaluate("QuantizeLinear", x, scale, zero, axis=0)
    assert found.tolist() == [[[4, 4]], [[108, 108]]]
    back = evaluate("DequantizeLinear", found, scale, zero, axis=-3)
    assert back.dtype == np.float64
    np.testing.assert_array_equal(back, x)
    bias = evaluate("DequantizeLinear", np.array([2**31 - 1, 1], np.int32), scale, axis=0)
    assert bias.tolist() == [2**31 - 1, 0.5]


def test_integers_are_exact():
    large = np.array([2**62 + 1, -7])
    assert evaluate("Add", large, np.array(1)).tolist() == [2**62 + 2, -6]
    assert evaluate("Div", np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])).tolist() == [
        3,
        -3,
        -3,
        3,
    ]
    assert evaluate("ReduceSum", np.array([[2**53, 1]])).tolist() == [[2**53 + 1]]
    assert evaluate("MatMul", large[:1], np.array([3])) == 3 * (2**62 + 1) - 2**64  # wraps around


def test_a_cast_to_float_leaves_the_exact_number():
    third = np.array([1 / 3])
    assert evaluate("Cast", third, to=TensorProto.FLOAT).tolist() == third.tolist()
    assert evaluate("Cast", third, to=TensorProto.FLOAT16) == np.float64(np.float16(1 / 3))
    assert evaluate("Cast", np.array([-2.9, 2.9]), to=TensorProto.INT8).tolist() == [-2, 2]
    assert evaluate("Cast", np.array([200]), to=TensorProto.INT8).tolist() == [-56]


@pytest.mark.parametrize(
    ("start", "end", "step", "expected"),
    [
        (-1, -(2**63), -1, [3, 2, 1, 0]),
        (9, -5, -2, [3, 1]),
        (-1, -4, -1, [3, 2, 1]),
        (-9, 2**63 - 1, 3, [0, 3]),
        (0, -9, 1, []),
        (-9, -9, -1, [0]),
    ],
)
def test_slices_count_from_the_back_and_stop_at_the_ends(start, end, step, expected):
    found = evaluate("Slice", np.arange(4), *(np.array([v]) for v in (start, end, 0, step)))
    assert found.tolist() == expected


# --- whole models ----------------------------------------------------------------------------


def small_model(**options):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], pads=[1, 0, 1, 0]),
        helper.make_node("Dropout", ["conv"], ["kept", ""]),
        helper.make_node("Clip", ["kept", "", "one"], ["clipped"]),
        helper.make_node("Flatten", ["clipped"], ["y"]),
    ]
    constants = {"w": real(0, 2, 3, 3, 2, dtype=np.float32), "one": np.array(1, np.float32)}
    values = [("x", TensorProto.FLOAT, ["N", 3, 4, 5])], [("y", TensorProto.FLOAT, ["N", 32])]
    return model(nodes, *values, constants, **options)


def test_a_model_is_computed_in_float64_and_rounded_once():
    made, x = small_model(), real(1, 2, 3, 4, 5, dtype=np.float32)
    values = execute(made, {"x": x})
    assert sorted(values) == ["clipped", "conv", "kept", "one", "w", "x", "y"]
    assert {value.dtype for value in values.values()} == {np.dtype(np.float64)}
    w = torch.tensor(numpy_helper.to_array(made.graph.initializer[0])).double()
    conv = functional.conv2d(torch.tensor(x).double(), w, padding=(1, 0)).numpy()
    np.testing.assert_allclose(values["conv"], conv, rtol=0, atol=1e-13)
    [found] = Reference.run_model(made, [x])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values["y"].astype(np.float32))
    [exact] = Reference.run_model(made, [x.astype(np.float64)])
    np.testing.assert_array_equal(exact, found)
    assert Reference.is_compatible(made)
    assert not Reference.supports_device("CUDA")


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({}, "inputs"),
        ({"z": np.zeros((1, 3, 4, 5), np.float32)}, "inputs"),
        ({"x": np.zeros((1, 3, 5, 4), np.float32)}, "shape"),
        ({"x": np.zeros((3, 4, 5), np.float32)}, "shape"),
        ({"x": np.zeros((1, 3, 4, 5), np.uint8)}, "dtype uint8"),
    ],
)
def test_inputs_that_do_not_fit(inputs, reason):
    with pytest.raises(BadInput, match=reason):
        execute(small_model(), inputs)


def test_models_that_are_not_valid():
    made = small_model()
    made.graph.node[0].input[0] = "nothing"
    with pytest.raises(BadInput, match="not a valid ONNX model"):
        Reference.prepare(made)
    mixed = model(
        [helper.make_node("Add", ["x", "half"], ["y"])],
        [("x", TensorProto.FLOAT, [1])],
        [("y", TensorProto.FLOAT, [1])],
        {"half": np.ones(1, np.float16)},
    )
    with pytest.raises(BadInput, match="not a valid ONNX model"):
        Reference.prepare(mixed)
    with pytest.raises(BadInput, match="CUDA"):
        Reference.prepare(small_model(), "CUDA")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT8E5M2, TensorProto.BFLOAT16, TensorProto.INT4])
def test_constants_of_other_dtypes(kind):
    constant = helper.make_tensor("c", kind, [1], [1])
    made = model(
        [
            helper.make_node("Constant", [], ["c"], value=constant),
            helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
        ],
        [],
        [("y", TensorProto.FLOAT, [1])],
    )
    with pytest.raises(BadInput, match=r"Constant \(c\): dtype \w+ is not supported"):
        execute(made, {})
    made.graph.initializer.append(made.graph.node.pop(0).attribute[0].t)
    made.graph.initializer[0].name = "c"
    with pytest.raises(BadInput, match=r"c: dtype \w+ is not supported"):
        execute(made, {})


# --- refusals --------------------------------------------------------------------------------

IMAGE = real(0, 1, 2, 5, 6)
KERNEL = real(1, 3, 2, 3, 2)
F1 = np.array(1.0)
ONE, TWO = {"kernel_shape": [1, 1]}, {"kernel_shape": [2, 2]}
AROUND = {"pads": [1, 1, 1, 1]}
INT32 = np.array(1, np.int32)
REFUSALS = [
    ("operator Einsum", "Einsum", [IMAGE], {"equation": "ijkl->i"}),
    ("attribute: dilation", "Conv", [IMAGE, KERNEL], {"dilation": [1, 1]}),
    ("value_string", "Constant", [], {"value_string": "text"}),
    ("dilations", "AveragePool", [IMAGE], {**TWO, "dilations": [1, 1], "opset": 18}),
    ("opset 29", "Relu", [IMAGE], {"opset": NEWEST + 1}),
    ("definition at opset 12", "Softmax", [IMAGE], {"opset": OLDEST - 1}),
    ("definition at opset 10", "Clip", [IMAGE], {"opset": 10}),
    ("Gelu", "Gelu", [IMAGE], {"opset": 19}),
    ("float8_e5m2", "Relu", [IMAGE.astype(helper.tensor_dtype_to_np_dtype(19))], {}),
    ("bfloat16", "Relu", [IMAGE.astype(helper.tensor_dtype_to_np_dtype(16))], {}),
    ("object", "Identity", [np.array(["a"], object)], {}),
    ("complex", "Identity", [np.ones(1, np.complex64)], {}),
    ("input X is int64", "Conv", [IMAGE.astype(np.int64), KERNEL.astype(np.int64)], {}),
    ("input W is float", "Conv", [IMAGE, KERNEL.astype(np.float32)], {}),
    ("input B is float", "Add", [IMAGE, F1.astype(np.float32)], {}),
    ("only images", "Conv", [IMAGE[0], KERNEL[0]], {}),
    ("only images", "Conv", [IMAGE[..., None], KERNEL[..., None]], {}),
    ("only images", "MaxPool", [IMAGE[0]], {"kernel_shape": [2]}),
    ("kernel_shape", "Conv", [IMAGE, KERNEL], {"kernel_shape": [2, 3]}),
    ("2 groups", "Conv", [IMAGE, KERNEL], {"group": 2}),
    ("expected one value", "Conv", [IMAGE, KERNEL, np.zeros(1)], {}),
    ("pads", "Conv", [IMAGE, KERNEL], {"pads": [0, 0, -1, 0]}),
    ("larger", "Conv", [IMAGE, KERNEL], {"dilations": [3, 3]}),
    ("auto_pad SAME", "Conv", [IMAGE, KERNEL], {"auto_pad": "SAME"}),
    ("pads or ceil_mode", "Conv", [IMAGE, KERNEL], {**AROUND, "auto_pad": "VALID"}),
    ("pads or ceil_mode", "MaxPool", [IMAGE], {**TWO, "auto_pad": "VALID", "ceil_mode": 1}),
    ("before opset 19", "AveragePool", [IMAGE], {**TWO, "auto_pad": "VALID", "opset": 18}),
    ("wholly in the padding", "AveragePool", [IMAGE], {**ONE, **AROUND}),
    ("wholly in the padding", "MaxPool", [IMAGE], {**ONE, **AROUND}),
    ("opset 22", "MaxPool", [IMAGE], {**ONE, "strides": [1, 3], "ceil_mode": 1, "opset": 21}),
    ("output size 3", "MaxPool", [IMAGE], {**TWO, "outputs": 3}),
    ("training_mode", "BatchNormalization", [IMAGE, *[np.ones(2)] * 4], {"training_mode": 1}),
    ("expected one value", "BatchNormalization", [IMAGE, *[np.ones(1)] * 4], {}),
    ("training_mode", "Dropout", [IMAGE, F1, np.array(True)], {}),
    ("expected a scalar", "Clip", [IMAGE, np.zeros(1)], {}),
    ("expected a scalar", "Pad", [IMAGE, np.ones(8, np.int64), np.zeros(1)], {}),
    ("mode wrap", "Pad", [IMAGE, np.ones(8, np.int64)], {"mode": "wrap", "opset": 18}),
    ("reflect more", "Pad", [IMAGE, np.ones(8, np.int64)], {"mode": "reflect"}),
    ("broadcast", "Gemm", [np.ones((1, 2)), np.ones((2, 3)), np.ones((4, 3))], {}),
    ("matrices", "Gemm", [np.ones((1, 1, 2)), np.ones((2, 3))], {}),
    ("divided by zero", "Div", [np.array([1]), np.array([0])], {}),
    ("may not be an integer", "Pow", [np.array([2]), np.array([-1])], {}),
    ("mean of int64", "ReduceMean", [np.array([1, 2])], {}),
    ("cannot hold", "Cast", [np.array([128.0])], {"to": TensorProto.INT8}),
    ("cannot hold", "Cast", [np.array([np.nan])], {"to": TensorProto.INT64}),
    ("FLOAT8E4M3FN", "Cast", [IMAGE], {"to": TensorProto.FLOAT8E4M3FN}),
    ("STRING", "Cast", [IMAGE], {"to": TensorProto.STRING}),
    ("NaN", "QuantizeLinear", [np.array([np.nan]), F1], {}),
    ("zero point of shape", "QuantizeLinear", [IMAGE, F1, np.zeros(1, np.int8)], {}),
    ("shape \\(1,\\)", "QuantizeLinear", [IMAGE, np.ones(1)], {}),
    ("precision", "QuantizeLinear", [IMAGE, F1], {"precision": TensorProto.FLOAT16}),
    ("output_dtype", "QuantizeLinear", [IMAGE, F1, np.array(0, np.int8)], {"output_dtype": 2}),
    ("output_dtype 6", "QuantizeLinear", [IMAGE, F1], {"output_dtype": TensorProto.INT32}),
    ("INT4", "QuantizeLinear", [IMAGE, F1], {"output_dtype": TensorProto.INT4}),
    ("int32 with a zero point", "DequantizeLinear", [INT32, F1, INT32], {}),
    ("output_dtype float16", "DequantizeLinear", [INT32, F1], {"output_dtype": 10}),
    ("out of bounds", "Gather", [IMAGE, np.array(1)], {}),
    ("reshape", "Reshape", [IMAGE, np.array([7, -1])], {}),
    ("allowzero", "Reshape", [np.zeros((0, 3)), np.array([0, -1])], {"allowzero": 1}),
    ("axes", "Squeeze", [IMAGE, np.array([0, 0])], {}),
    ("dimension", "Concat", [IMAGE, IMAGE[:, :, :1]], {"axis": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "operator", "inputs", "options"), REFUSALS)
def test_is_refused_by_name(reason, operator, inputs, options):
    with pytest.raises(BadInput, match=rf"^{operator} \(n\): .*{reason}"):
        evaluate(operator, *inputs, **options)


def test_what_is_at_the_edge_of_a_refusal_is_computed():
    # The older definitions where they are the same, and a padding that no window is alone in.
    q = [
        np.array(1, np.uint8)[None, None, None, None],
        np.array(1, np.float32),
        np.array(0, np.uint8),
    ]
    assert evaluate("QLinearConv", *q, *q, *q[1:], opset=10) == 1
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
    assert evaluate("MaxPool", IMAGE, opset=13, **pool).shape == (1, 2, 3, 3)
    pool = {"kernel_shape": [1, 1], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    assert evaluate("AveragePool", IMAGE, **pool)[0, 0, 0, 0] == 0


def test_other_domains_are_refused():
    node = helper.make_node("Relu", ["x"], ["y"], domain="com.example")
    with pytest.raises(BadInput, match=r"of domain com\.example"):
        compute(node, [IMAGE], NEWEST)
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(BadInput, match="2 inputs were given"):
        compute(node, [IMAGE, IMAGE], NEWEST)


def test_the_opsets_are_those_of_the_installed_onnx():
    assert onnx.defs.onnx_opset_version() >= NEWEST
