"""Any model file through the code that ships: here, and in a runner in another process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from deploy.runner.backends import BACKENDS, Session, TensorInfo, open_session, open_with
from deploy.runner.compute import pack, receive, send, serve
from deploy.runner.contract import Contract, Quantization
from deploy.runner.errors import BadInput, Missing, UsageError
from deploy.runner.scores import steps
from deploy.runner.selftest import FP32_RELATIVE
from pipeline.verify.remote import Worker, runner_command, tflite_runtime_python

HERE = runner_command(sys.executable)
SETTINGS = [
    (runtime, kernels)
    for runtime in ("litert", "onnxruntime")
    for kernels in BACKENDS[runtime].KERNELS
]
OTHER_PYTHON = tflite_runtime_python()
needs_tflite_runtime = pytest.mark.skipif(
    OTHER_PYTHON is None, reason="make install has made no environment for tflite-runtime"
)


def shipped(trained: Path, runtime: str, precision: str) -> Path:
    """The trained run's model file for this runtime."""
    return trained / "small" / f"lenet5-classic-{precision}{BACKENDS[runtime].SUFFIX}"


def some_values(tensor: TensorInfo, images: int = 3, seed: int = 0) -> np.ndarray:
    shape = (images, *tensor.shape[1:])
    random = np.random.default_rng(seed)
    if tensor.dtype == np.int8:
        return random.integers(-128, 128, shape, np.int8)
    return random.random(shape, np.float32)


# --- small files without a contract: 3 a - b and a, for a of 2 x 3 and b of 3 ---------------------


def small_onnx(path: Path) -> Path:
    float32 = onnx.TensorProto.FLOAT
    sides = [
        [helper.make_tensor_value_info(name, float32, ["n", *shape]) for name, shape in tensors]
        for tensors in ([("b", [1, 3]), ("a", [2, 3])], [("difference", [2, 3]), ("same", [2, 3])])
    ]
    three = onnx.numpy_helper.from_array(np.float32(3), "three")
    nodes = [
        helper.make_node("Mul", ["a", "three"], ["product"]),
        helper.make_node("Sub", ["product", "b"], ["difference"]),
        helper.make_node("Identity", ["a"], ["same"]),
    ]
    graph = helper.make_graph(nodes, "small", *sides, [three])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def two_convolutions(path: Path, shared: bool) -> Path:
    """Two int8 convolutions, all weights 127, that may share zero points."""
    float32, array = onnx.TensorProto.FLOAT, onnx.numpy_helper.from_array
    constants = {"half": np.float32(0.5), "coarse": np.float32(2048)}
    constants |= {
        "zero": np.int8(0),
        "input_zero": np.int8(-128),
        "all": np.full((8, 8, 1, 1), 127, "i1"),
    }
    constants |= {"first_zero": np.zeros(8, "i1"), "second_zero": np.zeros(8, "i1")}
    constants |= {"scales": np.ones(8, np.float32), "all_again": constants["all"]}
    second = "first_zero" if shared else "second_zero"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "half", "input_zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "half", "input_zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["all", "scales", "first_zero"], ["w"], axis=0),
        helper.make_node("Conv", ["d", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "coarse", "zero"], ["qc"]),
        helper.make_node("DequantizeLinear", ["qc", "coarse", "zero"], ["dc"]),
        helper.make_node("QuantizeLinear", ["y", "half", "input_zero"], ["q_again"]),
        helper.make_node("DequantizeLinear", ["q_again", "half", "input_zero"], ["d_again"]),
        helper.make_node("DequantizeLinear", ["all_again", "scales", second], ["v"], axis=0),
        helper.make_node("Conv", ["d_again", "v"], ["e"]),
        helper.make_node("QuantizeLinear", ["e", "coarse", "zero"], ["qe"]),
        helper.make_node("DequantizeLinear", ["qe", "coarse", "zero"], ["de"]),
    ]
    tensors = [array(np.asarray(value), name) for name, value in constants.items()]
    sides = [
        [helper.make_tensor_value_info(name, float32, ["n", 8, 2, 3]) for name in names]
        for names in (["x", "y"], ["dc", "de"])
    ]
    graph = helper.make_graph(nodes, "two", *sides, tensors)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_int8_sums_do_not_saturate(tmp_path: Path) -> None:
    session = open_session("onnxruntime", two_convolutions(tmp_path / "two.onnx", shared=False))
    assert "saturate" not in session.runtime
    x = np.full((1, 8, 2, 3), 127.5, np.float32)  # 255 steps
    exact = np.round(8 * 127 * 127.5 / 2048) * 2048
    for found in session.run(x, x):
        assert np.all(found == exact)


