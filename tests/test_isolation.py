"""Files with something wrong in them are judged layer by layer: here something always is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from test_layers import Exported, colours, exported_once, images
from torch import nn

from deploy.runner.backends import Session
from pipeline.precisions import SMALL_WEIGHTS
from pipeline.verify.judgement import Judgement
from pipeline.verify.laboratory import Laboratory
from pipeline.verify.mutants import mutants_of
from pipeline.verify.report import artefact_record
from pipeline.verify.runtimes import JUDGED, VARIED, Configuration, Runtimes
from pipeline.verify.subject import LayerVerdict, Subject

Array = npt.NDArray[Any]
PRECISIONS = ("fp32", "int8")
SHIPPED = {kind: configurations[0] for kind, configurations in JUDGED.items()}


def small() -> tuple[nn.Module, tuple[int, int, int]]:
    """The operators of LeNet-5 in its first form, of two channels and no square."""
    torch.manual_seed(7)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 5, padding=2),  # 4 x 12 x 10
        nn.Sigmoid(),
        nn.AvgPool2d(2),  # 4 x 6 x 5
        nn.Conv2d(4, 6, 3),  # 6 x 4 x 3
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(72, 10),
    )
    return network, (2, 12, 10)


def judged(made: Exported, contents: dict[str, bytes], count: int = 6) -> Laboratory:
    """These files against the network as it was exported."""
    with Runtimes() as runtimes:
        laboratory = Laboratory(made.reference(), contents, made.precision, runtimes)
        pixels = images(made.shape, count, seed=1)
        laboratory.judge(pixels, images(made.shape, 4, seed=2), None)
    return laboratory


@pytest.fixture
def shipped_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the configuration that ships is judged, for speed."""
    for kind, configuration in SHIPPED.items():
        monkeypatch.setitem(JUDGED, kind, (configuration,))
        monkeypatch.setitem(VARIED, kind, ())


def only(laboratory: Laboratory) -> Subject:
    (subject,) = laboratory.subjects
    return subject


# --- Nothing is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision",
    ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp32", *SMALL_WEIGHTS))],
)
def test_a_residual_network_passes_in_every_runtime(precision: str) -> None:
    made = exported_once(colours, precision)
    laboratory = judged(made, {"net.onnx": made.onnx, "net.tflite": made.tflite})
    wrong = [
        (subject.configuration, subject.error or artefact_record(subject)["first_broken"])
        for subject in laboratory.subjects
        if not subject.passed
    ]
    assert not wrong
    names = {subject.configuration for subject in laboratory.subjects}
    assert {"onnxruntime all", "onnxruntime disabled", "litert xnnpack", "litert builtin"} <= names
    for subject in laboratory.subjects:
        for layer in subject.layers:
            assert not subject.shipped or (layer.isolated and layer.isolated.elements > 0)
            assert layer.in_place.elements == 6 * np.prod(layer.layer.shape)


def test_nothing_compared_is_not_a_pass() -> None:
    layers = [
        LayerVerdict(layer) for layer in exported_once(small, "fp32").reference().network.layers
    ]
    assert not Judgement().passed
    assert not any(layer.passed for layer in layers)
    assert not Subject("net.onnx", "fp32", "onnxruntime all", True, layers).passed
    assert not Subject("net.onnx", "fp32", "onnxruntime all", True, [], observed=1).passed


# --- One layer is wrong ---------------------------------------------------------------------------


def weights_of(model: onnx.ModelProto, number: int) -> onnx.TensorProto:
    """The integers or floats of the weighted layer with this number."""
    sources = {n.output[0]: n.input[0] for n in model.graph.node if n.input}
    weighted = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    name = weighted[number].input[1]
    name = sources.get(name, name)
    return next(i for i in model.graph.initializer if i.name == name)


