from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy.runner.contract import Contract
from pipeline import export, program
from pipeline.errors import BadInput, Missing
from pipeline.graph import Field, output_size, read_graph, same_padding
from pipeline.network import find_network


@dataclass(frozen=True)
class Case:
    """Sizes of the lecture, (rows, columns); `padding` is the sum of both sides."""

    name: str
    size: tuple[int, int]
    kernel: tuple[int, int]
    expected: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    layers: int = 1


CASES = [
    Case("valid", (28, 28), (5, 5), (24, 24)),
    Case("same when total padding is k - 1", (28, 28), (5, 5), (28, 28), padding=(4, 4)),
    Case("forty valid 5 x 5 layers", (224, 224), (5, 5), (64, 64), layers=40),
    Case("stride 3 down, 2 across", (3, 3), (2, 2), (2, 2), padding=(2, 2), stride=(3, 2)),
    Case("even kernel, same", (28, 28), (4, 4), (28, 28), padding=(3, 3)),
    Case("pooling, odd size", (7, 6), (2, 2), (3, 3), stride=(2, 2)),
    Case("dilated", (12, 20), (3, 5), (8, 8), dilation=(2, 3)),
    Case("all at once", (17, 9), (3, 2), (5, 2), (1, 0), (3, 4), (2, 3)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_output_size(case):
    window = list(zip(case.kernel, case.stride, case.padding, case.dilation, strict=True))
    sizes = [
        reduce(lambda n, _, axis=axis: output_size(n, *window[axis]), range(case.layers), size)
        for axis, size in enumerate(case.size)
    ]
    assert tuple(sizes) == case.expected


@pytest.mark.parametrize(
    ("kernel", "expected"), [(1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (4, (2, 1)), (5, (2, 2))]
)
def test_same_padding_puts_the_odd_row_first(kernel, expected):
    assert same_padding(kernel) == expected
    assert output_size(28, kernel, 1, sum(expected)) == 28


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [
        ("forty 5 x 5 layers", [(5, 1, 1)] * 40, 161),
        ("two 3 x 3 see as much as one 5 x 5", [(3, 1, 1)] * 2, 5),
        ("dilation", [(3, 1, 1), (3, 1, 2), (3, 1, 4)], 15),
        ("stride", [(3, 2, 1), (3, 1, 1)], 7),
        ("LeNet-5", [(5, 1, 1), (2, 2, 1), (5, 1, 1), (2, 2, 1)], 16),
    ],
)
def test_receptive_field(name, layers, expected):
    assert reduce(lambda field, layer: field.through(*layer), layers, Field()).size == expected


def weights(**shapes):
    return [numpy_helper.from_array(np.ones(shape, "f"), name) for name, shape in shapes.items()]


def write(path, nodes, initializers=(), shape=(3, 17, 26), rank=4):
    """Save an ONNX model from `x` to the last node's output, of `rank` axes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [None] * rank)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def inferred(path):
    """Every value's shape without the batch, by ONNX itself."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
    values = [*model.graph.value_info, *model.graph.output]
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:]) for v in values}


def described(path):
    return {layer.output: layer.output_shape for layer in read_graph(path).layers}


