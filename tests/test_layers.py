"""The same layers are found in every file, their values laid open, and each cut out to run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import fx, nn

from deploy.runner.backends import as_input
from deploy.runner.contract import Contract, Quantization
from models.lenet import LeNet5Classic
from pipeline import program
from pipeline.errors import BadInput
from pipeline.export import EXPORTERS
from pipeline.precisions import INTEGERS, SMALL_WEIGHTS
from pipeline.quantization import quantize, quantize_int16x8, with_small_weights
from pipeline.verify.layers import IMAGE, align, read_network
from pipeline.verify.onnx_file import OnnxFile
from pipeline.verify.runtimes import Configuration, Runtimes
from pipeline.verify.subject import reference_chain
from pipeline.verify.tflite_file import TfliteFile

Array = npt.NDArray[Any]
FLOAT, INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8


# --- Files of small networks, which other tests take from here ------------------------------------


@dataclass(frozen=True)
class Exported:
    """A program and its files; `names` are its layers' names and kinds."""

    module: fx.GraphModule
    precision: str
    shape: tuple[int, int, int]
    names: tuple[tuple[str, str], ...]
    onnx: bytes
    tflite: bytes

    def reference(self) -> OnnxFile:
        return OnnxFile(self.onnx, "net.onnx", self.names)

    def lite(self) -> TfliteFile:
        network = self.reference().network
        return TfliteFile(self.tflite, "net.tflite", network.layers, network.image_shape)


def images(shape: Sequence[int], count: int = 8, seed: int = 0) -> Array:
    """uint8 N x C x H x W."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, *shape)).astype(np.uint8)


def export(
    network: nn.Module, shape: tuple[int, int, int], precision: str, keep: Sequence[str] = ()
) -> Exported:
    """A network with the weights that it has, in both formats; layers to `keep` stay in float."""
    module = program.plain(program.capture(network.eval(), shape).module())
    if precision == "int8":
        module = quantize(module, torch.from_numpy(images(shape, 16)), keep=keep)
    elif precision == "int16x8":
        module = quantize_int16x8(module, torch.from_numpy(images(shape, 16)))
    elif precision in SMALL_WEIGHTS:
        module = with_small_weights(module, precision)
        module = program.plain(program.capture(module, shape).module())  # as it is read again
    last, *taps = program.with_taps(module)[1]

    def quantization(node: fx.Node | None) -> Quantization | None:
        dtype = INTEGERS.get(precision, "")
        return Quantization(*program.quantization_of(module, node), dtype) if node else None

    first = next((node for node in module.graph.nodes if program.is_quantize(node)), None)
    end = program.output_node(module)
    contract = Contract(
        model="net",
        precision=precision,
        dataset="none",
        labels=tuple("0123456789"),
        input_shape=shape,
        preparation="picture",
        scores="logits",
        input=quantization(first),
        output=quantization(end if program.is_dequantize(end) else None),
        program_sha256="0" * 64,
        pipeline_version="0",
    )
    contents = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, exporter in EXPORTERS.items():
            path = Path(folder) / f"net-{precision}.{kind}"
            exporter(module, contract, path, ())
            contents[kind] = path.read_bytes()
    names = tuple((tap.layer, tap.kind) for tap in (*taps, last))
    return Exported(module, precision, shape, names, contents["onnx"], contents["tflite"])


class Residual(nn.Module):
    """Depthwise and pointwise convolution, normalisation, a sum and adaptive pooling."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 12, (3, 5), stride=(1, 2), padding=(1, 2), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(2))
        self.pool = nn.MaxPool2d((2, 1))
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.pointwise = nn.Conv2d(12, 12, 1)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, classes)
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norms[0](self.stem(x))))
        inner = torch.relu(self.norms[1](self.depthwise(x)))
        x = torch.relu(x + self.pointwise(inner))
        scores: torch.Tensor = self.head(self.average(x).flatten(1))
        return scores


def colours() -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    return Residual(3), (3, 10, 14)


def one_channel() -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(1)
    return Residual(1), (1, 14, 10)


def classic() -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(3)
    return LeNet5Classic(), LeNet5Classic.input_shape


@cache
def exported_once(
    make: Callable[[], tuple[nn.Module, tuple[int, int, int]]], precision: str
) -> Exported:
    return export(*make(), precision)


MADE = [(colours, "fp32"), (colours, "int8"), (one_channel, "fp32"), (classic, "int8")]