def one_weight(model: onnx.ModelProto) -> None:
    """The middle one of the second layer's weights by 2^-20, or one step."""
    tensor = weights_of(model, 1)
    array = numpy_helper.to_array(tensor).copy()
    place = np.unravel_index(np.abs(array.astype(float)).argsort(axis=None)[-2], array.shape)
    if array.dtype == np.int8:
        array[place] -= np.int8(np.sign(array[place]))
    else:
        array[place] *= np.float32(1 + 2.0**-20)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def swapped_channels(model: onnx.ModelProto) -> None:
    """The first convolution's output channels in the opposite order."""
    tensor = weights_of(model, 0)
    array = np.ascontiguousarray(numpy_helper.to_array(tensor)[::-1])
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def shifted_padding(model: onnx.ModelProto) -> None:
    """The first convolution's padding moved by one row."""
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    next(a for a in node.attribute if a.name == "pads").ints[:] = [1, 2, 3, 2]


def max_for_average(model: onnx.ModelProto) -> None:
    """Max pooling where there was average pooling."""
    node = next(node for node in model.graph.node if node.op_type == "AveragePool")
    node.op_type = "MaxPool"
    for attribute in [a for a in node.attribute if a.name == "count_include_pad"]:
        node.attribute.remove(attribute)


def dropped_sigmoid(model: onnx.ModelProto) -> None:
    """The first sigmoid passes its input through."""
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Identity"


def tanh_for_sigmoid(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Tanh"


def last_weight(model: onnx.ModelProto) -> None:
    """The largest weight of the last layer by a ten-thousandth, or one step."""
    tensor = weights_of(model, -1)
    array = numpy_helper.to_array(tensor).copy()
    place = np.unravel_index(np.abs(array.astype(float)).argmax(), array.shape)
    if array.dtype == np.int8:
        array[place] -= np.int8(np.sign(array[place]))
    else:
        array[place] *= np.float32(1.0001)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def mutated(content: bytes, mutate: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load_from_string(content)
    mutate(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("mutate", "broken"),
    [
        (one_weight, "conv2d_1"),
        (swapped_channels, "conv2d"),
        (shifted_padding, "conv2d"),
        (last_weight, "linear"),
    ],
)
def test_the_layer_that_is_wrong_is_named(
    mutate: Callable[[onnx.ModelProto], None], broken: str, precision: str, shipped_only: None
) -> None:
    made = exported_once(small, precision)
    subject = only(judged(made, {"net.onnx": mutated(made.onnx, mutate)}))
    assert not subject.passed and subject.error is None
    assert subject.first_broken is not None
    assert subject.first_broken.layer.name == broken
    # By itself it is the only one: what follows computes rightly what it is fed.
    alone = [v.layer.name for v in subject.layers if v.isolated and not v.isolated.passed]
    assert alone == [broken]
    record = artefact_record(subject)
    assert record["passed"] is False and record["first_broken"] == broken
    layer = next(entry for entry in record["layers"] if entry["layer"] == broken)
    outside = layer["isolated"]["first_outside"]
    assert len(outside["position"]) == len(subject.first_broken.layer.shape) + 1
    assert outside["expected"] != outside["found"]
    assert layer["isolated"]["outside"] > 0


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mutate", [dropped_sigmoid, tanh_for_sigmoid, max_for_average])
def test_another_kind_of_layer_is_not_mapped(
    mutate: Callable[[onnx.ModelProto], None], precision: str, shipped_only: None
) -> None:
    made = exported_once(small, precision)
    subject = only(judged(made, {"net.onnx": mutated(made.onnx, mutate)}))
    assert not subject.passed
    assert "not mapped" in (subject.error or "")
    assert artefact_record(subject)["error"] == subject.error


@pytest.fixture(scope="module")
def tflite_mutants(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, bytes]]:
    """By precision and mutation one wrong copy of the small network's TFLite file."""
    found: dict[str, dict[str, bytes]] = {}
    for precision in PRECISIONS:
        path = tmp_path_factory.mktemp("mutants") / "net.tflite"
        path.write_bytes(exported_once(small, precision).tflite)
        mutants: dict[str, bytes] = {}
        for mutant in mutants_of(path):
            mutants.setdefault(mutant.name, mutant.content)
        found[precision] = mutants
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name",
    [
        *("one tap", "channel permutation", "shifted padding", "bias", "pooling divisor"),
        *("max for average", "dropped activation", "flipped kernel", "NCHW/NHWC swap"),
    ],
)
def test_a_wrong_tflite_file_fails(
    name: str, precision: str, tflite_mutants: dict[str, dict[str, bytes]], shipped_only: None
) -> None:
    made = exported_once(small, precision)
    subject = only(judged(made, {"net.tflite": tflite_mutants[precision][name]}))
    assert not subject.passed
    if subject.error is None:
        assert subject.first_broken is not None
    else:
        assert "not mapped" in subject.error