node = helper.make_node
RESIDUAL = (
    [
        node("Conv", ["x", "w", "b"], ["a"], strides=[3, 2], pads=[2, 0, 1, 1]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "depthwise"], ["c"], group=6, dilations=[1, 2], pads=[1, 2, 1, 2]),
        node("BatchNormalization", ["c", "six", "six", "six", "six"], ["n"]),
        node("Add", ["r", "n"], ["s"]),
        node("Conv", ["s", "grouped"], ["d"], group=3),
        node("MaxPool", ["d"], ["p"], kernel_shape=[2, 3], strides=[2, 3], ceil_mode=1),
        node("AveragePool", ["d"], ["q"], kernel_shape=[2, 3], strides=[2, 3]),
        node("Conv", ["p", "point"], ["t"]),
        node("GlobalAveragePool", ["t"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "v", "six"], ["y"], transB=1),
    ],
    weights(
        w=(6, 3, 5, 4),
        b=6,
        depthwise=(6, 1, 3, 3),
        six=6,
        grouped=(9, 2, 1, 1),
        point=(4, 9, 1, 1),
        v=(6, 4),
    ),
    2,
)
RESHAPED = (
    [
        node("AveragePool", ["x"], ["p"], kernel_shape=[3, 5], strides=[2, 5], pads=[1, 0, 0, 3]),
        node("Concat", ["p", "p"], ["c"], axis=1),
        node("Reshape", ["c", "shape"], ["r"]),
        node("MatMul", ["r", "w"], ["m"]),
        node("Add", ["m", "b"], ["s"]),
        node("Softmax", ["s"], ["y"]),
    ],
    [*weights(w=(240, 5), b=5), numpy_helper.from_array(np.array([-1, 240]), "shape")],
    2,
)
BRANCHES = (
    [
        node("ReduceMean", ["x", "axes"], ["m"]),
        node("Sigmoid", ["m"], ["g"]),
        node("Mul", ["x", "g"], ["s"]),
        node("Conv", ["s", "w"], ["rows"]),
        node("Conv", ["s", "v"], ["columns"]),
        node("Add", ["rows", "columns"], ["y"]),  # N x 2 x 1 x 26 and N x 2 x 17 x 1
    ],
    [*weights(w=(2, 3, 17, 1), v=(2, 3, 1, 26)), numpy_helper.from_array(np.array([2, 3]), "axes")],
    4,
)
CHANNEL_MEAN = (
    [node("ReduceMean", ["x", "axes"], ["m"]), node("Relu", ["m"], ["y"])],
    [numpy_helper.from_array(np.array([1]), "axes")],
    4,
)
MODELS = {
    "residual": RESIDUAL,
    "reshaped": RESHAPED,
    "branches": BRANCHES,
    "mean of channels": CHANNEL_MEAN,
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_layers_shape_is_what_onnx_infers(tmp_path, model):
    nodes, held, rank = model
    path = write(tmp_path / "m.onnx", nodes, held, rank=rank)
    shapes = described(path)
    assert len(shapes) == len(nodes)
    assert shapes == inferred(path)


def test_parameters_and_macs_of_unlike_layers(tmp_path):
    path = write(tmp_path / "m.onnx", *RESIDUAL[:2], rank=2)
    layers = {layer.name: layer for layer in read_graph(path).layers}
    assert layers["a"].output_shape == (6, 6, 12)
    found = {name: (layer.parameters, layer.macs) for name, layer in layers.items() if layer.macs}
    assert found == {
        "a": (6 * 3 * 5 * 4 + 6, 6 * 3 * 5 * 4 * 6 * 12),
        "c": (6 * 3 * 3, 6 * 3 * 3 * 6 * 12),
        "d": (9 * 2, 9 * 2 * 6 * 12),
        "t": (4 * 9, 4 * 9 * 3 * 4),
        "y": (6 * 4 + 6, 6 * 4),
    }


sides = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(
    operator=st.sampled_from(["Conv", "MaxPool"]),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    kernel=sides,
    stride=sides,
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 4)] * 4),
)
def test_any_window_has_the_shape_that_onnx_infers(
    tmp_path_factory, operator, size, kernel, stride, dilation, pads
):
    for axis in range(2):
        assume(dilation[axis] * (kernel[axis] - 1) < size[axis] + pads[axis] + pads[axis + 2])
        assume(operator == "Conv" or max(pads[axis], pads[axis + 2]) < kernel[axis])
    window = {"kernel_shape": kernel, "strides": stride, "pads": pads, "dilations": dilation}
    inputs = ["x", "w"] if operator == "Conv" else ["x"]
    held = weights(w=(2, 3, *kernel)) if operator == "Conv" else []
    path = tmp_path_factory.getbasetemp() / "window.onnx"
    write(path, [node(operator, inputs, ["y"], **window)], held, (3, *size))
    assert described(path) == inferred(path)


