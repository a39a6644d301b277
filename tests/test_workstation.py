"""`pipeline doctor` and `pipeline completion`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli

from deploy.runner.doctor import FINE, NOTE, WRONG
from pipeline import doctor


def found(cli: Cli) -> dict[str, dict[str, str]]:
    done = cli("doctor", "--json")
    assert done.returncode == 0, done.stderr
    return {finding["what"]: finding for finding in json.loads(done.stdout)}


def test_this_machine_has_what_every_run_needs(cli: Cli) -> None:
    findings = found(cli)
    for name in ("packages", "runtime onnxruntime", "runtime litert", "runs"):
        assert findings[name]["state"] == FINE, findings[name]
    assert "torch" in findings["packages"]["found"]
    assert all(f["mend"] for f in findings.values() if f["state"] != FINE)
    assert "this machine" in cli("doctor").stdout


def test_what_only_some_need_is_a_note_with_its_mend(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "compiler", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(tmp_path))
    findings = found(cli)
    for name in ("C compiler", "ssh", "emulators", "data mnist"):
        assert findings[name]["state"] == NOTE and findings[name]["mend"], findings[name]


def test_what_every_run_needs_and_lacks_is_an_exit_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PACKAGE", "no-such-package")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    done = cli("doctor", "--json")
    wrong = {f["what"]: f["mend"] for f in json.loads(done.stdout) if f["state"] == WRONG}
    assert done.returncode == 4 and "every run needs" in done.stderr
    assert wrong.keys() == {"packages", "runtime onnxruntime", "runtime litert"}
    assert set(wrong.values()) == {"make install"}


def test_little_room_is_told(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setattr(doctor, "ROOM", 1e18)
    assert found(cli)["runs"]["state"] == NOTE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_completion(shell: str, cli: Cli) -> None:
    done = cli("completion", shell)
    assert done.returncode == 0 and "_PIPELINE_COMPLETE" in done.stdout
    program = shutil.which(shell)
    if program is not None:  # the shell itself reads it
        subprocess.run([program, "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ("com", {"compare", "completion"}),
        ("compare sm", {"small"}),
        ("verify --run sm", {"small"}),
        ("package --target pi-z", {"pi-zero", "pi-zero-2"}),
        ("deploy --os t", {"trixie"}),
    ],
)
def test_bash_completes_commands_and_names(words: str, proposed: set[str], tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "run.json").write_text("{}")
    asked = {"_PIPELINE_COMPLETE": "bash_complete", "PIPELINE_RUNS_DIR": str(tmp_path)}
    asked |= {"COMP_WORDS": f"pipeline {words}", "COMP_CWORD": str(len(words.split()))}
    program = Path(sys.executable).parent / "pipeline"
    done = subprocess.run(
        [program], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert {line.partition(",")[2] for line in done.stdout.split()} == proposed


def test_another_shell_is_refused(cli: Cli) -> None:
    done = cli("completion", "tcsh")
    assert done.returncode == 2 and "unknown shell 'tcsh'; did you mean 'zsh'?" in done.stderr
