"""The self-check says whether verification can be believed, and not of one that cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.run_folder import RunFolder
from pipeline.verify import judge, self_check
from pipeline.verify.bounds import Bounded
from pipeline.verify.mutants import Mutant, mutants_of

FEW = ("one tap", "bias", "dropped activation")


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    """A copy: the self-check leaves its report in the run."""
    runs = tmp_path_factory.mktemp("checked") / "runs"
    shutil.copytree(trained, runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_RUNS_DIR", str(runs))
        yield RunFolder.open("small")


@pytest.fixture(
    scope="module",
    params=[
        ("fp32", "onnx"),
        pytest.param(("int8", "tflite"), marks=pytest.mark.slow),
        pytest.param(("fp32", "tflite"), marks=pytest.mark.slow),
        pytest.param(("int8", "onnx"), marks=pytest.mark.slow),
    ],
    ids=".".join,
)
def report(run: RunFolder, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of one file."""
    precision, kind = request.param
    return self_check.self_check(run, [kind], [precision], images=8)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some of the mutants."""

    def some(path: Path) -> Iterator[Mutant]:
        return (mutant for mutant in mutants_of(path) if mutant.name in FEW)

    monkeypatch.setattr(self_check, "mutants_of", some)


def with_bound(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """A verifier that holds every float to the same bound."""
    right = judge.bounded

    def wrong(*arguments: Any) -> Bounded:
        exact = right(*arguments)
        return exact._replace(error=np.full(exact.value.shape, size))

    monkeypatch.setattr(judge, "bounded", wrong)


def test_no_file_fails_as_it_is_and_every_mutant_with_another_output_is_found(
    report: dict[str, Any],
) -> None:
    (entry,) = report["files"]
    missed = {
        row["mutation"]: row["missed"]
        for row in entry["rows"]
        if row["killed_changed"] < row["changed"]
    }
    assert (report["false_alarms"], missed) == ([], {})
    assert report["passed"]


def test_comparing_outputs_with_a_tolerance_finds_fewer(report: dict[str, Any]) -> None:
    total = report["total"]
    finds = [total["allclose_1e-3"], total["allclose_1e-5"], total["killed_changed"]]
    if "fp32" in report["files"][0]["file"]:
        assert finds[0] < finds[1] < finds[2]
    else:  # one step of an int8 output is far beyond both
        assert finds[0] == finds[1] == finds[2]


def test_the_counts_add_up(report: dict[str, Any]) -> None:
    rows = [row for entry in report["files"] for row in entry["rows"]]
    for row in rows:
        assert row["mutants"] == row["killed"] + row["equivalent"] + len(row["missed"]), row
        assert row["killed_changed"] <= min(row["killed"], row["changed"]), row
    for name, count in report["total"].items():
        assert count == sum(row[name] for row in rows)
    assert json.loads(json.dumps(report)) == report


@pytest.mark.usefixtures("few")
@pytest.mark.slow
def test_a_verifier_that_finds_nothing_is_noticed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bound(monkeypatch, 1e300)
    report = self_check.self_check(run, ["onnx"], ["fp32"], images=8)
    assert report["false_alarms"] == []
    assert report["total"]["killed"] == report["total"]["equivalent"] == 0
    assert not report["passed"]
    assert "conv2d" in report["files"][0]["rows"][0]["missed"]


@pytest.mark.usefixtures("few")
def test_a_verifier_that_finds_everything_is_noticed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bound(monkeypatch, 0)
    report = self_check.self_check(run, ["tflite"], ["fp32"], images=8)
    assert report["total"]["killed_changed"] == report["total"]["changed"] > 0
    assert [alarm.partition(":")[0] for alarm in report["false_alarms"]] == [
        "lenet5-classic-fp32.tflite"
    ]
    assert not report["passed"]


def test_without_images_nothing_is_claimed(run: RunFolder) -> None:
    with pytest.raises(UsageError, match="--images 0"):
        self_check.self_check(run, images=0)