@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel=sides,
    stride=sides,
    part=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_rounding_up_gives_the_shape_that_runtimes_compute(
    tmp_path_factory, size, kernel, stride, part
):
    """onnx.shape_inference (1.23) also counts windows that lie in the padding or outside only."""
    padding = [min(p, k // 2) for p, k in zip(part, kernel, strict=True)]
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=True)
    path = tmp_path_factory.getbasetemp() / "ceil.onnx"
    window = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2, "ceil_mode": 1}
    write(path, [node("MaxPool", ["x"], ["y"], **window)], (), (3, *size))
    assert described(path) == {"y": tuple(pool(torch.zeros(3, *size)).shape)}


def test_a_window_larger_than_its_input_is_refused(tmp_path):
    conv = [node("Conv", ["x", "w"], ["y"])]
    path = write(tmp_path / "m.onnx", conv, weights(w=(2, 3, 5, 5)), (3, 4, 9))
    with pytest.raises(BadInput, match=r"m\.onnx: Conv"):
        read_graph(path)


# (operator, kernel, stride, dilation), each (rows, columns)
STACKS = {
    "two convolutions": [("Conv", (3, 5), (1, 1), (1, 1)), ("Conv", (2, 4), (1, 1), (1, 1))],
    "unequal strides": [("Conv", (3, 2), (2, 3), (1, 1)), ("Conv", (3, 4), (1, 1), (1, 1))],
    "dilation": [("Conv", (3, 3), (1, 1), (2, 1)), ("Conv", (3, 2), (2, 1), (1, 3))],
    "conv and pool": [
        ("Conv", (5, 3), (1, 1), (1, 1)),
        ("AveragePool", (2, 3), (2, 3), (1, 1)),
        ("Conv", (3, 3), (1, 1), (1, 2)),
        ("AveragePool", (3, 2), (2, 1), (1, 1)),
    ],
}


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_the_receptive_field_is_what_influences_the_centre(tmp_path, stack):
    nodes, held, modules = [], [], []
    for i, (operator, kernel, stride, dilation) in enumerate(stack):
        inputs, window = ["x" if i == 0 else f"y{i - 1}"], {"strides": stride}
        if operator == "Conv":
            inputs.append(f"w{i}")
            held += weights(**{f"w{i}": (1, 1, *kernel)})
            window["dilations"] = dilation
            modules.append(nn.Conv2d(1, 1, kernel, stride, dilation=dilation, bias=False))
            nn.init.ones_(modules[-1].weight)
        else:
            window["kernel_shape"] = kernel
            modules.append(nn.AvgPool2d(kernel, stride))
        nodes.append(node(operator, inputs, [f"y{i}"], **window))
    field = read_graph(write(tmp_path / "m.onnx", nodes, held, (1, 61, 64))).layers[-1].field
    image = torch.zeros(1, 1, 61, 64, requires_grad=True)
    scores = nn.Sequential(*modules)(image)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows, columns = image.grad[0, 0].nonzero().T
    span = [int(axis.max() - axis.min()) + 1 for axis in (rows, columns)]
    assert [axis.size for axis in field] == span


def test_lenet5_is_as_large_as_the_lecture_says(tmp_path):
    shape = (1, 28, 28)
    module = program.plain(program.capture(find_network("lenet5").build(10), shape).module())
    labels, path = tuple("0123456789"), tmp_path / "lenet5.onnx"
    contract = Contract(
        model="lenet5",
        precision="fp32",
        dataset="digits",
        labels=labels,
        input_shape=shape,
        preparation="glyph",
        scores="logits",
        input=None,
        output=None,
        program_sha256="",
        pipeline_version="",
    )
    export.EXPORTERS["onnx"](module, contract, path, ())
    graph = read_graph(path)
    assert (graph.macs, graph.parameters) == (416_520, 61_706)
    convolutions = [layer for layer in graph.layers if layer.operator == "Conv"]
    assert [layer.macs for layer in convolutions] == [117_600, 240_000]
    assert [layer.field[0].size for layer in convolutions] == [5, 14]
    assert graph.layers[-1].output_shape == (10,)