def test_what_is_infinitely_far_from_an_exact_bound_is_still_json(shipped_only: None) -> None:
    """Max pooling adds no rounding at all: any difference is infinitely often its bound."""

    def wider(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "MaxPool")
        next(a for a in node.attribute if a.name == "kernel_shape").ints[:] = [2, 2]
        pads = onnx.helper.make_attribute("pads", [0, 0, 0, 1])
        for attribute in [a for a in node.attribute if a.name == "pads"]:
            node.attribute.remove(attribute)
        node.attribute.append(pads)

    made = exported_once(colours, "fp32")
    subject = only(judged(made, {"net.onnx": mutated(made.onnx, wider)}))
    assert subject.first_broken is not None
    assert subject.first_broken.layer.kind == "max pool"
    json.dumps(artefact_record(subject), allow_nan=False)


# --- The file's own output ------------------------------------------------------------------------


@dataclass(frozen=True)
class Altered:
    """A session whose outputs are altered."""

    inner: Session
    alter: Callable[[list[Array]], list[Array]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, *values: Array) -> list[Array]:
        return self.alter(self.inner.run(*values))


def altering(
    monkeypatch: pytest.MonkeyPatch,
    alter: Callable[[list[Array]], list[Array]],
    when: Callable[[str, Configuration], bool],
) -> None:
    """Sessions whose name and configuration `when` accepts alter their outputs."""
    opener = Runtimes.open

    def open_altered(
        self: Runtimes, configuration: Configuration, content: bytes, name: str
    ) -> Any:
        session = opener(self, configuration, content, name)
        return Altered(session, alter) if when(name, configuration) else session

    monkeypatch.setattr(Runtimes, "open", open_altered)


def whole_file(name: str, configuration: Configuration) -> bool:
    return name.startswith("net.")


def laid_open(name: str, configuration: Configuration) -> bool:
    return name.startswith("observed")


def cut_out(name: str, configuration: Configuration) -> bool:
    return name.startswith("slice")


def next_float(outputs: list[Array]) -> list[Array]:
    return [np.nextafter(outputs[0], np.float32(np.inf)), *outputs[1:]]