@pytest.fixture(params=MADE, ids=[f"{make.__name__}-{precision}" for make, precision in MADE])
def exported(request: pytest.FixtureRequest) -> Exported:
    return exported_once(*request.param)


@pytest.fixture
def residual() -> Exported:
    return exported_once(colours, "fp32")


# --- Cutting a graph ------------------------------------------------------------------------------


def graph(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: Mapping[str, Array],
    result: Sequence[int],
) -> onnx.ModelProto:
    """From `image`, N x `shape`, to `y`."""
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", *result])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(operator: str, given: str, made: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, given.split(), [made], **attributes)


def weights(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_branches_are_cut_where_a_value_is_used_twice() -> None:
    nodes = [
        node("Conv", "image w", "c"),
        node("Relu", "c", "r"),  # another layer: c is used by the sum, too
        node("Sigmoid", "r", "s"),
        node("Add", "c s", "a"),
        node("Relu", "a", "b"),
        node("GlobalAveragePool", "b", "g"),
        node("Flatten", "g", "f"),
        node("MatMul", "f m", "p"),
        node("Add", "p o", "y"),
    ]
    constants = {"w": weights(4, 3, 1, 1), "m": weights(4, 5), "o": weights(5)}
    network = read_network(graph(nodes, (3, 4, 6), constants, (5,)))
    cut = [(layer.name, layer.kind, layer.inputs) for layer in network.layers]
    assert cut == [
        ("c", "conv", ("image",)),
        ("r", "relu", ("c",)),
        ("s", "sigmoid", ("r",)),
        ("b", "add + relu", ("c", "s")),
        ("g", "average pool", ("b",)),
        ("y", "linear + add", ("g",)),
    ]
    assert [layer.shape for layer in network.layers][-3:] == [(4, 4, 6), (4, 1, 1), (5,)]
    operators = [n.op_type for n in network.layers[-1].nodes]
    assert operators == ["Flatten", "MatMul", "Add"]
    assert not network.quantized


def test_what_runtimes_merge_is_one_layer() -> None:
    norm = "s h v t"  # scale, shift, mean, variance
    nodes = [
        node("Conv", "image w", "c"),
        node("BatchNormalization", f"c {norm}", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "m", kernel_shape=[2, 1], strides=[2, 1]),
        node("Clip", "m low high", "k"),
        node("BatchNormalization", f"k {norm}", "y"),
    ]
    constants = {"w": weights(4, 3, 1, 1), "low": np.float32(0), "high": np.float32(6)} | {
        name: np.abs(weights(4)) for name in norm.split()
    }
    network = read_network(
        graph(nodes, (3, 4, 6), {n: np.asarray(v) for n, v in constants.items()}, (4, 2, 6))
    )
    cut = [(layer.name, layer.kind) for layer in network.layers]
    assert cut == [
        ("r", "conv + batch norm + relu"),
        ("k", "max pool + clip"),
        ("y", "batch norm"),
    ]


def quantized_graph() -> onnx.ModelProto:
    """Conv, ReLU and max pooling as an int8 file has them."""
    scale, zero = np.float32(0.5), np.int8(3)
    nodes = [
        node("QuantizeLinear", "image s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w s o", "dw"),
        node("Conv", "d dw", "c"),
        node("Relu", "c", "r"),
        node("QuantizeLinear", "r s z", "q1"),
        node("DequantizeLinear", "q1 s z", "d1"),
        node("MaxPool", "d1", "m", kernel_shape=[1, 2], strides=[1, 2]),
        node("QuantizeLinear", "m s z", "q2"),
        node("DequantizeLinear", "q2 s z", "y"),
    ]
    integers = np.random.default_rng(0).integers(-127, 128, (4, 3, 1, 1)).astype(np.int8)
    constants = {"s": scale, "z": zero, "o": np.int8(0), "w": integers}
    return graph(nodes, (3, 4, 6), {n: np.asarray(v) for n, v in constants.items()}, (4, 4, 3))


def test_an_int8_layer_ends_where_it_is_quantized() -> None:
    network = read_network(quantized_graph(), [("first", "conv + relu"), ("second", "max pool")])
    assert network.quantized and network.image == "q"
    assert network.image_quantization == Quantization(0.5, 3)
    cut = [(layer.name, layer.value, layer.inputs) for layer in network.layers]
    assert cut == [("first", "q1", ("image",)), ("second", "q2", ("first",))]
    assert {layer.quantization for layer in network.layers} == {Quantization(0.5, 3)}
    without = read_network(quantized_graph())
    assert [layer.kind for layer in without.layers] == ["conv + relu", "max pool"]


def test_a_name_and_its_kind_are_the_programs(exported: Exported) -> None:
    network = exported.reference().network
    assert [(layer.name, layer.kind) for layer in network.layers] == list(exported.names)
    known = [IMAGE]
    for layer in network.layers:
        assert layer.inputs and set(layer.inputs) <= set(known)
        known.append(layer.name)
    assert (network.layers[0].quantization is not None) == (exported.precision == "int8")
    kinds = {layer.kind.split(" + ")[0] for layer in network.layers}
    assert {"conv", "linear"} <= kinds


def test_a_graph_of_several_inputs_is_refused() -> None:
    model = graph([node("Relu", "image", "y")], (3,), {}, (3,))
    model.graph.input.append(helper.make_tensor_value_info("other", FLOAT, ["n", 3]))
    with pytest.raises(BadInput, match="2 inputs"):
        read_network(model)


def test_shapes_that_do_not_fit_are_refused() -> None:
    model = graph([node("Add", "image w", "y")], (3, 4, 6), {"w": weights(5)}, (3, 4, 6))
    with pytest.raises(BadInput):
        read_network(model)


def test_what_is_no_onnx_file_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"net\.onnx"):
        OnnxFile(b"no model", "net.onnx")