def test_a_file_that_cannot_be_made_exact_still_opens_and_says_so(tmp_path: Path) -> None:
    session = open_session("onnxruntime", two_convolutions(tmp_path / "two.onnx", shared=True))
    assert session.runtime.endswith(", int8 sums may saturate")
    zeros = np.zeros((1, 8, 2, 3), np.float32)
    assert [found.shape for found in session.run(zeros, zeros)] == [zeros.shape] * 2


class Small(torch.nn.Module):
    def forward(self, b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 3 * a - b, a + 0


@pytest.fixture(scope="module")
def small_tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import litert_torch

    path = tmp_path_factory.mktemp("small") / "small.tflite"
    litert_torch.convert(Small(), (torch.zeros(1, 1, 3), torch.zeros(1, 2, 3))).export(str(path))
    return path


def changed(path: Path, change: Callable[[schema.ModelT], None], target: Path) -> Path:
    """A copy of a TFLite file with a change made to it; its contract is left out."""
    import flatbuffers

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    change(model)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(bytes(builder.Output()))
    return target


def unsigned(model: schema.ModelT) -> None:
    """No signature is left, and the subgraph's outputs are in another order."""
    model.signatureDefs = []
    model.subgraphs[0].outputs = model.subgraphs[0].outputs[::-1]


def shuffled(model: schema.ModelT) -> None:
    """The signature stays; the subgraph's own inputs and outputs are in another order."""
    model.subgraphs[0].inputs = model.subgraphs[0].inputs[::-1]
    model.subgraphs[0].outputs = model.subgraphs[0].outputs[::-1]


def first_convolution(model: schema.ModelT) -> None:
    """Only the first convolution is left, with its int8 input and output."""
    graph = model.subgraphs[0]
    codes = [code.builtinCode for code in model.operatorCodes]
    wanted = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D)
    operator = next(op for op in graph.operators if codes[op.opcodeIndex] in wanted)
    model.signatureDefs = []
    graph.operators = [operator]
    graph.inputs, graph.outputs = operator.inputs[:1], operator.outputs


@pytest.fixture(params=["onnx", "tflite", "tflite, shuffled", "tflite, unsigned"])
def small(request: pytest.FixtureRequest, tmp_path: Path, small_tflite: Path) -> tuple[str, Path]:
    if request.param == "onnx":
        return "onnxruntime", small_onnx(tmp_path / "small.onnx")
    changes = {"shuffled": shuffled, "unsigned": unsigned}
    change = changes.get(request.param.partition(", ")[2])
    if change is None:
        return "litert", small_tflite
    return "litert", changed(small_tflite, change, tmp_path / "small.tflite")


def test_several_inputs_and_outputs_keep_their_order(
    small: tuple[str, Path], request: pytest.FixtureRequest
) -> None:
    session = open_session(*small)
    b = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
    a = np.arange(24, dtype=np.float32).reshape(4, 2, 3) ** 2
    assert [tensor.shape for tensor in session.inputs] == [(-1, 1, 3), (-1, 2, 3)]
    outputs = session.run(b, a)
    if "unsigned" in request.node.callspec.id:  # then the subgraph's order counts
        outputs.reverse()
    np.testing.assert_array_equal(outputs[0], 3 * a - b)
    np.testing.assert_array_equal(outputs[1], a)


