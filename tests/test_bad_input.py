"""Every mistake a person can make on the command line: one line, the right exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import WHOLE, Cli, called


def one_line(stderr: str) -> str:
    """The error, which is the last line and the only one that says so."""
    errors = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, stderr
    assert "Usage:" not in stderr
    assert "Traceback" not in stderr
    return errors[0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["trian"], 2, "did you mean 'train'"),
        (["train", "--model", "lenet"], 2, "did you mean 'lenet5'"),
        (["train", "--dataset", "digit"], 2, "did you mean 'digits'"),
        (["train", "--epochs", "0"], 2, "--epochs 0; give 1 or more"),
        (["train", "--epochs", "x"], 2, "'x' is not a valid integer; see 'pipeline train --help'"),
        (["train", "--epochs"], 2, "requires an argument; see 'pipeline train --help'"),
        (
            ["train", "--epoch", "3"],
            2,
            "no such option '--epoch'; did you mean '--epochs'? see 'pipeline train --help'",
        ),
        (["--verbose"], 2, "no such option '--verbose'; did you mean '--version'? see 'pipe"),
        (["describe", "a.onnx", "b.onnx"], 2, "unexpected extra argument (b.onnx)"),
        (["train", "--batch-size", "0"], 2, "--batch-size 0"),
        (["train", "--lr", "-1"], 2, "--lr -1"),
        (["train", "--activation", "tanh"], 2, "activation"),
        (["train", "--model", "lenet5-classic", "--activation", "tan"], 2, "did you mean 'tanh'"),
        (["train", "--model", "gone.py:Net"], 4, "gone.py: no such file"),
        (["train", "--input-shape", "1,28"], 2, "give C,H,W"),
        (["train", "--run", "../out"], 2, "no name for a run"),
        (["train", "--run", "small"], 2, "--overwrite"),
        (["train", "--resume", "--run", "small"], 4, "nothing to resume"),
        (["train", "--dataset", "mnist", "--data-dir", "nowhere"], 4, "nowhere"),
        (["run", "--images", "0"], 2, "--images 0"),
        (["quantize", "--calibration-size", "0"], 2, "--calibration-size 0"),
        (["export", "--format", "tflit"], 2, "did you mean 'tflite'"),
        (["export", "--precision", "int4"], 2, "did you mean 'int8'"),
        (["export", "--run", "smal"], 2, "did you mean 'small'"),
        (["verify", "--images", "0"], 2, "--images 0"),
        (["describe", "nothing.onnx"], 4, "nothing.onnx: no such file"),
        (["package", "--check", "nothing.tar.gz"], 4, "nothing.tar.gz"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], code: int, words: str, cli: Cli
) -> None:
    done = cli(*arguments)
    assert done.returncode == code, done.stderr
    assert words in one_line(done.stderr)
    assert done.stdout == ""


def test_no_run_names_the_command_that_makes_one(tmp_path: Path) -> None:
    done = called("export", runs=tmp_path)
    assert done.returncode == 4
    assert "pipeline train" in one_line(done.stderr)


def test_an_unwritable_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = called("train", "--epochs", "1", runs=tmp_path / "file")
    assert done.returncode == 3
    assert "PIPELINE_RUNS_DIR" in one_line(done.stderr)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_byte, empty, Path.unlink])
@pytest.mark.parametrize(
    ("file", "command", "mend"),
    [
        ("lenet5-classic-fp32.pt2", "export", "pipeline train"),
        ("lenet5-classic-int8.pt2", "export", "pipeline quantize"),
        ("lenet5-classic-int8.tflite", "verify", "pipeline export --run small"),
        ("lenet5-classic-fp32.onnx", "describe", "pipeline export --run small"),
        ("verify.json", "package", "pipeline verify"),
    ],
)
def test_a_damaged_artefact_is_named_with_the_command_that_mends_it(
    file: str, command: str, mend: str, damage: Callable[[Path], None], cli: Cli, runs: Path
) -> None:
    damage(runs / "small" / file)
    if command == "package":  # else the bundle that is there already is current
        (runs / "small" / "lenet5-classic-bundle.tar.gz").unlink()
    done = cli(command)
    assert done.returncode in (3, 4), done.stderr
    line = one_line(done.stderr)
    assert file in line
    assert mend in line


def test_an_artefact_older_than_its_program_is_refused(cli: Cli, runs: Path) -> None:
    retrained = ["train", "--model", "lenet5-classic", "--epochs", "1", "--overwrite"]
    assert cli(*retrained, "--run", "small").returncode == 0
    done = cli("verify")
    assert done.returncode == 3
    line = one_line(done.stderr)
    assert "made from an older" in line
    assert cli("quantize").returncode == 0
    assert "'pipeline export --run small'" in one_line(cli("verify").stderr)


def test_int8_settings_that_no_longer_fit_are_told_as_those_of_before(cli: Cli, runs: Path) -> None:
    record = json.loads((runs / "small" / "run.json").read_text())
    record["artefacts"]["lenet5-classic-int8.pt2"]["config"]["keep"] = ["linear_9"]
    (runs / "small" / "run.json").write_text(json.dumps(record))
    flip_a_byte(runs / "small" / "lenet5-classic-int8.pt2")
    done = cli("run", *WHOLE)
    assert done.returncode == 2
    line = one_line(done.stderr)
    assert "int8 was to be made as before, and cannot be: unknown layer 'linear_9'" in line
    assert "run 'pipeline quantize --run small', with other options or none" in line


def test_a_run_record_changed_by_hand(cli: Cli, runs: Path) -> None:
    (runs / "small" / "run.json").write_text("{")
    done = cli("export")
    assert done.returncode == 3
    assert "run.json" in one_line(done.stderr)


def test_a_failed_verification_is_not_packaged(cli: Cli, runs: Path) -> None:
    from pipeline.files import sha256_file

    folder = runs / "small"
    report = json.loads((folder / "verify.json").read_text())
    for artefact in report["artefacts"]:
        artefact["passed"] = False
    (folder / "verify.json").write_text(json.dumps(report))
    record = json.loads((folder / "run.json").read_text())
    record["artefacts"]["verify.json"]["sha256"] = sha256_file(folder / "verify.json")
    (folder / "run.json").write_text(json.dumps(record))
    done = cli("package")
    assert done.returncode == 1
    assert "did not pass verification" in one_line(done.stderr)


@pytest.mark.parametrize(
    "content", [b"", b"not a bundle", b"\x1f\x8b\x08\x00broken"], ids=["empty", "text", "gzip"]
)
def test_a_bundle_that_is_none(content: bytes, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bundle.tar.gz").write_bytes(content)
    done = cli("package", "--check", str(tmp_path / "bundle.tar.gz"))
    assert done.returncode == 3
    assert "bundle.tar.gz" in one_line(done.stderr)


def test_diverging_training_says_what_to_change(tmp_path: Path) -> None:
    done = called("train", "--epochs", "1", "--lr", "1e30", runs=tmp_path)
    assert done.returncode == 1
    assert "--lr" in one_line(done.stderr)


def test_debug_shows_the_traceback(cli: Cli) -> None:
    done = cli("--debug", "export", "--run", "smal")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
