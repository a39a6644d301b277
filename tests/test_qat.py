"""`pipeline train --qat`: a trained int8 program goes the way of a calibrated one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Cli

from pipeline.quantization import training
from pipeline.verify import REPORT


@pytest.mark.slow
def test_a_trained_int8_program_is_exported_verified_and_kept(cli: Cli, runs: Path) -> None:
    done = cli("train", "--qat", "--run", "small", "--epochs", "1", "--json")
    assert done.returncode == 0, done.stderr
    tried = json.loads(done.stdout)["tried"]
    assert [each["observer"][0] for each in tried] == ["0", "1"]
    assert max(tried, key=lambda each: each["accuracy"])["accuracy"] > 0.9
    record = json.loads((runs / "small" / "run.json").read_text())
    entry = record["artefacts"]["lenet5-classic-int8.pt2"]
    assert entry["config"]["qat"] == {"epochs": 1, "learning_rate": 2e-4, "seed": 0}
    done = cli("export", "--format", "onnx,c", "--precision", "int8")
    assert done.returncode == 0, done.stderr
    after = json.loads((runs / "small" / "run.json").read_text())
    assert after["artefacts"]["lenet5-classic-int8.pt2"] == entry  # export calibrates no other
    done = cli("verify", "--format", "onnx,c", "--precision", "int8", "--images", "20")
    assert done.returncode == 0, done.stderr
    assert json.loads((runs / "small" / REPORT).read_text())["passed"]
    assert cli("report").returncode == 0
    assert "training" in (runs / "small" / "report.html").read_text()
    refused = cli("sensitivity")
    assert refused.returncode == 3 and "pipeline quantize --run small" in refused.stderr
    done = cli("quantize", "--json")  # and back
    assert done.returncode == 0 and len(json.loads(done.stdout)["tried"]) == 6


def test_a_training_that_spoils_it_is_not_taken(cli: Cli) -> None:
    options = ["--qat", "--run", "small", "--epochs", "1", "--lr", "1e6", "--json"]
    done = cli("train", *options)
    assert done.returncode == 0, done.stderr
    none, spoilt = json.loads(done.stdout)["tried"]
    assert none["chosen"] and not spoilt["chosen"] and spoilt["accuracy"] < 0.5


def test_what_is_no_number_ends_it(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runs / "small" / "lenet5-classic-int8.pt2"
    before = path.read_bytes()
    monkeypatch.setattr(
        training.nn.functional, "cross_entropy", lambda *_, **__: torch.tensor(1e38) * 10
    )
    done = cli("train", "--qat", "--run", "small", "--epochs", "1")
    assert done.returncode == 1 and "smaller --lr" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.slow
def test_it_follows_its_float_program_and_its_seed(cli: Cli) -> None:
    tried = []
    for seed in ("0", "0", "1"):
        options = ["--qat", "--run", "small", "--epochs", "1", "--seed", seed, "--json"]
        tried.append(json.loads(cli("train", *options).stdout)["tried"])
    assert tried[0] == tried[1]
    (untrained, trained), (untrained_too, otherwise) = tried[1:]
    assert untrained == untrained_too | {"chosen": untrained["chosen"]}
    assert trained["sqnr_db"] != otherwise["sqnr_db"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--epochs", "0"], 2, "give 1 or more"),
        (["--lr", "-1"], 2, "above 0"),
        (["--lr", "nan"], 2, "above 0"),
        (["--model", "mlp"], 2, "without --model"),
        (["--resume"], 2, "as it is"),
        (["--run", "other"], 2, "unknown run"),
    ],
)
def test_what_makes_no_sense_is_told_and_leaves_the_program(
    options: list[str], code: int, message: str, cli: Cli, runs: Path
) -> None:
    path = runs / "small" / "lenet5-classic-int8.pt2"
    before = path.read_bytes()
    done = cli("train", "--qat", *options)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert path.read_bytes() == before
