"""fp16 and dynamic: weights in fewer bits, in the program, in its files, and in the runtimes."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils as flatbuffer
from conftest import called
from hypothesis import given
from hypothesis import strategies as st
from test_isolation import SHIPPED, judged, small
from test_layers import Exported, classic, colours, exported_once, images
from torch import Tensor, nn

from deploy.runner.bundle import Bundle, seal
from deploy.runner.errors import BadInput as DeviceBadInput
from pipeline import program
from pipeline.errors import BadInput
from pipeline.export.tflite_weights import in_steps
from pipeline.precisions import SMALL_WEIGHTS, artefacts
from pipeline.quantization import quantize, with_small_weights
from pipeline.verify.report import artefact_record, fingerprint
from pipeline.verify.runtimes import JUDGED, VARIED
from pipeline.verify.stepped import asymmetric, each_pixel, stepped, symmetric
from pipeline.verify.tflite_file import parse

Array = npt.NDArray[Any]


def frozen(network: nn.Module, shape: tuple[int, int, int]) -> torch.fx.GraphModule:
    return program.plain(program.capture(network.eval(), shape).module())


def weights(module: torch.fx.GraphModule) -> list[Tensor]:
    """What every convolution and linear layer multiplies by."""
    weighted = (program.aten.conv2d.default, program.aten.linear.default)
    nodes = [node for node in module.graph.nodes if node.target in weighted]
    return [program.constant(module, node.args[1]) for node in nodes]


# --- The program ----------------------------------------------------------------------------------


def test_fp16_weights_are_the_nearest_halves() -> None:
    module = frozen(*small())
    for before, after in zip(
        weights(module), weights(with_small_weights(module, "fp16")), strict=True
    ):
        assert after.dtype == torch.float32
        assert torch.equal(after, before.half().float())
        assert not torch.equal(after, before)


def test_dynamic_weights_of_convolutions_are_those_of_the_int8_program() -> None:
    network, shape = small()
    module = frozen(network, shape)
    int8 = quantize(module, torch.from_numpy(images(shape, 16)))
    dynamic = with_small_weights(module, "dynamic")
    for kind in (weights(int8), weights(dynamic)):
        assert len(kind) == 3
    for one, other in zip(weights(int8)[:2], weights(dynamic)[:2], strict=True):
        assert torch.equal(one, other)


def test_dynamic_weights_of_a_linear_layer_have_one_scale() -> None:
    module = frozen(*small())
    before, after = weights(module)[-1], weights(with_small_weights(module, "dynamic"))[-1]
    step = before.abs().max() / 127
    assert torch.equal(after, (before / step).round() * step)


@pytest.mark.parametrize("precision", SMALL_WEIGHTS)
def test_a_normalisation_is_merged_before(precision: str) -> None:
    network, shape = colours()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # one that does something
            layer.running_mean = torch.linspace(-0.5, 0.5, layer.num_features)
            layer.running_var = torch.linspace(0.5, 2, layer.num_features)
    module = frozen(network, shape)
    kinds = {tap.kind for tap in program.tap_nodes(with_small_weights(module, precision))}
    assert not any("batch norm" in kind for kind in kinds)
    pixels = torch.from_numpy(images(shape, 8))
    exact, found = (
        program.run(each, pixels)[0] for each in (module, with_small_weights(module, precision))
    )
    assert torch.allclose(exact, found, atol=0.05 * float(exact.abs().max()))


def test_a_weight_that_float16_cannot_hold_is_refused() -> None:
    network, shape = small()
    with torch.no_grad():
        next(network.parameters())[0, 0, 0, 0] = 7e4
    with pytest.raises(BadInput, match="float16 ends at 65504"):
        with_small_weights(frozen(network, shape), "fp16")


@pytest.mark.parametrize("precision", SMALL_WEIGHTS)
def test_a_network_without_weights_is_refused(precision: str) -> None:
    module = frozen(nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), (1, 8, 8))
    with pytest.raises(BadInput, match="no convolution or linear layer"):
        with_small_weights(module, precision)


# --- The files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 16), ("dynamic", 8)])
def test_both_files_hold_the_weights_in_so_many_bits(precision: str, bits: int) -> None:
    made = exported_once(classic, precision)
    model = onnx.load_from_string(made.onnx)
    counts: dict[int, int] = {}
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        counts[8 * array.dtype.itemsize] = counts.get(8 * array.dtype.itemsize, 0) + array.size
    _, graph = parse(made.tflite, "net.tflite")
    kind = schema.TensorType.FLOAT16 if precision == "fp16" else schema.TensorType.INT8
    small_ones = [np.prod(tensor.shape) for tensor in graph.tensors if tensor.type == kind]
    parameters = sum(weight.numel() for weight in weights(made.module))
    assert sum(small_ones) == parameters
    assert parameters <= counts[bits] <= parameters + 300  # and zero points
    for content in (made.onnx, made.tflite):
        assert len(content) < parameters * bits / 8 + 12_000


@given(st.lists(st.integers(-127, 127), min_size=1), st.floats(2**-20, 2**10, width=32))
def test_integers_are_found_again(integers: list[int], scale: float) -> None:
    whole = np.array([[127, *integers], [0] * (len(integers) + 1)], np.float32)
    values = whole * np.float32(scale)
    found, scales = in_steps(values)
    assert np.array_equal(found.astype(np.float32) * scales[:, None], values)
    assert np.array_equal(found, whole)


def test_weights_that_are_no_integers_times_a_scale_are_refused() -> None:
    with pytest.raises(BadInput, match="not int8 times a scale"):
        in_steps(np.array([[1.0, 0.5, 0.3]], np.float32))


# --- Inputs that a runtime quantizes --------------------------------------------------------------


@pytest.mark.parametrize("way", [symmetric, asymmetric, each_pixel])
def test_either_way_is_within_what_an_input_may_be_off_by(way: Any) -> None:
    random = np.random.default_rng(0)
    for low in (-3.0, 0.0, 1.0):
        x = random.uniform(low, 5, (4, 3, 5, 5))
        x[0] = 0
        loose = stepped(way(x)._replace(value=x, error=np.zeros_like(x), likely=np.zeros_like(x)))
        assert (np.abs(way(x).value - x) <= loose.error).all()


def test_the_ways_differ_as_the_kernels_do() -> None:
    x = np.array([[0.0, 10.0, 20.0, 255.0]])
    assert np.array_equal(asymmetric(x).value, x)  # steps of 1
    assert np.allclose(symmetric(x).value * 127 / 255, [[0, 5, 10, 127]])


def test_at_a_half_either_neighbour_is_right() -> None:
    found = symmetric(np.array([[127.0, 1.5, 1.4]]))
    assert found.error[0, 1] >= 1 > found.error[0, 2]


@pytest.fixture(scope="module")
def dynamic() -> Exported:
    return exported_once(small, "dynamic")


def test_each_kernel_has_its_way_and_every_element_follows_it(dynamic: Exported) -> None:
    laboratory = judged(dynamic, {"net.tflite": dynamic.tflite})
    told = {}
    for subject in laboratory.subjects:
        record = artefact_record(subject)
        assert record["passed"], (subject.configuration, record)
        told[subject.configuration] = record["fingerprints"]
    assert told["litert xnnpack"] == {"conv": "asymmetric", "linear": "asymmetric"}
    assert told["litert builtin"] == {"conv": "asymmetric", "linear": "symmetric"}


def test_a_weight_one_step_off_is_found(dynamic: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is less than quantizing the inputs changes."""
    monkeypatch.setitem(JUDGED, "tflite", (SHIPPED["tflite"],))
    monkeypatch.setitem(VARIED, "tflite", ())
    model, graph = parse(dynamic.tflite, "net.tflite")
    linear = graph.operators[-1].inputs[1]
    data = np.array(model.buffers[graph.tensors[linear].buffer].data).view(np.int8)
    data[5] += 1 if data[5] < 0 else -1
    model.buffers[graph.tensors[linear].buffer].data = data.view(np.uint8)
    changed = bytes(flatbuffer.convert_object_to_bytearray(copy.copy(model)))
    (subject,) = judged(dynamic, {"net.tflite": changed}).subjects
    assert not subject.passed
    assert subject.first_broken is not None
    assert subject.first_broken.layer.kind == "linear"


