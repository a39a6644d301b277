"""What `pipeline evaluate` says of a run: the gate, the paired test, the challenges."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Cli

from deploy.runner.contract import Contract
from deploy.runner.errors import BadInput
from deploy.runner.images import prepare
from deploy.runner.scores import probabilities
from pipeline import evaluation, program
from pipeline.data import load_dataset
from pipeline.evaluation.calibration import (
    coverage,
    expected_error,
    fitted_temperature,
    reliability,
)
from pipeline.evaluation.challenges import CHALLENGES, SEVERITIES, apply
from pipeline.evaluation.paired import mcnemar
from pipeline.evaluation.show import fragile
from pipeline.run_folder import RunFolder


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return load_dataset("digits", (1, 28, 28), seed=0).test.images[:64]


@pytest.fixture
def evaluated(cli: Cli) -> Any:
    done = cli(
        "evaluate",
        "--format",
        "onnx",
        "--max-drop",
        "0.5",
        "--challenges",
        "--images",
        "40",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_artefact_is_as_good_as_verify_found(evaluated: Any, runs: Path) -> None:
    verified = json.loads((runs / "small" / "verify.json").read_text())
    finals = {
        (a["file"], a["configuration"]): a["final"]["accuracy"]
        for a in verified["artefacts"]
        if a.get("final")
    }
    rows = evaluated["artefacts"]
    assert [row["file"].rpartition("-")[2] for row in rows] == [
        "fp32.pt2",
        "fp32.onnx",
        "int8.pt2",
        "int8.onnx",
    ]
    for row in rows:
        assert row["accuracy"] == finals[row["file"], row["configuration"]]
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        assert sum(row["per_class_change"]) == row["only_this_right"] - row["only_fp32_right"]
        assert len(row["flips"]) >= row["only_this_right"] + row["only_fp32_right"]
    assert rows[0]["drop"] == 0 and rows[0]["flips"] == []


@pytest.mark.slow
def test_what_is_saved_is_what_was_said_and_is_in_the_report(
    evaluated: Any, runs: Path, cli: Cli
) -> None:
    assert json.loads((runs / "small" / "evaluation.json").read_text()) == evaluated
    assert cli("report").returncode == 0
    page = (runs / "small" / "report.html").read_text()
    assert '<section id="challenges">' in page and fragile(evaluated["challenges"]) in page
    for challenge in CHALLENGES.values():
        assert challenge.meaning in page


def test_challenges_are_counted_for_every_artefact(evaluated: Any) -> None:
    record = evaluated["challenges"]
    assert record["images"] == 40 and len(record["artefacts"]) == 4
    assert [entry["challenge"] for entry in record["table"]] == list(CHALLENGES)
    for entry in record["table"]:
        assert np.array(entry["right"]).shape == (4, 1 + SEVERITIES)
        assert entry["fragility"]["images"] == 40 * SEVERITIES
        first = np.array(entry["right"])[:, 0]
        assert (first >= np.array(entry["right"])[:, -1]).all()  # it is harder


def test_a_drop_beyond_the_gate_is_an_exit_code_and_names_the_worst(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = evaluation.artefacts_of

    def broken(*arguments: Any) -> Any:
        found, skipped = right(*arguments)
        *whole, last = found
        scores = last.scores
        worse = lambda pixels: np.roll(scores(pixels), 1, axis=1)  # noqa: E731
        return [*whole, evaluation.dataclasses.replace(last, scores=worse)], skipped

    monkeypatch.setattr(evaluation, "artefacts_of", broken)
    options = ["--format", "onnx", "--precision", "int8"]
    done = cli("evaluate", *options, "--max-drop", "0.1")
    assert done.returncode == 1
    assert "int8.onnx in onnxruntime all is" in done.stderr and "below fp32" in done.stderr
    assert cli("evaluate", *options).returncode == 0  # no gate, no failure


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-drop", "-1"], 2, "percentage points"),
        (["--images", "5"], 2, "--images is of --challenges"),
        (["--challenges", "--images", "0"], 2, "give 1 or more"),
        (["--dataset", "digit"], 2, "did you mean 'digits'"),
        (["--run", "other"], 2, "unknown run"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], code: int, message: str, cli: Cli, runs: Path
) -> None:
    done = cli("evaluate", *arguments)
    assert done.returncode == code and message in done.stderr and done.stdout == ""
    assert not (runs / "small" / "evaluation.json").exists()


def test_another_data_set_must_have_the_same_classes(cli: Cli, tmp_path: Path) -> None:
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (28, 28)).save(tmp_path / "photos" / label / f"{number}.png")
    done = cli("evaluate", "--dataset", str(tmp_path / "photos"))
    assert done.returncode == 2 and "other classes" in done.stderr


@pytest.fixture
def small(runs: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(runs))
    return RunFolder.open("small")


def test_other_pictures_become_pixels_as_the_runs_do(small: RunFolder, tmp_path: Path) -> None:
    from PIL import Image

    for label in "0123456789":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            picture = Image.new("L", (40, 40))
            picture.paste(255, (3, 3, 9, 20 + number))
            picture.save(tmp_path / "photos" / label / f"{number}.png")
    found = evaluation.other_data(small, str(tmp_path / "photos"))
    pixels = np.zeros((40, 40, 1), np.uint8)
    pixels[3:20, 3:9] = 255
    wanted = prepare(pixels, small.input_shape, "glyph")
    assert sum(np.array_equal(image, wanted) for image in found.train.images.numpy()) > 0


def test_what_a_run_was_trained_on_is_not_what_it_is_tested_on(small: RunFolder) -> None:
    small.training["config"]["seed"] = 5
    found = evaluation.other_data(small, "digits")
    assert torch.equal(found.test.images, load_dataset("digits", (1, 28, 28), seed=5).test.images)


def test_digits_are_a_data_set_like_another(cli: Cli, runs: Path) -> None:
    done = cli("evaluate", "--dataset", "digits", "--format", "onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dataset"] == "digits"
    assert not (runs / "small" / "evaluation.json").exists()  # which is of the run's own images


@pytest.mark.parametrize("name", CHALLENGES)
def test_a_challenge_follows_from_its_seed_and_grows(name: str, pictures: torch.Tensor) -> None:
    challenge = CHALLENGES[name]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    levels = [apply(challenge, severity, pictures, seed=3) for severity in range(SEVERITIES + 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(levels[0], pictures)
    for severity, changed in enumerate(levels[1:], 1):
        assert changed.dtype == torch.uint8 and changed.shape == pictures.shape
        assert torch.equal(changed, apply(challenge, severity, pictures, seed=3))
        assert not torch.equal(changed, apply(challenge, severity, pictures, seed=4))
    far = [float((level.float() - pictures.float()).abs().mean()) for level in levels]
    assert far == sorted(far) and far[1] > 0


def test_a_viewpoint_of_no_degrees_and_a_scale_of_one_change_nothing(
    pictures: torch.Tensor,
) -> None:
    for name, level in (("viewpoint", 0.0), ("scale", 1.0)):
        same = CHALLENGES[name].transform(pictures.float() / 255, level, torch.Generator())
        assert torch.allclose(same, pictures.float() / 255, atol=1e-5)


def test_mcnemar_is_the_binomial_test() -> None:
    first = np.array([True] * 9 + [False] * 1 + [True] * 80)
    second = np.array([False] * 9 + [True] * 1 + [True] * 80)
    paired = mcnemar(first, second)
    assert (paired.only_first, paired.only_second) == (9, 1)
    assert paired.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(first, first).p == 1.0
    many = mcnemar(np.array([True] * 700 + [False] * 600), np.array([False] * 700 + [True] * 600))
    exact = 2 * sum(math.comb(1300, k) for k in range(601)) / 2**1300
    assert many.p == pytest.approx(exact, rel=0.02)


def test_the_calibration_error_is_of_guo() -> None:
    chances = np.array([[0.95, 0.05]] * 4 + [[0.65, 0.35]] * 4)
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 1])
    assert expected_error(chances, labels) == pytest.approx((0.95 - 0.75) / 2 + (0.65 - 0.5) / 2)
    assert sum(row["images"] for row in reliability(chances, labels)) == 8
    assert expected_error(np.array([[1.0, 0.0]]), np.array([0])) == 0.0


def test_a_fitted_temperature_undoes_what_the_scores_were_multiplied_by() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=random) * 2
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=random)[:, 0]
    assert fitted_temperature(logits, labels) == pytest.approx(1.0, abs=0.08)
    assert fitted_temperature(logits * 3, labels) == pytest.approx(3.0, abs=0.25)


def test_coverage_is_what_a_threshold_leaves() -> None:
    chances = np.array([[0.95, 0.05], [0.6, 0.4], [0.45, 0.55], [0.997, 0.003]])
    rows = {row["reject"]: row for row in coverage(chances, np.array([0, 1, 1, 0]))}
    assert rows[0.0] == {"reject": 0.0, "answered": 1.0, "accuracy": 0.75}
    assert rows[0.9] == {"reject": 0.9, "answered": 0.5, "accuracy": 1.0}
    assert rows[0.999]["accuracy"] is None


@pytest.mark.slow
def test_a_temperature_goes_into_what_is_exported_from_then_on(cli: Cli, runs: Path) -> None:
    training = ["train", "--model", "mlp", "--epochs", "3", "--run", "rough"]
    assert cli(*training).returncode == 0
    export = ["export", "--run", "rough", "--format", "onnx", "--precision", "fp32"]
    assert cli(*export).returncode == 0
    assert contract_in(runs / "rough" / "mlp-fp32.onnx").temperature == 1.0
    done = cli("calibrate", "--run", "rough", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["fp32"]
    assert found["temperature"] != 1.0 and found["after"] < found["before"]
    evaluate = ["evaluate", "--run", "rough", "--format", "onnx", "--precision", "fp32", "--json"]
    program, exported = json.loads(cli(*evaluate).stdout)["artefacts"]
    assert program["calibration_error"] == pytest.approx(found["after"])
    assert exported["calibration_error"] == pytest.approx(found["before"])  # it says so still
    assert cli(*export).returncode == 0
    contract = contract_in(runs / "rough" / "mlp-fp32.onnx")
    assert contract.temperature == found["temperature"]
    scores = np.array([[1.0, 3.0]])
    chances = probabilities(scores, contract)
    assert chances[0, 1] == pytest.approx(1 / (1 + math.exp(-2 / contract.temperature)))
    assert cli(*training, "--overwrite", "--seed", "1").returncode == 0  # another program
    assert cli(*export).returncode == 0
    assert contract_in(runs / "rough" / "mlp-fp32.onnx").temperature == 1.0


def contract_in(path: Path) -> Contract:
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    (text,) = (value for value in properties.values() if '"program_sha256"' in value)
    return Contract.from_json(text, path.name)


def test_what_makes_no_mistake_is_not_calibrated(
    cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "accuracy", lambda *_: 1.0)
    done = cli("calibrate")
    assert done.returncode == 3 and "calibrate on more data" in done.stderr
    assert not (runs / "small" / "calibration.json").exists()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_contract_with_no_sound_temperature_is_refused(temperature: float, trained: Path) -> None:
    contract = contract_in(trained / "small" / "lenet5-classic-fp32.onnx")
    assert "temperature" not in contract.to_json()
    broken = replace(contract, temperature=temperature).to_json()
    with pytest.raises(BadInput, match="temperature"):
        Contract.from_json(broken, "some file")


def test_fragile_names_only_what_is_no_chance() -> None:
    def entry(name: str, first: int, second: int, p: float) -> dict[str, Any]:
        test = {"only_first": first, "only_second": second, "p": p, "images": 100}
        return {"challenge": name, "fragility": test}

    table = [
        entry("scale", 30, 2, 1e-6),
        entry("clutter", 3, 1, 0.6),
        entry("occlusion", 9, 1, 0.02),
    ]
    said = fragile({"table": table})
    assert "more fragile under scale:" in said and "loses 42 and wins 4" in said
    assert "no more fragile" in fragile({"table": table[1:2]})
