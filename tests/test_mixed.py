"""Some layers of an int8 program in float: which, what files make of them, and who refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import Cli, called
from test_isolation import judged
from test_layers import Residual, export
from torch import fx, nn

from pipeline.data import Split
from pipeline.errors import BadInput, VerificationFailed
from pipeline.program import capture, is_quantize, plain, run, tap_nodes
from pipeline.quantization import quantize
from pipeline.quantization.measure import rank
from pipeline.quantization.mixed import fewest, in_float, layers
from pipeline.run_folder import RunFolder
from pipeline.verify import changed_constants
from pipeline.verify.onnx_file import OnnxFile

SHAPE = (1, 8, 8)
PIXELS = torch.randint(0, 256, (64, *SHAPE), dtype=torch.uint8, generator=torch.Generator())
CHAIN = ["--keep", "linear_1", "--keep", "sigmoid_3", "--keep", "linear_2"]
SOME = ["--keep", "conv2d", *CHAIN, "--observer", "minmax", "--no-bias-correction"]
ALL = ["conv2d", "sigmoid", "avg_pool2d", "conv2d_1", "sigmoid_1", "avg_pool2d_1", "linear"]
ALL += ["sigmoid_2", "linear_1", "sigmoid_3", "linear_2"]
IN_FLOAT = ["conv2d", "linear_1", "sigmoid_3", "linear_2"]


def convolutional() -> fx.GraphModule:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.Sigmoid()),
        *(nn.Flatten(), nn.Linear(16, 5)),
    )
    return plain(capture(network.eval(), SHAPE).module())


@pytest.mark.parametrize(
    ("keep", "found", "float_values"),
    [
        ([], [], []),
        (["relu"], ["relu"], []),  # between int8 values: its weights alone are float
        (["max_pool2d"], [], []),  # of int8 values it makes int8 values
        (["relu", "max_pool2d"], ["relu", "max_pool2d"], ["relu"]),
        (["conv2d_1", "sigmoid"], ["conv2d_1", "sigmoid"], ["conv2d_1"]),
        (["sigmoid", "linear"], ["sigmoid", "linear"], ["sigmoid", "linear"]),
    ],
)
def test_what_stays_in_float(keep: list[str], found: list[str], float_values: list[str]) -> None:
    module = quantize(convolutional(), PIXELS, keep=keep)
    taps = list(tap_nodes(module))
    assert [tap.layer for tap in taps] == ["relu", "max_pool2d", "conv2d_1", "sigmoid", "linear"]
    assert list(in_float(module)) == found
    assert [tap.layer for tap in taps if tap.scale is None] == float_values
    first = next(node for node in module.graph.nodes if is_quantize(node))
    assert first.args[0].op == "placeholder"  # the image is int8 always


def outlying() -> fx.GraphModule:
    """One of the first layer's values is so much larger than the others that int8 loses these."""
    torch.manual_seed(0)
    first, second, third, last = (nn.Linear(*s) for s in ((64, 8), (8, 8), (8, 8), (8, 5)))
    with torch.no_grad():
        first.weight[0] *= 2000
        second.weight[:, 0] = 0
        network = nn.Sequential(nn.Flatten(), first, second, third, last).eval()
        last.bias.sub_(network(PIXELS.float() / 255).mean(0))  # so that all classes are answers
    return plain(capture(network, SHAPE).module())