# --- Finding the same layers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "kinds", "groups"),
    [
        (["conv", "relu"], ["conv", "relu"], [[0], [1]]),
        (["conv", "conv"], ["conv", "mul", "add", "conv"], [[0, 1, 2], [3]]),
        (["mean", "linear"], ["average pool", "linear"], [[0], [1]]),
        (["conv", "linear"], ["conv", "linear", "add"], [[0], [1, 2]]),
        (["silu", "linear"], ["sigmoid", "mul", "linear"], [[0, 1], [2]]),
        (["conv", "silu", "linear"], ["conv", "sigmoid", "mul", "linear"], [[0], [1, 2], [3]]),
    ],
)
def test_layers_are_made_of_operators_in_order(
    heads: list[str], kinds: list[str], groups: list[list[int]]
) -> None:
    assert [list(group) for group in align(heads, kinds)] == groups


@pytest.mark.parametrize(
    ("heads", "kinds"),
    [
        (["conv", "relu"], ["conv"]),
        (["conv", "relu", "linear"], ["conv", "linear"]),
        (["conv", "conv"], ["conv"]),
        (["conv"], ["max pool", "conv"]),
        (["conv", "max pool", "linear"], ["conv", "average pool", "linear"]),
        (["conv"], []),
    ],
)
def test_a_layer_that_is_not_there_is_not_mapped(heads: list[str], kinds: list[str]) -> None:
    with pytest.raises(BadInput, match="not mapped"):
        align(heads, kinds)


def build(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "network",
    [
        build(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        build(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 5 * 7, 5)),
        build(nn.Conv2d(3, 4, 3), nn.ELU(), nn.Flatten(), nn.Linear(4 * 5 * 7, 5)),
        build(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 5 * 7, 5), nn.Softmax(1)),
    ],
    ids=["ends in flatten", "silu", "elu", "gelu and softmax"],
)
def test_common_networks_are_mapped_in_both_formats(network: nn.Module) -> None:
    assert_values_agree(export(network, (3, 7, 9), "fp32"))


# --- Values laid open -----------------------------------------------------------------------------


def run_in(kind: str, content: bytes, *values: Array) -> list[Array]:
    """Every output, in the runtime that ships."""
    configuration = {
        "onnx": Configuration("onnxruntime", "disabled"),
        "tflite": Configuration("litert", "reference"),
    }[kind]
    with Runtimes() as runtimes:
        return runtimes.open(configuration, content, f"net.{kind}").run(*values)


def image_of(made: Exported, kind: str) -> Array:
    int8 = made.precision == "int8" and kind == "tflite"
    return as_input(images(made.shape), np.dtype(np.int8 if int8 else np.float32))


def laid_open(made: Exported, kind: str) -> tuple[Array, dict[str, Array]]:
    file = made.reference() if kind == "onnx" else made.lite()
    image = file.image(image_of(made, kind))
    return file.split([run_in(kind, content, image) for content in file.observed()])


