"""int16x8: int16 values with int8 weights, in the program, in TFLite, and in its kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools import flatbuffer_utils as flatbuffer
from conftest import called
from hypothesis import given
from hypothesis import strategies as st
from test_isolation import judged, shipped_only, small
from test_layers import Exported, exported_once, images
from torch import fx, nn

from deploy.runner.backends import as_input
from deploy.runner.bundle import Bundle, seal
from deploy.runner.contract import Contract, Quantization
from deploy.runner.errors import BadInput as DeviceBadInput
from pipeline import program
from pipeline.cli_options import chosen_of
from pipeline.errors import BadInput
from pipeline.export.tflite_biases import with_int64_biases
from pipeline.quantization import quantize, quantize_int16x8
from pipeline.quantization.rules_int16 import Int16x8Quantizer
from pipeline.verify import int16
from pipeline.verify.fixed_point import fixed_point
from pipeline.verify.report import artefact_record
from pipeline.verify.tflite_file import parse

assert shipped_only  # a fixture

Array = npt.NDArray[Any]
ALL = np.arange(-32768, 32768)


def frozen(*layers: nn.Module, shape: tuple[int, int, int] = (3, 8, 8)) -> fx.GraphModule:
    torch.manual_seed(0)
    network = nn.Sequential(*layers).eval()
    return program.plain(program.capture(network, shape).module())


class Branches(nn.Module):
    """What `small` has not: depthwise, without biases, ReLU, maxima, tanh, sums, products, means.

    Layers are made in another order than they are used in.
    """

    input_shape = (3, 10, 14)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 5)
        self.pointwise = nn.Conv2d(12, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.stem = nn.Conv2d(3, 12, (3, 5), stride=(1, 2), padding=(1, 2), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), (2, 1))
        y = nn.functional.relu6(self.depthwise(x))
        y = torch.tanh(self.pointwise(y) - x)
        y = torch.relu(x + y) * x
        scores: torch.Tensor = self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))
        return scores


def branches() -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    return Branches(), Branches.input_shape


# --- The program ----------------------------------------------------------------------------------


def test_values_are_int16_around_zero_and_weights_those_of_int8() -> None:
    module = frozen(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 5))
    pixels = torch.from_numpy(images((3, 8, 8), 16))
    made, int8 = quantize_int16x8(module, pixels), quantize(module, pixels)
    found = [node for node in made.graph.nodes if program.is_quantize(node)]
    assert {node.args[-1] for node in found} == {torch.int16}
    assert {program.quantization_of(made, node)[1] for node in found} == {0}
    scales = {str(node.args[0]): program.quantization_of(made, node)[0] for node in found}
    assert next(iter(scales.values())) == pytest.approx(1 / 255)
    assert scales["sigmoid"] == 2.0**-15
    for one, other in zip(weights(made), weights(int8), strict=True):
        assert torch.equal(one, other)
    exact, near = (program.run(each, pixels)[0] for each in (module, made))
    assert torch.allclose(exact, near, atol=0.02)


def weights(module: fx.GraphModule) -> list[torch.Tensor]:
    nodes = [node for node in module.graph.nodes if node.target in program.WEIGHTED]
    return [program.constant(module, node.args[1]) for node in nodes]


@pytest.mark.parametrize("largest", [8.0, 8.003, 4.0])
def test_no_scale_is_a_power_of_two(largest: float) -> None:
    spec = Int16x8Quantizer.constant
    limits = {"quant_min": spec.quant_min, "quant_max": spec.quant_max}
    observer = spec.observer_or_fake_quant_ctr(dtype=spec.dtype, qscheme=spec.qscheme, **limits)
    observer(torch.tensor([-1.0, largest]))
    scale = float(observer.calculate_qparams()[0])
    assert largest / 32767.5 <= scale * (1 + 1e-6) < 1.004 * largest / 32767.5
    assert abs(np.log2(scale) - np.rint(np.log2(scale))) > 1e-3


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((nn.Flatten(), nn.Linear(192, 5), nn.Softmax(1)), "int16x8: no quantization rule for"),
        ((nn.Conv2d(3, 4, 3), nn.GELU()), "int16x8: no quantization rule for aten.gelu"),
    ],
)
def test_operators_whose_kernels_are_not_known_are_refused(
    layers: tuple[nn.Module, ...], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        quantize_int16x8(frozen(*layers), torch.from_numpy(images((3, 8, 8), 2)))


class AddsOne(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_a_constant_that_is_added_is_refused() -> None:
    module = frozen(nn.Conv2d(3, 4, 3), AddsOne())
    with pytest.raises(BadInput, match="adds a constant, which the TFLite converter cannot"):
        quantize_int16x8(module, torch.from_numpy(images((3, 8, 8), 2)))


def test_a_bias_that_has_no_integer_is_refused() -> None:
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.bias[0] = 200.0  # of a scale of 2^-16 / 255
    with pytest.raises(BadInput, match="2\\^31 times the scale"):
        quantize_int16x8(frozen(layer), torch.from_numpy(images((3, 8, 8), 2)))


# --- The kernels ----------------------------------------------------------------------------------


BUILTIN, REFERENCE = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.BUILTIN_REF


def kernel(code: int, resolver: OpResolverType, scales: Sequence[float], *values: Array) -> Array:
    """What LiteRT computes of int16 values by one operator; the last scale is the result's."""
    model, graph, entry = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    entry.builtinCode = entry.deprecatedBuiltinCode = code
    entry.version = 3 if len(values) == 1 else 1
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = list(range(len(values))), [len(values)]
    graph.tensors = []
    for number, scale in enumerate(scales):
        tensor = schema.TensorT()
        tensor.name, tensor.shape = b"%d" % number, [1, len(values[0])]
        tensor.type, tensor.buffer = schema.TensorType.INT16, 0
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.array([scale], np.float32)
        tensor.quantization.zeroPoint = np.array([0])
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs, graph.operators = operator.inputs, operator.outputs, [operator]
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [entry]
    model.buffers = [schema.BufferT()]
    interpreter = Interpreter(
        model_content=bytes(flatbuffer.convert_object_to_bytearray(model)),
        experimental_op_resolver_type=resolver,
    )
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), values, strict=True):
        interpreter.set_tensor(detail["index"], value.astype(np.int16)[None])
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])


