"""Verification must find what is wrong: here something always is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.runner.backends import open_with
from deploy.runner.contract import Quantization
from deploy.runner.errors import Missing
from pipeline.run_folder import RunFolder
from pipeline.verify import verify_run
from pipeline.verify.compare import compare
from pipeline.verify.rounding import rounding_of
from pipeline.verify.runtimes import CONFIGURATIONS, Configuration

STEP = Quantization(0.5, 3)


def floats(*values: float) -> npt.NDArray[np.float32]:
    return np.array([values], dtype=np.float32)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (floats(1.0, float("nan")), "NaN"),
        (floats(1.0, float("inf")), "infinity"),
        (floats(1.0), "shape"),
        (floats(1.0, 2.0).astype(np.float64), "dtype"),
        (np.array([[1, 2]], dtype=np.int32), "dtype"),
    ],
)
@pytest.mark.parametrize("quantization", [None, STEP])
def test_what_cannot_be_compared_is_a_problem_and_never_within(
    found: npt.NDArray[Any], problem: str, quantization: Quantization | None
) -> None:
    difference = compare(found, floats(1.0, 2.0), quantization)
    assert problem in (difference.problem or "")
    assert not difference.within(1e9, relative=False)
    good = compare(floats(1.0, 2.0), floats(1.0, 2.0), quantization)
    assert not (good + difference).within(1e9, relative=False)


def test_nothing_compared_is_not_a_pass() -> None:
    empty = np.zeros((0, 10), np.float32)
    assert not compare(empty, empty, None).within(1e9, relative=True)


def test_values_between_the_steps_are_not_quantized() -> None:
    assert "between" in (compare(floats(0.7), floats(0.5), STEP).problem or "")


def test_a_difference_names_the_worst_element_and_counts_images_on() -> None:
    first = compare(floats(1.0, 2.0), floats(1.0, 2.5), STEP)
    second = compare(floats(9.0, 2.0), floats(1.0, 2.5), STEP, first_image=1)
    total = first + second
    assert (total.elements, total.equal, total.largest) == (4, 1, 16.0)
    assert total.worst is not None
    assert (total.worst.position, total.worst.expected, total.worst.found) == ((1, 0), 5.0, 21.0)


@pytest.mark.parametrize(
    ("found", "exact", "kind"),
    [
        (2, 2.5, "half_even"),
        (3, 2.5, "half_away"),
        (-3, -2.5, "half_away"),
        (3, 2.499, "near_tie"),
        (3, 2.3, "neighbour"),
        (2, 2.7, "neighbour"),
        (4, 2.9, "wrong"),
        (2, 3.0, "wrong"),
        (-2, -2.5, "half_even"),
        (2, 2.5 + 2**-48, "half_even"),
    ],
)
def test_each_rounding_has_its_name(found: int, exact: float, kind: str) -> None:
    rounding = rounding_of(np.array([found]), np.array([exact]))
    assert getattr(rounding, kind) == 1
    assert bool(rounding.cause) == (kind != "half_even")


@given(st.lists(st.floats(-128, 127), min_size=1), st.integers(-3, 3))
def test_no_element_escapes_the_count(exact: list[float], shift: int) -> None:
    values = np.array(exact)
    rounding = rounding_of(np.rint(values).astype(np.int64) + shift, values)
    kinds = ("half_even", "half_away", "near_tie", "neighbour", "wrong")
    assert sum(getattr(rounding, kind) for kind in kinds) == len(exact)
    if abs(shift) > 1:
        assert rounding.wrong == len(exact)


def one_weight(model: onnx.ModelProto) -> None:
    """One weight of the second convolution by 1 %, or one step."""
    names = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    quantized = {node.output[0]: node.input[0] for node in model.graph.node}
    name = quantized.get(names[1], names[1])
    tensor = next(i for i in model.graph.initializer if i.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    index = np.unravel_index(np.abs(array.astype(np.float64)).argmax(), array.shape)
    array[index] = array[index] - 1 if array.dtype == np.int8 else array[index] * 1.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def swapped_channels(model: onnx.ModelProto) -> None:
    """The first convolution's output channels in the opposite order."""
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
    quantized = {node.output[0]: node.input[0] for node in model.graph.node}
    name = quantized.get(name, name)
    tensor = next(i for i in model.graph.initializer if i.name == name)
    array = onnx.numpy_helper.to_array(tensor)[::-1]
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))


