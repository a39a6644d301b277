"""--dry-run: what is told is what then happens, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

Plan = dict[str, str]


def stamps(runs: Path) -> dict[str, Any]:
    """What stands in a folder, and when it was written."""
    return {
        str(path.relative_to(runs)): path.stat().st_mtime_ns
        for path in runs.rglob("*")
        if path.is_file()
    }


def planned(cli: Cli, runs: Path, *command: str) -> Plan:
    """File name to what is said of it; nothing may have been written."""
    before = stamps(runs)
    done = cli(*command, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert stamps(runs) == before
    document = json.loads(done.stdout)
    assert document["dry_run"] is True
    return {Path(entry["file"]).name: entry["action"] for entry in document["files"]}


@pytest.mark.parametrize(
    ("command", "plan"),
    [
        (["quantize"], {"lenet5-classic-int8.pt2": "unchanged"}),
        (["quantize", "--observer", "mse"], {"lenet5-classic-int8.pt2": "replaced"}),
        (["train", "--qat"], {"lenet5-classic-int8.pt2": "replaced"}),
        (
            ["export", "--format", "onnx,tflite"],
            {
                f"lenet5-classic-{precision}.{kind}": "unchanged"
                for precision in ("fp32", "int8")
                for kind in ("onnx", "tflite")
            },
        ),
        (["package"], {"lenet5-classic-bundle.tar.gz": "unchanged"}),
        (["package", "--target", "host"], {"lenet5-classic-host-bundle.tar.gz": "new"}),
        (["sensitivity"], {"sensitivity.json": "new"}),
        (["bench"], {"bench.json": "replaced"}),
        (
            ["report", "--model-card"],
            {"report.html": "replaced", "report.json": "replaced", "model-card.md": "new"},
        ),
    ],
)
def test_a_stage_tells_its_files(cli: Cli, runs: Path, command: list[str], plan: Plan) -> None:
    assert planned(cli, runs, *command, "--run", "small") == plan


@pytest.mark.parametrize(
    ("command", "file"),
    [(["evaluate"], "evaluation.json"), (["calibrate"], "calibration.json")],
)
def test_a_measurement_is_made_anew(cli: Cli, runs: Path, command: list[str], file: str) -> None:
    assert planned(cli, runs, *command, "--run", "small") == {file: "new"}


def test_verify_tells_of_the_reference_it_reads(cli: Cli, runs: Path) -> None:
    plan = planned(cli, runs, "verify", "--run", "small")
    assert plan.pop("verify.json") == "replaced"
    assert set(plan.values()) == {"unchanged"}
    assert (
        planned(cli, runs, "verify", "--self-check", "--run", "small")["self-check.json"] == "new"
    )


def test_what_has_no_run_yet_gets_no_folder(cli: Cli, runs: Path) -> None:
    assert planned(cli, runs, "train", "--run", "fresh") == {
        "metrics.jsonl": "new",
        "model.safetensors": "new",
        "lenet5-fp32.pt2": "new",
    }
    plan = planned(cli, runs, "run", "--run", "fresh")
    assert set(plan.values()) == {"new"}
    assert {"lenet5-int8-c", "verify.json", "lenet5-bundle.tar.gz", "report.html"} <= set(plan)
    assert not (runs / "fresh").exists()


def test_int8_files_follow_a_program_that_is_to_be_made(cli: Cli, runs: Path) -> None:
    record = json.loads((runs / "small" / "run.json").read_text())
    for name in ("lenet5-classic-int8.pt2", "lenet5-classic-int8.onnx"):
        del record["artefacts"][name]
        (runs / "small" / name).unlink()
    (runs / "small" / "run.json").write_text(json.dumps(record))
    plan = planned(cli, runs, "export", "--run", "small", "--format", "onnx", "--precision", "int8")
    assert plan == {"lenet5-classic-int8.pt2": "new", "lenet5-classic-int8.onnx": "new"}


def test_what_would_be_refused_is_refused(cli: Cli, runs: Path) -> None:
    done = cli("quantize", "--keep", "linear_9", "--run", "small", "--dry-run")
    assert done.returncode == 2 and "unknown layer 'linear_9'" in done.stderr
    done = cli("train", "--run", "small", "--dry-run")
    assert done.returncode == 2
    assert "is trained already" in done.stderr
    (runs / "small" / "verify.json").unlink()
    done = cli("package", "--run", "small", "--dry-run")
    assert done.returncode == 4
    done = cli("export", "x.onnx", "--format", "c", "-o", "y", "--dry-run")
    assert (done.returncode, "--dry-run is for a run" in done.stderr) == (2, True)


def test_a_person_reads_lines(cli: Cli, runs: Path) -> None:
    done = cli("quantize", "--run", "small", "--dry-run")
    assert done.stdout == f"{runs / 'small' / 'lenet5-classic-int8.pt2'}  unchanged\n"


def test_a_sweep_tells_its_files(cli: Cli, runs: Path) -> None:
    assert planned(cli, runs, "sweep", "--study", "mine") == {
        "study.db": "new",
        "sweep.json": "new",
        "history.png": "new",
        "importance.png": "new",
    }
    plan = planned(cli, runs, "sweep", "--study", "mine", "--storage", "sqlite:///elsewhere.db")
    assert "study.db" not in plan