def test_what_a_session_returned_stays(small: tuple[str, Path]) -> None:
    session = open_session(*small)
    first, second = (np.full((1, 1, 3), v, np.float32) for v in (1, 2))
    a = np.ones((1, 2, 3), np.float32)
    before = session.run(first, a)
    kept = [output.copy() for output in before]
    session.run(second, 2 * a)
    for output, copy in zip(before, kept, strict=True):
        np.testing.assert_array_equal(output, copy)


def test_a_batch_may_be_empty(small: tuple[str, Path]) -> None:
    session = open_session(*small)
    outputs = session.run(np.zeros((0, 1, 3), np.float32), np.zeros((0, 2, 3), np.float32))
    assert [output.shape for output in outputs] == [(0, 2, 3), (0, 2, 3)]


FLOATS = {shape: np.zeros(shape, np.float32) for shape in [(2, 1, 3), (2, 2, 3), (3, 2, 3), (2, 6)]}
WRONG = {
    "none": [],
    "one": [FLOATS[2, 1, 3]],
    "three": [FLOATS[2, 1, 3], FLOATS[2, 2, 3], FLOATS[2, 2, 3]],
    "float64": [FLOATS[2, 1, 3], FLOATS[2, 2, 3].astype(np.float64)],
    "int8": [FLOATS[2, 1, 3].astype(np.int8), FLOATS[2, 2, 3]],
    "another shape": [FLOATS[2, 2, 3], FLOATS[2, 1, 3]],
    "another rank": [FLOATS[2, 1, 3], FLOATS[2, 6]],
    "a number": [np.float32(1), np.float32(1)],
    "unequal batches": [FLOATS[2, 1, 3], FLOATS[3, 2, 3]],
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_wrong_values_are_refused(small: tuple[str, Path], values: list[np.ndarray]) -> None:
    with pytest.raises(BadInput, match="input"):
        open_session(*small).run(*values)


def test_a_file_of_more_than_one_image_is_refused(small_tflite: Path, tmp_path: Path) -> None:
    def two_images(model: schema.ModelT) -> None:
        for tensor in model.subgraphs[0].tensors:
            if len(tensor.shape) == 3:
                tensor.shape = [2, *tensor.shape[1:]]

    with pytest.raises(BadInput, match="one image"):
        open_session("litert", changed(small_tflite, two_images, tmp_path / "two.tflite"))


def test_a_file_without_a_contract_is_no_model(small: tuple[str, Path]) -> None:
    with pytest.raises(BadInput, match="no contract"):
        open_with(*small)


def assert_alike(found: np.ndarray, expected: np.ndarray, contract: Contract) -> None:
    """Scores of one model by two sets of kernels, which may round and sum in other ways."""
    if contract.output is None:
        limit = FP32_RELATIVE * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
        return
    difference = np.abs(steps(found, contract.output) - steps(expected, contract.output))
    # A half that is rounded otherwise in an early layer moves a score by a step, seldom by two.
    assert difference.max() <= 2 and np.mean(difference == 0) >= 0.8


# --- the files that ship --------------------------------------------------------------------------


def test_a_session_says_what_an_int8_file_says(trained: Path) -> None:
    path = shipped(trained, "litert", "int8")
    model = open_with("litert", path)
    (given,), (found,) = model.session.inputs, model.session.outputs
    assert (given.shape, given.dtype) == ((-1, 1, 28, 28), np.int8)
    assert given.quantization == Quantization(float(np.float32(1 / 255)), -128)
    assert (found.shape, found.dtype) == ((-1, 10), np.int8)
    assert found.quantization is not None and model.contract.output is not None
    assert found.quantization.scale == np.float32(model.contract.output.scale)


def test_a_layer_cut_out_of_an_int8_file_runs_alone(trained: Path, tmp_path: Path) -> None:
    path = shipped(trained, "litert", "int8")
    session = open_session("litert", changed(path, first_convolution, tmp_path / "conv.tflite"))
    assert session.inputs[0].dtype == session.outputs[0].dtype == np.int8
    assert session.outputs[0].quantization is not None
    values = some_values(session.inputs[0])
    (found,) = session.run(values)
    assert found.shape == (3, *session.outputs[0].shape[1:])
    for kernels in ("builtin", "reference"):
        other = open_session("litert", tmp_path / "conv.tflite", kernels=kernels)
        assert np.abs(found.astype(int) - other.run(values)[0]).max() <= 1


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("runtime", "kernels"), SETTINGS)
def test_the_kernels_agree(trained: Path, runtime: str, kernels: str, precision: str) -> None:
    path = shipped(trained, runtime, precision)
    session, usual = open_session(runtime, path, kernels=kernels), open_session(runtime, path)
    values = some_values(session.inputs[0], images=16)
    assert_alike(session.run(values)[0], usual.run(values)[0], open_with(runtime, path).contract)