UNKNOWN = {
    "operator": ([node("Einsum", ["x"], ["y"], equation="nchw->nc")], [], ["Einsum", "known are"]),
    "constants only": ([node("Add", ["w", "w"], ["y"])], weights(w=3), ["Add", "constants only"]),
    "auto_pad": (
        [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")],
        weights(w=(1, 3, 2, 2)),
        ["Conv", "auto_pad SAME_UPPER"],
    ),
    "concat of rows": ([node("Concat", ["x", "x"], ["y"], axis=2)], [], ["Concat", "axis 2"]),
    "flatten of columns": ([node("Flatten", ["x"], ["y"], axis=3)], [], ["Flatten", "axis"]),
}


@pytest.mark.parametrize(("nodes", "held", "words"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_is_named(tmp_path, nodes, held, words):
    path = write(tmp_path / "m.onnx", nodes, held)
    with pytest.raises(BadInput) as caught:
        read_graph(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


RESHAPE = node("Reshape", ["x", "c"], ["y"])
CONSTANTS = {
    "a batch that is kept": ([RESHAPE], [0, -1], (3 * 17 * 26,)),
    "channels that are kept": ([RESHAPE], [0, 0, -1], (3, 17 * 26)),
    "a node of integers": (
        [node("Constant", [], ["c"], value_ints=[-1, 39, 34]), RESHAPE],
        None,
        (39, 34),
    ),
    "a node of one float": (
        [node("Constant", [], ["c"], value_float=2.0), node("Mul", ["x", "c"], ["y"])],
        None,
        (3, 17, 26),
    ),
}


@pytest.mark.parametrize(("nodes", "held", "expected"), CONSTANTS.values(), ids=CONSTANTS)
def test_every_way_to_write_a_constant_is_read(tmp_path, nodes, held, expected):
    initializers = [numpy_helper.from_array(np.array(held), "c")] if held else []
    path = write(tmp_path / "m.onnx", nodes, initializers, rank=len(expected) + 1)
    assert described(path) == {"y": expected} == {"y": inferred(path)["y"]}


def test_an_int8_file_describes_itself_like_the_float_one(tmp_path):
    def steps(name, of, scale="scale"):
        return [
            node("QuantizeLinear", [of, scale, "zero"], [f"{name}q"]),
            node("DequantizeLinear", [f"{name}q", scale, "zero"], [name]),
        ]

    scale = numpy_helper.from_array(np.array(0.5, "f"), "scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    integers = numpy_helper.from_array(np.ones((2, 3, 3, 4), np.int8), "wq")
    conv = node("Conv", ["x", "w"], ["c"], strides=[1, 2])
    quantized = [
        *steps("xd", "x"),
        node("DequantizeLinear", ["wq", "scale", "zero"], ["w"]),
        node("Conv", ["xd", "w"], ["c"], strides=[1, 2]),
        *steps("y", "c"),
    ]
    (plain,) = read_graph(write(tmp_path / "fp32", [conv], weights(w=(2, 3, 3, 4)))).layers
    (int8,) = read_graph(write(tmp_path / "int8", quantized, [scale, zero, integers])).layers
    assert replace(int8, inputs=plain.inputs) == plain


def whole(tmp_path):
    return write(tmp_path / "whole", *RESIDUAL[:2], rank=2).read_bytes()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (lambda _: None, Missing),
        (lambda _: b"", BadInput),
        (lambda _: b"not ONNX at all", BadInput),
        (lambda _: b"\x89PNG\r\n\x1a\n" + bytes(64), BadInput),
        (lambda folder: whole(folder)[:-40], BadInput),
        (lambda folder: whole(folder)[:200], BadInput),
    ],
    ids=["missing", "empty", "text", "a picture", "cut at its end", "cut"],
)
def test_a_file_that_is_no_onnx_is_named(tmp_path, content, error):
    path = tmp_path / "model.onnx"
    if (found := content(tmp_path)) is not None:
        path.write_bytes(found)
    with pytest.raises(error, match=r"model\.onnx: no") as caught:
        read_graph(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "shape", [(3, "height", 26), (3, 17), (3,)], ids=["a free size", "three axes", "two axes"]
)
def test_the_input_must_be_an_image_of_known_size(tmp_path, shape):
    path = write(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])], shape=shape)
    with pytest.raises(BadInput, match=r"m\.onnx: expected one input of N x C x H x W"):
        read_graph(path)