def one_step(outputs: list[Array]) -> list[Array]:
    """One element by one step of int8, or by a ten-thousandth."""
    first = outputs[0].copy()
    step = 1 if first.dtype == np.int8 else np.float32(1e-4) * np.abs(first).max()
    first[0, 0] += -step if first[0, 0] > 0 else step
    return [first, *outputs[1:]]


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_output_that_is_not_that_of_the_observed_file_fails(
    precision: str, kind: str, shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported_once(small, precision)
    altering(monkeypatch, one_step, whole_file)
    content = {"onnx": made.onnx, "tflite": made.tflite}[kind]
    subject = only(judged(made, {f"net.{kind}": content}))
    assert subject.observer == 1
    assert not subject.passed


def test_an_output_that_observing_changes_within_its_bound_is_counted(
    shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported_once(small, "fp32")
    altering(monkeypatch, next_float, whole_file)
    subject = only(judged(made, {"net.onnx": made.onnx}))
    assert subject.passed and subject.observer == 60
    assert artefact_record(subject)["observer"] == {"elements": 60, "differ": 60}


def test_an_int8_file_that_makes_its_scores_real_with_another_scale_fails(
    shipped_only: None,
) -> None:
    """Every layer is right; what leaves the file is not."""

    def larger_scale(model: onnx.ModelProto) -> None:
        last = model.graph.node[-1]
        assert last.op_type == "DequantizeLinear"
        scale = next(i for i in model.graph.initializer if i.name == last.input[1])
        larger = numpy_helper.to_array(scale) * np.float32(1.01)
        model.graph.initializer.append(numpy_helper.from_array(larger, "larger"))
        last.input[1] = "larger"

    made = exported_once(small, "int8")
    assert not only(judged(made, {"net.onnx": mutated(made.onnx, larger_scale)})).passed


def test_an_output_whose_values_trade_places_fails(shipped_only: None) -> None:
    def reversed_scores(model: onnx.ModelProto) -> None:
        last = model.graph.node[-1]
        order = numpy_helper.from_array(np.arange(9, -1, -1), "order")
        model.graph.initializer.append(order)
        name, last.output[0] = last.output[0], "right"
        model.graph.node.append(onnx.helper.make_node("Gather", ["right", "order"], [name], axis=1))

    made = exported_once(small, "fp32")
    assert not only(judged(made, {"net.onnx": mutated(made.onnx, reversed_scores)})).passed


# --- Values that cannot be judged -----------------------------------------------------------------


def at(number: int, change: Callable[[Array], Array]) -> Callable[[list[Array]], list[Array]]:
    def alter(outputs: list[Array]) -> list[Array]:
        return [change(o) if i == number else o for i, o in enumerate(outputs)]

    return alter


def with_value(value: float) -> Callable[[Array], Array]:
    def change(output: Array) -> Array:
        output = output.copy()
        output.flat[-1] = value
        return output

    return change


ALTERED: list[tuple[str, Callable[[Array], Array], str]] = [
    ("NaN", with_value(float("nan")), "NaN or infinity"),
    ("infinity", with_value(float("-inf")), "NaN or infinity"),
    ("dtype", lambda output: output.astype(np.float64), "dtype"),
    ("shape", lambda output: output[:, :-1], "shape"),
    ("images", lambda output: output[:-1], "shape"),
]


@pytest.mark.parametrize(
    ("change", "problem"), [a[1:] for a in ALTERED], ids=[a[0] for a in ALTERED]
)
@pytest.mark.parametrize("number", [1, 5, -1])
def test_a_value_that_cannot_be_judged_is_a_failure(
    number: int,
    change: Callable[[Array], Array],
    problem: str,
    shipped_only: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle, and at the end, which is the file's own output."""
    made = exported_once(small, "fp32")
    altering(monkeypatch, at(max(number, 0), change), laid_open)
    subject = only(judged(made, {"net.onnx": made.onnx}))
    assert not subject.passed
    record = artefact_record(subject)
    problems = [
        layer[fed]["problem"]
        for layer in record.get("layers", [])
        for fed in ("in_place", "isolated")
        if layer[fed] is not None
    ]
    assert any(problem in (told or "") for told in (record["error"], *problems))
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "problem"), [a[1:] for a in ALTERED], ids=[a[0] for a in ALTERED]
)
def test_a_layer_alone_that_cannot_be_judged_is_a_failure(
    change: Callable[[Array], Array],
    problem: str,
    shipped_only: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = exported_once(small, "fp32")
    altering(monkeypatch, at(0, change), cut_out)
    subject = only(judged(made, {"net.onnx": made.onnx}))
    assert not subject.passed
    first = subject.layers[0].isolated
    assert subject.error or (first is not None and problem in (first.problem or ""))


@pytest.mark.parametrize("when", [laid_open, whole_file, cut_out])
def test_outputs_that_are_missing_are_a_failure(
    when: Callable[[str, Configuration], bool], shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported_once(small, "fp32")
    altering(monkeypatch, lambda outputs: outputs[:-1], when)
    subject = only(judged(made, {"net.onnx": made.onnx}))
    assert not subject.passed


def test_a_runtime_that_ends_in_an_error_is_a_failure(
    shipped_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(outputs: Sequence[Array]) -> list[Array]:
        raise RuntimeError("kernel not found")

    made = exported_once(small, "fp32")
    altering(monkeypatch, broken, whole_file)
    subject = only(judged(made, {"net.onnx": made.onnx}))
    assert not subject.passed
    assert "kernel not found" in (subject.error or "")


def test_a_file_that_no_runtime_opens_is_a_failure(shipped_only: None) -> None:
    made = exported_once(small, "fp32")
    for name in ("net.onnx", "net.tflite"):
        subject = only(judged(made, {name: b"nothing"}))
        assert not subject.passed and subject.error


def test_one_file_that_fails_takes_no_other_with_it(shipped_only: None) -> None:
    made = exported_once(small, "fp32")
    laboratory = judged(made, {"net.onnx": b"nothing", "net.tflite": made.tflite})
    assert [subject.passed for subject in laboratory.subjects] == [False, True]
