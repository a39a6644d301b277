"""`pipeline verify` at the terminal: what it takes, what it refuses, and its exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Cli

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
    assert {a["file"] for a in report["artefacts"]} == set(FILES)
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


def test_files_without_an_onnx_file_have_no_reference(cli: Cli, runs: Path) -> None:
    tflite = str(runs / "small" / FILES[1])
    other = str(runs / "small" / "other.tflite")
    shutil.copy(tflite, other)
    done = cli("verify", tflite, other)
    assert done.returncode == 3
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


def test_the_self_check_prints_kill_rates(cli: Cli) -> None:
    options = ["--format", "onnx", "--precision", "fp32", "--images", "8"]
    done = cli("verify", "--self-check", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "allclose" in done.stdout
    assert "dropped activation" in done.stdout
