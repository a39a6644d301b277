"""The main job through the command line, on one small run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from conftest import WHOLE, Cli, pipeline

ARTEFACTS = [
    f"lenet5-classic-{p}.{kind}" for p in ("fp32", "int8") for kind in ("onnx", "tflite", "pt2")
]


def test_a_run_leaves_every_artefact_and_a_passed_verification(
    trained: Path, whole_run: dict[str, Any]
) -> None:
    there = {path.name for path in (trained / "small").iterdir()}
    expected = {*ARTEFACTS, "model.safetensors", "run.json", "verify.json"}
    sources = {"lenet5-classic-fp32-c", "lenet5-classic-int8-c"}
    seen = {"metrics.jsonl", "bench.json", "report.html", "report.json"}
    assert there == expected | sources | seen | {"lenet5-classic-bundle.tar.gz"}
    assert whole_run["verification"]["passed"] is True
    assert [stage["made"] for stage in whole_run["stages"]] == [True] * 7


def test_a_second_run_skips_every_stage_and_says_so(cli: Cli) -> None:
    again = cli("run", *WHOLE, "--json")
    assert again.returncode == 0, again.stderr
    assert not any(stage["made"] for stage in json.loads(again.stdout)["stages"])
    assert again.stderr.count("skipped, nothing has changed") == 7


@pytest.mark.slow
def test_exports_are_byte_identical_when_made_again(cli: Cli, runs: Path) -> None:
    names = [name for name in ARTEFACTS if not name.endswith(".pt2")]
    before = {name: (runs / "small" / name).read_bytes() for name in names}
    for name in names:
        (runs / "small" / name).unlink()
    assert cli("export").returncode == 0
    assert {name: (runs / "small" / name).read_bytes() for name in names} == before


def test_the_bundle_is_byte_identical_and_under_a_megabyte(cli: Cli, runs: Path) -> None:
    path = runs / "small" / "lenet5-classic-bundle.tar.gz"
    before = path.read_bytes()
    path.unlink()
    assert cli("package").returncode == 0
    assert path.read_bytes() == before
    assert len(before) < 1_000_000


@pytest.mark.slow
def test_the_same_seed_gives_bit_identical_weights_and_another_seed_others(tmp_path: Path) -> None:
    def weights(name: str, seed: str) -> bytes:
        options = ["--epochs", "1", "--seed", seed, "--run", name]
        assert pipeline("train", *options, runs=tmp_path).returncode == 0
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a", "1") == weights("b", "1")
    assert weights("a2", "1") != weights("c", "2")


INTERRUPTED = """
import os, sys
from pipeline import train
from pipeline.cli import main
save = train.save
def die_after_two(state, *place):
    save(state, *place)
    if len(state.history) == 2:
        os._exit(137)