def test_unknown_kernels_are_answered_with_the_known_ones(trained: Path) -> None:
    with pytest.raises(UsageError, match="all, extended, basic, disabled"):
        open_session("onnxruntime", shipped(trained, "onnxruntime", "fp32"), kernels="xnnpack")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_file_with_the_contract_of_the_other_precision_is_refused(
    trained: Path, precision: str, tmp_path: Path
) -> None:
    # A zip archive is read from its end: the later contract is the one that counts.
    other = {"fp32": "int8", "int8": "fp32"}[precision]
    content = shipped(trained, "litert", precision).read_bytes()
    contract = shipped(trained, "litert", other).read_bytes()
    (tmp_path / "m.tflite").write_bytes(content + contract)
    with pytest.raises(BadInput, match="the contract says"):
        open_with("litert", tmp_path / "m.tflite")


# --- another process ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["litert", "onnxruntime"])
def worker(request: pytest.FixtureRequest) -> Iterator[tuple[str, Worker]]:
    with Worker(request.param, HERE) as opened:
        yield request.param, opened


def same_answers(here: Session, there: Session) -> None:
    assert (here.runtime, here.inputs, here.outputs) == (
        there.runtime,
        there.inputs,
        there.outputs,
    )
    values = [some_values(tensor) for tensor in here.inputs]
    for found, expected in zip(there.run(*values), here.run(*values), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_worker_answers_as_this_process_does(
    trained: Path, worker: tuple[str, Worker], precision: str
) -> None:
    runtime, remote = worker
    path = shipped(trained, runtime, precision)
    for kernels in BACKENDS[runtime].KERNELS:
        here = open_session(runtime, path, kernels=kernels)
        same_answers(here, remote.open(path, kernels=kernels))


def test_sessions_of_one_worker_stay_apart(trained: Path) -> None:
    with Worker("onnxruntime", HERE) as remote:
        paths = [shipped(trained, "onnxruntime", precision) for precision in ("fp32", "int8")]
        for session, path in [(remote.open(path), path) for path in paths]:
            same_answers(open_session("onnxruntime", path), session)


def test_a_worker_survives_errors(trained: Path, tmp_path: Path) -> None:
    path = shipped(trained, "litert", "fp32")
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(path.read_bytes()[:1000])
    with Worker("litert", HERE) as remote:
        with pytest.raises(BadInput) as caught:
            remote.open(damaged)
        assert caught.value.message.startswith(f"{damaged}: litert cannot load it")
        with pytest.raises(UsageError, match="xnnpack, builtin, reference"):
            remote.open(path, kernels="fast")
        with pytest.raises(BadInput, match=r"gone\.tflite"):
            remote.open(tmp_path / "gone.tflite")
        session = remote.open(path)
        with pytest.raises(BadInput, match="float64"):
            session.run(np.zeros((1, 1, 28, 28)))
        with pytest.raises(BadInput, match="0 arrays"):
            remote.request({"run": 0}, b"")
        with pytest.raises(BadInput, match="ValueError"):
            remote.request({"run": 0}, b"no array")
        with pytest.raises(BadInput, match="IndexError"):
            remote.request({"run": 7}, pack([]))
        with pytest.raises(BadInput, match="KeyError"):
            remote.request({}, b"some bytes")
        same_answers(open_session("litert", path), session)


def test_lines_that_are_no_message_are_answered_too() -> None:
    requests = io.BytesIO(b'hello\n[]\n{"bytes": -1}\n{"bytes": "many"}\n{"open": "cut off", ')
    answers = io.BytesIO()
    serve("litert", requests, answers)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [line["error"] for line in lines] == ["BadInput"] * 5


def test_a_request_that_is_cut_off_ends_the_service() -> None:
    requests, answers = io.BytesIO(), io.BytesIO()
    send(requests, {"open": "m.tflite"}, b"1234")
    serve("litert", io.BytesIO(requests.getvalue()[:-1]), answers)
    assert answers.getvalue() == b""


def test_nothing_but_answers_is_on_stdout(trained: Path) -> None:
    request = io.BytesIO()
    content = shipped(trained, "litert", "fp32").read_bytes()
    send(request, {"open": "m.tflite", "threads": 1, "kernels": "xnnpack"}, content)
    command = [*HERE, "compute", "--runtime", "litert"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, input=request.getvalue(), cwd=root, capture_output=True, check=True
    )
    message = receive(stream := io.BytesIO(done.stdout))
    assert message is not None and message[0]["session"] == 0
    assert stream.read() == b""


@pytest.mark.parametrize(
    ("runtime", "command", "words"),
    [
        ("litert", ["no-such-python"], "no-such-python"),
        ("litert", [sys.executable, "-c", "raise SystemExit('board on fire')"], "board on fire"),
        ("litert", [sys.executable, "-c", "raise SystemExit(7)"], "exit code 7"),
        ("tensorrt", HERE, "invalid choice"),
    ],
)
def test_a_worker_that_ends_is_missing_with_its_last_words(
    trained: Path, runtime: str, command: list[str], words: str
) -> None:
    with pytest.raises(Missing, match=words), Worker(runtime, command) as remote:
        remote.open(shipped(trained, "litert", "fp32"))


def test_a_runtime_that_is_not_there_is_missing_there(trained: Path) -> None:
    program = (
        "import sys; sys.modules['ai_edge_litert'] = None; "
        "from deploy.runner.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    with Worker("litert", [sys.executable, "-c", program]) as remote:
        for _ in range(2):
            with pytest.raises(Missing, match="litert: not installed"):
                remote.open(shipped(trained, "litert", "fp32"))


@needs_tflite_runtime
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tflite_runtime_answers_from_its_own_environment(trained: Path, precision: str) -> None:
    path = shipped(trained, "tflite-runtime", precision)
    model = open_with("litert", path)
    litert, contract = model.session, model.contract
    with Worker("tflite-runtime", runner_command(OTHER_PYTHON)) as remote:
        for kernels in BACKENDS["tflite-runtime"].KERNELS:
            session = remote.open(path, kernels=kernels)
            assert session.runtime == "tflite-runtime 2.14.0"
            assert [i.shape for i in session.inputs] == [i.shape for i in litert.inputs]
            assert session.outputs[0].quantization == litert.outputs[0].quantization
            values = some_values(session.inputs[0], images=16)
            assert_alike(session.run(values)[0], litert.run(values)[0], contract)


@needs_tflite_runtime
def test_a_slice_runs_in_tflite_runtime(trained: Path, tmp_path: Path) -> None:
    path = shipped(trained, "litert", "int8")
    path = changed(path, first_convolution, tmp_path / "conv.tflite")
    litert = open_session("litert", path, kernels="reference")
    with Worker("tflite-runtime", runner_command(OTHER_PYTHON)) as remote:
        session = remote.open(path, kernels="reference")
        assert session.inputs == litert.inputs
        values = some_values(session.inputs[0])
        assert np.abs(session.run(values)[0].astype(int) - litert.run(values)[0]).max() <= 1