def single(*scales: float) -> list[float]:
    """As files have them."""
    return np.array(scales, np.float32).astype(float).tolist()


OP = schema.BuiltinOperator


@pytest.mark.parametrize("resolver", [BUILTIN, REFERENCE])
@pytest.mark.parametrize("scale", [2.0**-15, 2.3e-4, 1e-3, 0.05])
@pytest.mark.parametrize(("code", "name"), [(OP.LOGISTIC, "Sigmoid"), (OP.TANH, "Tanh")])
def test_the_tables_give_every_value_that_the_kernels_give(
    code: int, name: str, scale: float, resolver: OpResolverType
) -> None:
    scales = single(scale, 2.0**-15)
    (scheme,) = int16.KERNELS[name].values()
    found = kernel(code, resolver, scales, ALL)
    assert np.array_equal(scheme([ALL], scales[:1], scales[1]), found)


def test_the_table_is_what_tanh_returns_of_its_entries() -> None:
    entries = kernel(OP.TANH, BUILTIN, single(2 / 12288, 2.0**-15), 128 * np.arange(256))
    assert np.array_equal(entries.astype(int) + 2**15, int16.TABLE)


@pytest.mark.parametrize("scales", [(2.3e-4, 3.1e-4, 3e-4), (3.1e-4, 2.9e-5, 7e-4)])
@pytest.mark.parametrize("resolver", [BUILTIN, REFERENCE])
@pytest.mark.parametrize(("code", "name"), [(OP.ADD, "Add"), (OP.SUB, "Sub"), (OP.MUL, "Mul")])
def test_sums_and_products_are_those_of_the_kernels(
    code: int, name: str, resolver: OpResolverType, scales: tuple[float, ...]
) -> None:
    *given, result = single(*scales)
    values = list(np.random.default_rng(0).integers(-32768, 32768, (2, 100_000)))
    found = kernel(code, resolver, [*given, result], *values)
    wanted = [
        np.clip(scheme(values, given, result), -32768, 32767)
        for scheme in int16.KERNELS[name].values()
    ]
    assert any(np.array_equal(found, each) for each in wanted)


