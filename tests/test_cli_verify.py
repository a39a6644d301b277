"""`pipeline verify` at the terminal: what it takes, what it refuses, and its exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from conftest import Cli

from pipeline.files import sha256_file
from pipeline.verify import remote, runtimes

FILES = ["lenet5-classic-fp32.onnx", "lenet5-classic-fp32.tflite"]


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--full"], 2, "--full is not for a run"),
        (["ops", "--images", "3"], 2, "--images is not for ops"),
        (["ops", "--op", "convolution"], 2, "conv"),
        (["--require", "tensorflow"], 2, "tflite-runtime"),
        (["opps"], 2, "ops"),
        (["ops", "one.onnx"], 2, "ops takes no files"),
        (["--require", ""], 2, "unknown runtime"),
        (["one.onnx"], 2, "second file"),
        (["one.onnx", "two.tflite"], 4, "one.onnx: no such file"),
        (["two.pth", "one.onnx"], 3, "two.pth: not a model file"),
        (["one.onnx", "two.tflite", "--run", "small"], 2, "--run is not for files"),
    ],
)
def test_what_makes_no_sense_is_one_line_with_the_mend(
    arguments: list[str], code: int, words: str, cli: Cli
) -> None:
    done = cli("verify", *arguments)
    assert done.returncode == code
    assert words in one_line(done.stderr)


def test_two_files_of_one_network_agree_and_their_layers_are_judged(cli: Cli, runs: Path) -> None:
    paths = [str(runs / "small" / name) for name in FILES]
    done = cli("verify", *paths, "--images", "8", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {a["file"] for a in report["artefacts"]} == set(paths)
    assert all(len(a["layers"]) == 11 for a in report["artefacts"])


def test_files_of_two_networks_do_not_agree(cli: Cli, runs: Path) -> None:
    changed = runs / "small" / "changed.onnx"
    content = (runs / "small" / FILES[0]).read_bytes()
    name = b"layers.0.bias"
    place = content.index(name)
    # The bias is stored beside its name; one bit of it is another.
    broken = bytearray(content)
    raw = content.index(b"\x4a\x18", place) + 2  # raw_data, 24 bytes: six float32
    broken[raw + 2] ^= 1
    changed.write_bytes(broken)
    done = cli("verify", str(changed), str(runs / "small" / FILES[1]), "--images", "8")
    assert done.returncode == 1
    assert "the first layer that is wrong is conv2d" in done.stderr


def test_files_of_one_name_are_both_judged_and_left_as_they_are(cli: Cli, runs: Path) -> None:
    content = (runs / "small" / FILES[0]).read_bytes()
    paths = [runs / folder / "model.onnx" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(content)
    done = cli("verify", *map(str, paths), "--images", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert {a["file"] for a in json.loads(done.stdout)["artefacts"]} == set(map(str, paths))
    assert [path.read_bytes() for path in paths] == [content, content]
    done = cli("verify", str(paths[0]), str(paths[0]))
    assert done.returncode == 2
    assert "given twice" in one_line(done.stderr)


def test_a_file_that_cannot_be_read_is_said_before_anything_runs(cli: Cli, runs: Path) -> None:
    reference, tflite = (runs / "small" / name for name in FILES)
    tflite.write_bytes(tflite.read_bytes()[:2000])
    done = cli("verify", str(reference), str(tflite))
    assert done.returncode == 3
    assert "cut short, or not a TFLite model" in one_line(done.stderr)


def test_a_weight_changed_in_the_reference_itself_is_found(cli: Cli, runs: Path) -> None:
    path = runs / "small" / FILES[0]
    model = onnx.load(path)
    weight = next(i for i in model.graph.initializer if i.name == "layers.7.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] *= 1 + 2.0**-20
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    path.write_bytes(model.SerializeToString())
    record = json.loads((runs / "small" / "run.json").read_text())
    record["artefacts"][path.name]["sha256"] = sha256_file(path)
    (runs / "small" / "run.json").write_text(json.dumps(record))
    options = ["--format", "onnx", "--precision", "fp32"]
    done = cli("verify", *options, "--images", "50")
    assert done.returncode == 1
    assert "lenet5-classic-fp32.onnx in reference: the first layer that is wrong is" in done.stderr
    done = cli("package", "--runtime", "onnx", "--precision", "fp32")
    assert done.returncode == 1 and "did not pass verification" in done.stderr


def test_files_without_an_onnx_file_have_no_reference(cli: Cli, runs: Path) -> None:
    tflite = str(runs / "small" / FILES[1])
    other = str(runs / "small" / "other.tflite")
    shutil.copy(tflite, other)
    done = cli("verify", tflite, other)
    assert done.returncode == 2
    assert "no ONNX file" in one_line(done.stderr)


def test_a_missing_runtime_is_skipped_by_name_and_a_failure_if_required(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (remote, runtimes):
        monkeypatch.setattr(module, "tflite_runtime_python", lambda: None)
    options = ["verify", "--format", "tflite", "--precision", "fp32", "--images", "4"]
    done = cli(*options)
    assert done.returncode == 0
    assert "tflite-runtime: not there, skipped" in done.stderr
    done = cli(*options, "--require", "tflite-runtime")
    assert done.returncode == 1
    assert "make install" in done.stderr


def test_one_operator_of_the_grid(cli: Cli) -> None:
    done = cli("verify", "ops", "--op", "relu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "relu" in done.stdout
    assert "cells" in done.stderr


@pytest.mark.slow
def test_the_self_check_prints_kill_rates(cli: Cli) -> None:
    options = ["--format", "onnx", "--precision", "fp32", "--images", "8"]
    done = cli("verify", "--self-check", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "allclose" in done.stdout
    assert "dropped activation" in done.stdout