train.save = die_after_two
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_resuming_after_a_kill_ends_in_the_same_weights(tmp_path: Path) -> None:
    options = ["train", "--model", "lenet5", "--epochs", "4"]
    assert pipeline(*options, "--run", "whole", runs=tmp_path).returncode == 0
    killed = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *options, "--run", "cut"],
        env=os.environ | {"PIPELINE_RUNS_DIR": str(tmp_path)},
        check=False,
        capture_output=True,
    )
    assert killed.returncode == 137, killed.stderr
    other = pipeline("train", "--resume", "--run", "cut", "--lr", "1", runs=tmp_path)
    assert other.returncode == 2
    assert "--lr" in other.stderr
    resumed = pipeline("train", "--resume", "--run", "cut", runs=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 2 of 4" in resumed.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()


def test_int8_onnx_holds_integers_and_the_contract(trained: Path) -> None:
    model = onnx.load(trained / "small" / "lenet5-classic-int8.onnx")
    arrays = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer]
    assert sorted(a.shape for a in arrays if a.dtype == np.int8 and a.ndim > 1) == [
        (6, 1, 5, 5),
        (10, 84),
        (16, 6, 5, 5),
        (84, 120),
        (120, 400),
    ]
    assert sorted(a.size for a in arrays if a.dtype == np.int32 and a.ndim == 1 and a.any()) == [
        6,
        10,
        16,
        84,
        120,
    ]
    assert not [a for a in arrays if a.dtype == np.float32 and a.ndim > 1]
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["scores"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    contract = json.loads({p.key: p.value for p in model.metadata_props}["contract"])
    assert contract["input"] == {"scale": float(np.float32(1 / 255)), "zero_point": -128}
    assert contract["labels"] == list("0123456789")


def test_nothing_of_the_exporting_machine_is_in_the_files(trained: Path) -> None:
    for name in ARTEFACTS:
        if not name.endswith(".pt2"):
            content = (trained / "small" / name).read_bytes()
            assert str(Path(__file__).parents[1]).encode() not in content
            assert b"site-packages" not in content


def test_tflite_and_onnx_carry_the_same_contract(trained: Path) -> None:
    for precision in ("fp32", "int8"):
        stem = trained / "small" / f"lenet5-classic-{precision}"
        with zipfile.ZipFile(f"{stem}.tflite") as archive:
            tflite = archive.read("contract.json").decode()
        model = onnx.load(f"{stem}.onnx")
        assert tflite == {p.key: p.value for p in model.metadata_props}["contract"]


def test_weights_are_safetensors_with_lenet_shapes(trained: Path) -> None:
    weights = safetensors.numpy.load_file(trained / "small" / "model.safetensors")
    assert sum(value.size for value in weights.values()) == 61_706


def test_the_verification_covers_every_layer_and_names_the_cause_of_differences(
    whole_run: dict[str, Any],
) -> None:
    report = whole_run["verification"]
    for artefact in report["artefacts"]:
        kinds = [layer["kind"] for layer in artefact["layers"]]
        one = ["sigmoid", "average pool"]
        assert kinds == [
            *("conv", *one, "conv", *one),
            *("linear", "sigmoid", "linear", "sigmoid", "linear"),
        ]
        for layer in artefact["layers"]:
            assert layer["in_place"]["elements"] > 0
            assert layer["in_place"]["outside"] == 0
            if artefact["shipped"]:
                assert layer["isolated"]["elements"] > 0
                assert layer["isolated"]["outside"] == 0
    by_runtime = {a["configuration"]: a for a in report["artefacts"] if a["precision"] == "int8"}
    litert = by_runtime["litert xnnpack"]
    assert litert["fingerprints"]["conv"] == "float half even"
    assert litert["fingerprints"]["average pool"] == "integer half away"
    assert by_runtime["onnxruntime disabled"]["fingerprints"]["average pool"] == "half even"
    assert "double round" in by_runtime["litert reference"]["fingerprints"]["conv"]


@pytest.mark.slow
def test_verify_prints_tables_and_exits_0(cli: Cli) -> None:
    done = cli("verify", "--format", "onnx", "--images", "8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nearest to failing")
    assert "avg_pool2d_1" in done.stdout
    assert "onnxruntime" in done.stdout
    assert "how int8 is rounded" in done.stdout
    assert "average pool: half even" in " ".join(done.stdout.split())
    assert "\x1b[" not in done.stdout


def test_describe_prints_the_lectures_figures(cli: Cli) -> None:
    done = cli("describe", "--json")
    graph = json.loads(done.stdout)
    assert (graph["macs"], graph["parameters"]) == (416_520, 61_706)
    fields = {layer["operator"]: layer["field"][0]["size"] for layer in graph["layers"]}
    assert fields["AveragePool"] == 16  # 5, 6, 14, 16: two stages of 5 x 5 and 2 x 2
    assert "416,520" in cli("describe").stdout


@pytest.mark.slow
def test_export_after_train_needs_nothing_more(tmp_path: Path) -> None:
    options = ["--model", "mlp", "--epochs", "1"]
    assert pipeline("train", *options, runs=tmp_path).returncode == 0
    done = pipeline("export", "--format", "onnx", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "mlp-digits").glob("*.onnx")}
    assert names == {"mlp-fp32.onnx", "mlp-int8.onnx"}


def test_the_unpacked_bundle_predicts_test_images(trained: Path, tmp_path: Path) -> None:
    with tarfile.open(trained / "small" / "lenet5-classic-bundle.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "lenet5-classic-bundle"
    with np.load(folder / "golden.npz") as golden:
        images, scores = golden["images"], golden["fp32"]
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image[0])
    files = [str(tmp_path / f"{number}.npy") for number in range(len(images))]
    files.append(str(folder / "example.pgm"))  # the one of them that is answered most surely
    runner = [sys.executable, str(folder / "runner.pyz")]
    for runtime in ("litert", "onnxruntime"):
        command = [*runner, "predict", "--json", "--precision", "fp32", "--runtime", runtime]
        done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        labels = [int(answer["label"]) for answer in json.loads(done.stdout)["answers"]]
        assert labels[:-1] == scores.argmax(1).tolist()
        assert f"`example.pgm` is a test image: {labels[-1]}." in (folder / "README.md").read_text()
        check = subprocess.run([*runner, "selftest", "--runtime", runtime], check=False)
        assert check.returncode == 0
