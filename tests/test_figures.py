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


def assert_all_explained(report: dict[str, Any]) -> None:
    """Nothing outside a bound, nothing unexplained, in any layer of any runtime."""
    assert report["passed"] is True
    assert report["absent"] == []
    for artefact in report["artefacts"]:
        if artefact["configuration"].startswith("litert"):  # in ONNX Runtime it undoes fusions
            assert artefact["observer"]["differ"] == 0
        judged = {x["layer"]: x for x in artefact["layers"] if x["in_place"] is not None}
        for layer in artefact["layers"]:
            layer = judged[layer["with"] or layer["layer"]]
            assert layer["in_place"]["outside"] == 0
            assert layer["isolated"] is None or layer["isolated"]["outside"] == 0


def finals(report: dict[str, Any], precision: str) -> dict[str, dict[str, Any]]:
    """Final outputs on the test set against the program's, by runtime."""
    return {
        artefact["configuration"]: artefact["final"]
        for artefact in report["artefacts"]
        if artefact["precision"] == precision and artefact["final"]
    }


def test_lenet5_keeps_its_accuracy_in_every_runtime(tmp_path: Path) -> None:
    report = mnist_report("lenet5", tmp_path)
    assert_all_explained(report)
    fp32 = report["programs"]["fp32"]["accuracy"]
    assert fp32 >= 0.99
    for precision in ("fp32", "int8"):
        for final in finals(report, precision).values():
            assert abs(final["accuracy"] - fp32) <= 0.001
    int8 = finals(report, "int8")
    for runtime in ("onnxruntime all", "litert xnnpack"):
        assert int8[runtime]["largest"] <= 1
        assert int8[runtime]["equal_part"] >= 0.999


def test_lenet5_classic_differs_in_litert_by_its_rounding_alone(tmp_path: Path) -> None:
    report = mnist_report("lenet5-classic", tmp_path)
    assert_all_explained(report)
    litert = next(
        a
        for a in report["artefacts"]
        if a["precision"] == "int8" and a["configuration"] == "litert xnnpack"
    )
    assert litert["final"]["largest"] <= 2
    assert litert["fingerprints"]["average pool"] == "integer half away"