def assert_values_agree(made: Exported) -> None:
    """Both formats say the same of every layer as the reference, which only sums otherwise."""
    network = made.reference().network
    chain = reference_chain(network, images(made.shape))
    for kind in ("onnx", "tflite"):
        final, values = laid_open(made, kind)
        assert list(values) == [layer.name for layer in network.layers]
        for layer in network.layers:
            found = values[layer.name]
            assert found.shape == (8, *layer.shape), (kind, layer.name)
            if network.quantized:
                off = np.abs(found.astype(int) - chain[layer.name])
                assert found.dtype == np.int8
                assert off.max() <= 3, (kind, layer.name)
            else:
                assert found.dtype == np.float32
                expected = chain[layer.name].value
                assert expected.std() > 1e-4
                size = np.abs(expected).max()
                assert np.abs(found - expected).max() < 1e-5 * size, (kind, layer.name)
        content = made.onnx if kind == "onnx" else made.tflite
        (whole,) = run_in(kind, content, image_of(made, kind))
        assert np.array_equal(final, whole)


def test_both_formats_say_the_same_of_every_layer(exported: Exported) -> None:
    assert_values_agree(exported)


def test_observed_is_the_file_with_more_outputs(exported: Exported) -> None:
    first, *_ = exported.reference().observed()
    observed = onnx.load_from_string(first)
    original = onnx.load_from_string(exported.onnx)
    assert list(observed.graph.node) == list(original.graph.node)
    assert list(observed.graph.initializer) == list(original.graph.initializer)
    onnx.checker.check_model(observed)
    names = [value.name for value in observed.graph.output]
    assert names[0] == original.graph.output[0].name
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_a_layer_alone_computes_what_it_does_in_place(kind: str, exported: Exported) -> None:
    file = exported.reference() if kind == "onnx" else exported.lite()
    network = exported.reference().network
    values = laid_open(exported, kind)[1]
    dtype = np.dtype(np.int8 if network.quantized else np.float32)
    values[IMAGE] = as_input(images(exported.shape), dtype)
    for layer in network.layers:
        given = [file.given(name, values[name]) for name in layer.inputs]
        (found,) = run_in(kind, file.slice(layer), *given)
        assert np.array_equal(file.canonical(layer.name, found), values[layer.name]), layer.name


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_a_foreign_layer_is_refused(kind: str, exported: Exported) -> None:
    file = exported.reference() if kind == "onnx" else exported.lite()
    layers = exported.reference().network.layers
    foreign = replace(layers[-1], inputs=(IMAGE,))
    with pytest.raises(BadInput, match=layers[-1].name):
        file.slice(foreign)


def test_layouts_follow_from_the_operators(residual: Exported) -> None:
    """12 x 10 x 7 in the program is 10 x 7 x 12 in the file, and is turned back."""
    file, network = residual.lite(), residual.reference().network
    shapes = {layer.name: layer.shape for layer in network.layers}
    model = file._model
    tensors = model.subgraphs[0].tensors
    turned = 0
    for name, shape in shapes.items():
        stored = tuple(int(size) for size in tensors[file._tensors[name]].shape)[1:]
        value = np.arange(2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)
        given = file.given(name, value)
        assert given.shape == (2, *stored)
        if len(shape) == len(stored) == 3:
            assert stored == (*shape[1:], shape[0])
            assert np.array_equal(given, value.transpose(0, 2, 3, 1))
            turned += shape[1] > 1
        assert np.array_equal(file.canonical(name, given), value)
    assert turned >= 4


def test_a_file_whose_input_has_another_shape_is_refused(residual: Exported) -> None:
    network = residual.reference().network
    with pytest.raises(BadInput, match=r"net\.tflite"):
        TfliteFile(residual.tflite, "net.tflite", network.layers, (3, 9, 14))


def test_what_is_no_tflite_file_is_refused_by_name(residual: Exported) -> None:
    network = residual.reference().network
    for content in (b"no model", b"", residual.tflite[:100]):
        with pytest.raises(BadInput, match=r"net\.tflite"):
            TfliteFile(content, "net.tflite", network.layers, network.image_shape)


def test_a_file_with_other_layers_is_not_mapped(residual: Exported) -> None:
    other = export(build(nn.Flatten(), nn.Linear(420, 5)), (3, 10, 14), "fp32")
    network = residual.reference().network
    with pytest.raises(BadInput, match="not mapped"):
        TfliteFile(other.tflite, "net.tflite", network.layers, network.image_shape)
    with pytest.raises(BadInput, match="not mapped"):
        OnnxFile(other.onnx, "net.onnx", residual.names)