@given(st.integers(-(2**40), 2**40), st.floats(2**-20, 0.9))
def test_a_multiplier_of_16_bits_is_that(total: int, real: float) -> None:
    mantissa, shift = (int(part) for part in fixed_point(np.array(real)))
    reduced = min((mantissa + 2**15) // 2**16, 2**15 - 1)
    bits = 15 - shift
    wanted = (total * reduced + 2 ** (bits - 1)) // 2**bits
    found = int16.short_product(np.array([total]), np.array([mantissa]), np.array([shift]))
    assert found.tolist() == [wanted]


# --- The file -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("network", [small, branches])
def test_every_element_is_explained_in_every_runtime(network: Any) -> None:
    made = exported_once(network, "int16x8")
    for subject in judged(made, {"net.tflite": made.tflite}).subjects:
        record = artefact_record(subject)
        assert record["passed"], (subject.configuration, subject.error, record["first_broken"])
        told = record["fingerprints"]
        assert "unexplained" not in str(told)
        assert told["conv"] == "multiplier of 16 bits"
        older = subject.configuration.startswith("tflite-runtime")
        assert told["linear"] == ("multiplier of 16 bits" if older else "float64 round away")


@pytest.mark.slow
@pytest.mark.usefixtures("shipped_only")
@pytest.mark.parametrize("position", [1, 2])
def test_a_weight_or_bias_one_step_off_is_found(position: int) -> None:
    made = exported_once(small, "int16x8")
    model, graph = parse(made.tflite, "net.tflite")
    tensor = graph.tensors[graph.operators[-1].inputs[position]]
    data = np.array(model.buffers[tensor.buffer].data).view([np.int8, np.int64][position - 1])
    data[5] += 1 if data[5] < 0 else -1
    model.buffers[tensor.buffer].data = data.view(np.uint8)
    changed = bytes(flatbuffer.convert_object_to_bytearray(model))
    for subject in judged(made, {"net.tflite": changed}).subjects:
        assert not subject.passed
        assert subject.first_broken is not None
        assert subject.first_broken.layer.kind == "linear"


@pytest.fixture(scope="module")
def file() -> Exported:
    return exported_once(branches, "int16x8")


@pytest.mark.slow
def test_biases_are_int64_and_the_operators_of_versions_that_tflite_runtime_has(
    file: Exported,
) -> None:
    model, graph = parse(file.tflite, "net.tflite")
    versions = {code.builtinCode: code.version for code in model.operatorCodes}
    weighted = {OP.CONV_2D: 4, OP.DEPTHWISE_CONV_2D: 5, OP.FULLY_CONNECTED: 7}
    assert {code: versions[code] for code in weighted} == weighted
    for operator in graph.operators:
        if model.operatorCodes[operator.opcodeIndex].builtinCode in weighted:
            assert graph.tensors[operator.inputs[2]].type == schema.TensorType.INT64


@pytest.mark.slow
def test_biases_that_are_not_the_programs_are_refused(file: Exported) -> None:
    model, graph = parse(file.tflite, "net.tflite")
    linear = graph.tensors[graph.operators[-1].inputs[2]]
    linear.type = schema.TensorType.INT32
    wrong = np.arange(5, dtype=np.int32)
    model.buffers[linear.buffer].data = wrong.view(np.uint8)
    content = bytes(flatbuffer.convert_object_to_bytearray(model))
    with pytest.raises(BadInput, match="2 layers with weights are 4"):
        with_int64_biases(content, [None, None])
    for operator in graph.operators[:-1]:
        operator.inputs = operator.inputs[:2]
    content = bytes(flatbuffer.convert_object_to_bytearray(model))
    with pytest.raises(BadInput, match="a bias is another after the converter"):
        with_int64_biases(content, [None, None, None, wrong + 1])


# --- On the device --------------------------------------------------------------------------------


def test_a_pixel_is_the_input() -> None:
    pixels = np.array([0, 1, 255], np.uint8)
    assert as_input(pixels, np.dtype(np.int16)).tolist() == [0, 1, 255]


def contract(precision: str, dtype: str) -> Contract:
    side = Quantization(0.5, 0, dtype)
    parts = ("net", precision, "none", ("a", "b"), (1, 4, 4), "glyph", "logits")
    return Contract(*parts, side, side, "0" * 64, "0")


def test_the_contract_says_int16_and_nothing_new_of_int8() -> None:
    made = contract("int16x8", "int16")
    assert Contract.from_json(made.to_json(), "net") == made
    assert "dtype" not in contract("int8", "int8").to_json()
    with pytest.raises(DeviceBadInput, match="int16x8 with quantization"):
        Contract.from_json(contract("int16x8", "int8").to_json(), "net")


# --- The command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["export", "--format", "c", "--precision", "int8,int16x8"],
            "--precision int16x8 has no C: its kernels are of int8 and float32; add tflite",
        ),
        (
            ["verify", "--format", "onnx", "--precision", "int16x8"],
            "--precision int16x8 has no ONNX: ONNX Runtime has no kernels for int16 values; add",
        ),
        pytest.param(
            ["package", "--runtime", "onnx,c", "--precision", "int16x8", "--target", "host"],
            "has no ONNX: ONNX Runtime has no kernels for int16 values, and no C: its kernels are",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_onnx_and_c_have_none(tmp_path: Path, command: list[str], message: str) -> None:
    done = called(*command, runs=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_all_precisions_are_those_of_the_formats() -> None:
    assert chosen_of("c", "all")[1] == ("fp32", "int8")
    assert chosen_of("onnx", "all")[1] == ("fp32", "int8", "fp16", "dynamic")
    assert "int16x8" in chosen_of("onnx,tflite", "all")[1]


@pytest.mark.slow
def test_it_is_verified_packed_and_repeats_its_golden_vectors(
    trained: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs)
    chosen = ("--run", "small", "--precision", "int16x8")
    for command in (
        ("export", *chosen, "--format", "tflite"),
        ("verify", *chosen, "--format", "tflite", "--images", "30"),
        ("evaluate", *chosen, "--format", "tflite", "--max-drop", "1"),
        ("package", *chosen, "--runtime", "tflite"),
        ("report", "--run", "small"),
    ):
        done = called(*command, runs=runs)
        assert done.returncode == 0, done.stderr
    page = (runs / "small" / "report.html").read_text()
    assert "int16x8: the part of the integers" in page and "int16x8: rounding that" in page
    with tarfile.open(runs / "small" / "lenet5-classic-bundle.tar.gz") as files:
        files.extractall(tmp_path, filter="data")
    folder = tmp_path / "lenet5-classic-bundle"
    command = [sys.executable, "runner.pyz", "selftest", "--runtime", "litert", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    (result,) = json.loads(done.stdout)
    assert (result["precision"], result["passed"]) == ("int16x8", True)
    without = json.loads((folder / "manifest.json").read_text())
    del without["int16x8_steps"]
    (folder / "manifest.json").write_bytes(seal(without))
    with pytest.raises(DeviceBadInput, match="lacks 'int16x8_steps'"):
        Bundle.open(folder)
