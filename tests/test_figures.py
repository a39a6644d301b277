"""The figures of the README's table, on the real MNIST."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "PIPELINE_DATA_DIR" not in os.environ,
        reason="PIPELINE_DATA_DIR does not say where MNIST is",
    ),
]


def mnist_report(model: str, runs: Path) -> dict[str, Any]:
    options = ["--model", model, "--dataset", "mnist", "--epochs", "5", "--json"]
    done = pipeline("run", *options, runs=runs)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)["verification"]
    assert report["test_images"] == 10_000
    return report


def finals(report: dict[str, Any], precision: str) -> dict[str, dict[str, Any]]:
    """Final outputs against the program, by runtime."""
    return {
        artefact["configuration"]: artefact["final"]
        for artefact in report["artefacts"]
        if artefact["precision"] == precision
    }


def test_lenet5_keeps_its_accuracy_in_every_runtime(tmp_path: Path) -> None:
    report = mnist_report("lenet5", tmp_path)
    fp32 = report["programs"]["fp32"]["accuracy"]
    assert fp32 >= 0.99
    for artefact in report["artefacts"]:
        assert abs(artefact["accuracy"] - fp32) <= 0.001
    int8 = finals(report, "int8")
    assert int8["onnxruntime O0"]["largest"] <= 1
    assert int8["onnxruntime O0"]["equal_part"] >= 0.999
    assert int8["litert"]["largest"] <= 1
    assert int8["litert"]["equal_part"] >= 0.985


def test_lenet5_classic_differs_in_litert_by_its_rounding_alone(tmp_path: Path) -> None:
    report = mnist_report("lenet5-classic", tmp_path)
    assert finals(report, "int8")["litert"]["largest"] <= 2
    (litert,) = [a for a in report["artefacts"] if a["file"].endswith("int8.tflite")]
    assert litert["unexplained"]["largest"] <= 1
    assert litert["unexplained"]["equal_part"] >= 0.999