@pytest.mark.slow
def test_a_convolution_of_one_by_one_has_steps_for_each_pixel() -> None:
    made = exported_once(colours, "dynamic")
    laboratory = judged(made, {"net.tflite": made.tflite})
    assert all(subject.passed for subject in laboratory.subjects)
    shipped = next(s for s in laboratory.subjects if s.configuration == "litert xnnpack")
    told = [fingerprint(v) for v in shipped.layers if v.layer.stepped and "conv" in v.layer.kind]
    assert "asymmetric each pixel" in told


# --- The command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verified(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run, with both precisions exported and verified."""
    runs = tmp_path_factory.mktemp("small-weights") / "runs"
    shutil.copytree(trained, runs)
    for command in ("export", "verify"):
        options = ["--images", "30"] if command == "verify" else []
        done = called(
            *(command, "--run", "small", "--precision", "fp16,dynamic", *options), runs=runs
        )
        assert done.returncode == 0, done.stderr
    return runs


@pytest.mark.slow
def test_every_file_of_them_passes(verified: Path) -> None:
    report = json.loads((verified / "small" / "verify.json").read_text())
    files = {artefact["file"] for artefact in report["artefacts"]}
    names = [(p, kind) for p, kind in artefacts(["onnx", "tflite"], SMALL_WEIGHTS)]
    assert {f"lenet5-classic-{p}.{kind}" for p, kind in names} <= files
    assert report["passed"]