def test_as_few_layers_stay_in_float_as_the_gate_needs() -> None:
    program = outlying()
    wanted = run(program, PIXELS)[0]
    data = Split(PIXELS, wanted.argmax(1))  # the float program is always right
    plain_int8 = quantize(program, PIXELS)
    costs = layers(plain_int8, wanted, data)
    order = [each["layer"] for each in sorted(costs, key=rank)]

    def quantized(keep: object) -> fx.GraphModule:
        return quantize(program, PIXELS, keep=list(keep))  # type: ignore[call-overload]

    module, tried = fewest(plain_int8, quantized, costs, wanted, data, max_drop=4.0)
    assert [len(each["layers"]) for each in tried] == [0, 1, 2]
    assert all(each["drop"] > 4 for each in tried[:-1]) and tried[-1]["drop"] <= 4
    # The value of the costliest is int8 unless the next one is in float, which alone costs least.
    assert tried[-1]["layers"] == [order[0], order[-1]] == list(in_float(module))
    assert len(fewest(plain_int8, quantized, costs, wanted, data, max_drop=100.0)[1]) == 1
    with pytest.raises(
        VerificationFailed, match="no layers in float that were tried bring int8 within -1 points"
    ):
        fewest(plain_int8, quantized, costs, wanted, data, max_drop=-1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mixed"], "--mixed and --max-drop go together"),
        (["--max-drop", "1"], "--mixed and --max-drop go together"),
        (["--mixed", "--max-drop", "1", "--keep", "linear"], "--mixed chooses layers"),
        (["--mixed", "--max-drop", "nan"], "give percentage points"),
        (["--keep", "lineer"], "did you mean 'linear'"),
        (["--keep", "linear,scores"], "unknown layer 'scores'"),
        (["--keep", "sigmoid,sigmoid_1,sigmoid_2,sigmoid_3"], "keep the layer before or after"),
        (["--keep", ",".join(ALL)], "names every layer: that is the fp32 program"),
        (["--keep", "avg_pool2d"], "it has no weights and stands between int8 values"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_kept_is_refused(arguments: list[str], words: str, cli: Cli) -> None:
    quick = ["--observer", "minmax", "--no-bias-correction"]
    done = cli("quantize", "--run", "small", *quick, *arguments)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "keep",
    [
        ["relu"],
        ["conv2d_2", "adaptive_avg_pool2d", "linear"],
        ["relu", "max_pool2d", "relu_1"],
        ["relu_1", "conv2d_2", "relu_2"],
    ],
)
def test_every_runtime_passes(keep: list[str]) -> None:
    torch.manual_seed(0)
    made = export(Residual(3), (3, 10, 14), "int8", keep)
    laboratory = judged(made, {"net.onnx": made.onnx, "net.tflite": made.tflite})
    for subject in laboratory.subjects:
        broken = subject.first_broken
        assert subject.passed, (subject.configuration, subject.error or broken)
    assert len(laboratory.subjects) >= 9


@pytest.fixture(scope="module")
def mixed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained run whose int8 program has layers in float: float scores among them."""
    runs = tmp_path_factory.mktemp("mixed") / "runs"
    shutil.copytree(trained, runs)
    for command in (["quantize", *SOME], ["export"], ["verify", "--images", "16"], ["package"]):
        done = called(*command, "--run", "small", runs=runs)
        assert done.returncode == 0, (command, done.stderr)
    return runs


@pytest.mark.slow
def test_a_whole_run_says_what_is_in_float(mixed: Path) -> None:
    record = json.loads((mixed / "small" / "run.json").read_text())
    entry = record["artefacts"]["lenet5-classic-int8.pt2"]
    assert entry["config"]["keep"] == sorted(IN_FLOAT)
    assert entry["facts"]["mixed"][-1]["layers"] == IN_FLOAT
    assert "lenet5-classic-int8-c" not in record["artefacts"]  # though there was one before
    assert not (mixed / "small" / "lenet5-classic-int8-c").exists()
    described = called("describe", "--run", "small", "--json", runs=mixed)
    assert json.loads(described.stdout)["in_float"] == IN_FLOAT
    done = called("report", "--run", "small", runs=mixed)
    assert done.returncode == 0, done.stderr
    page = (mixed / "small" / "report.html").read_text()
    assert f"stayed in float: {', '.join(IN_FLOAT)}" in page


@pytest.mark.slow
def test_its_bundle_repeats_the_golden_vectors_and_answers(mixed: Path, tmp_path: Path) -> None:
    with tarfile.open(mixed / "small" / "lenet5-classic-bundle.tar.gz") as files:
        files.extractall(tmp_path, filter="data")
    folder = tmp_path / "lenet5-classic-bundle"
    contract = json.loads((folder / "manifest.json").read_text())["contracts"]["int8"]
    assert contract["input"]["zero_point"] == -128 and contract["output"] is None
    assert [path.name for path in (folder / "c").iterdir()] == ["lenet5-classic-fp32-c"]
    for runtime in ("litert", "onnxruntime"):
        command = [sys.executable, "runner.pyz", "selftest", "--runtime", runtime, "--json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        found = {result["precision"]: result for result in json.loads(done.stdout)}
        assert all(result["passed"] for result in found.values())
        assert found["int8"]["unit"] == "of the largest score"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["export", "--format", "c", "--precision", "int8"],
        ["verify", "--format", "c", "--precision", "int8"],
        ["package", "--target", "pi-zero"],
        ["deploy", "pi@nowhere", "--target", "pi-zero"],
    ],
)
def test_c_has_none(mixed: Path, command: list[str]) -> None:
    done = called(*command, "--run", "small", runs=mixed)
    assert done.returncode == 2
    assert f"int8 of run small has no C: {', '.join(IN_FLOAT)} stayed in float" in done.stderr
    assert ("add onnx or tflite" in done.stderr) == ("pi-zero" not in command)


@pytest.mark.slow
def test_a_file_of_it_has_no_c(mixed: Path, tmp_path: Path) -> None:
    file = str(mixed / "small" / "lenet5-classic-int8.onnx")
    done = called("export", file, "--format", "c", "-o", str(tmp_path / "c"), runs=mixed)
    assert done.returncode == 3
    assert "a layer in float beside int8 ones" in done.stderr and not (tmp_path / "c").exists()


@pytest.mark.slow
def test_a_deb_needs_c_of_some_precision(mixed: Path) -> None:
    order = ["package", "--run", "small", "--target", "host", "--format", "deb"]
    done = called(*order, "--precision", "int8", runs=mixed)
    assert done.returncode == 2 and "add fp32 to --precision" in done.stderr


@pytest.mark.slow
def test_what_is_stale_is_made_again_with_the_same_layers_in_float(mixed: Path) -> None:
    folder = RunFolder(mixed / "small", json.loads((mixed / "small" / "run.json").read_text()))
    chosen = " --observer minmax --no-bias-correction"
    keep = "".join(f" --keep {name}" for name in sorted(IN_FLOAT))
    mend = folder.mending_command("lenet5-classic-int8.pt2")
    assert mend == f"run 'pipeline quantize{chosen}{keep} --run small'"
    with pytest.raises(BadInput) as stale:  # it timed C of int8
        folder.need("bench.json")
    assert stale.value.mend == "run 'pipeline bench --run small'"


@pytest.mark.slow
def test_the_gate_keeps_none_where_none_is_needed_and_quantize_goes_back(cli: Cli) -> None:
    quick = ["--observer", "minmax", "--no-bias-correction", "--run", "small"]
    done = cli("quantize", *quick, "--mixed", "--max-drop", "5")
    assert done.returncode == 0, done.stderr
    assert "no layer needs to stay in float" in done.stderr + done.stdout
    assert cli("quantize", *quick, "--keep", "linear_2").returncode == 0
    assert json.loads(cli("quantize", *quick, "--json").stdout).get("mixed") is None


@pytest.mark.slow
def test_self_check_finds_what_is_broken_in_float_layers(mixed: Path) -> None:
    done = called(
        *("verify", "--self-check", "--precision", "int8", "--images", "16", "--json"),
        *("--run", "small"),
        runs=mixed,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["false_alarms"] == []
    total = report["total"]
    assert total["killed"] + total["equivalent"] == total["mutants"] > 100


@pytest.mark.slow
def test_onnx_keeps_float_weights_at_every_level() -> None:
    """Else ONNX Runtime makes int8 of them, and outputs are off by more than float32 is."""
    import onnxruntime

    torch.manual_seed(0)
    made = export(Residual(3), (3, 10, 14), "int8", ["relu", "conv2d_2", "linear"])
    image = np.random.default_rng(0).random((2, 3, 10, 14)).astype(np.float32)
    found = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(made.onnx, options)
        found.append(session.run(None, {"image": image})[0])
    assert np.abs(found[0] - found[1]).max() <= 1e-5 * np.abs(found[0]).max()


@pytest.mark.slow
def test_a_float_weight_that_onnx_has_otherwise_is_found() -> None:
    torch.manual_seed(0)
    made = export(Residual(1), (1, 14, 10), "int8", ["relu", "linear"])
    assert changed_constants(made.module, made.reference().network) == []
    model = onnx.load_from_string(made.onnx)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    weight = next(i for i in model.graph.initializer if i.name == gemm.input[1])
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[3] = np.nextafter(values.flat[3], np.float32(1))
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    changed = OnnxFile(model.SerializeToString(), "changed.onnx", made.names)
    assert changed_constants(made.module, changed.network) == ["linear"]