def shifted_padding(model: onnx.ModelProto) -> None:
    """The first convolution's padding moved by one row."""
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    next(a for a in node.attribute if a.name == "pads").ints[:] = [1, 2, 3, 2]


def dropped_sigmoid(model: onnx.ModelProto) -> None:
    """The first sigmoid passes its input through."""
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Identity"


def max_for_average(model: onnx.ModelProto) -> None:
    """Max pooling where there was average pooling."""
    node = next(node for node in model.graph.node if node.op_type == "AveragePool")
    node.op_type = "MaxPool"
    for attribute in [a for a in node.attribute if a.name == "count_include_pad"]:
        node.attribute.remove(attribute)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "mutate", [one_weight, swapped_channels, shifted_padding, dropped_sigmoid, max_for_average]
)
def test_a_mutated_model_fails_and_the_layer_is_named(
    mutate: Callable[[onnx.ModelProto], None],
    precision: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def open_mutant(path: Path) -> Any:
        model = onnx.load(path)
        mutate(model)
        onnx.save(model, tmp_path / path.name)
        return open_with("onnxruntime", tmp_path / path.name)

    report = verify_with(open_mutant, precision, runs, monkeypatch)
    assert report["passed"] is False
    (artefact,) = report["artefacts"]
    assert [layer["layer"] for layer in artefact["layers"] if not layer["passed"]]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_shipped_file_that_is_not_the_observed_one_fails(
    precision: str, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def open_mutant(path: Path) -> Any:
        if "tapped" in path.name:
            return open_with("onnxruntime", path)
        model = onnx.load(path)
        gemm = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
        sources = {node.output[0]: node.input[0] for node in model.graph.node}
        name = sources.get(gemm.input[2], gemm.input[2])
        bias = next(i for i in model.graph.initializer if i.name == name)
        array = onnx.numpy_helper.to_array(bias)
        shifted = array + np.array(0.1 * np.abs(array).max(), array.dtype)
        bias.CopyFrom(onnx.numpy_helper.from_array(shifted, name))
        onnx.save(model, tmp_path / path.name)
        return open_with("onnxruntime", tmp_path / path.name)

    report = verify_with(open_mutant, precision, runs, monkeypatch)
    assert report["passed"] is False


def test_a_missing_runtime_is_a_failure(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(_: Path) -> Any:
        raise Missing("onnxruntime: not installed")

    report = verify_with(not_there, "fp32", runs, monkeypatch)
    assert report["passed"] is False
    assert "not installed" in report["artefacts"][0]["error"]


def test_an_unmapped_layer_is_a_failure(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Short:
        inner: Any

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def run(self, pixels: npt.NDArray[np.uint8]) -> Any:
            outputs = self.inner.run(pixels)
            return outputs[:-1] if len(outputs) > 1 else outputs

    def open_short(path: Path) -> Any:
        return Short(open_with("onnxruntime", path))

    report = verify_with(open_short, "fp32", runs, monkeypatch)
    assert "not mapped" in report["artefacts"][0]["error"]


def verify_with(
    opener: Callable[[Path], Any], precision: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Verify the trained run's ONNX file in a runtime that is opened by `opener`."""
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(runs))
    monkeypatch.setitem(CONFIGURATIONS, "onnx", (Configuration("mutant", opener, shipped=True),))
    report = verify_run(RunFolder.open("small"), 16, ("onnx",), (precision,))
    written = json.loads((runs / "small" / "verify.json").read_text())
    assert written["passed"] == report["passed"]
    return report