@pytest.mark.slow
def test_they_are_packed_and_repeat_their_golden_vectors(verified: Path, tmp_path: Path) -> None:
    done = called("package", "--run", "small", "--precision", "fp16,dynamic", runs=verified)
    assert done.returncode == 0, done.stderr
    with tarfile.open(verified / "small" / "lenet5-classic-bundle.tar.gz") as files:
        files.extractall(tmp_path, filter="data")
    folder = tmp_path / "lenet5-classic-bundle"
    assert not (folder / "c").exists()
    for runtime in ("litert", "onnxruntime"):
        command = [sys.executable, "runner.pyz", "selftest", "--runtime", runtime, "--json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        results = json.loads(done.stdout)
        assert [r["precision"] for r in results] == ["dynamic", "fp16"]
        assert all(r["passed"] for r in results)
    without = json.loads((folder / "manifest.json").read_text())
    del without["dynamic_relative"]
    (folder / "manifest.json").write_bytes(seal(without))
    with pytest.raises(DeviceBadInput, match="lacks 'dynamic_relative'"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "command",
    [
        ["export", "--format", "c", "--precision", "int8,fp16"],
        ["verify", "--format", "c", "--precision", "dynamic"],
        ["package", "--runtime", "c", "--precision", "fp16", "--target", "host"],
        ["package", "--precision", "fp16", "--target", "pi-zero"],
    ],
)
def test_c_has_none_of_them(trained: Path, command: list[str]) -> None:
    done = called(*command, runs=trained)
    assert done.returncode == 2
    assert "has no C: it would be as large as that of fp32; add onnx or tflite" in done.stderr


@pytest.mark.slow
def test_what_is_gone_is_made_again_by_the_command_that_is_named(verified: Path) -> None:
    (verified / "small" / "lenet5-classic-dynamic.tflite").unlink()
    done = called("verify", "--run", "small", "--precision", "dynamic", runs=verified)
    assert done.returncode == 4
    assert "run 'pipeline export --precision" in done.stderr and "dynamic" in done.stderr
