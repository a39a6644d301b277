"""One small run, trained once, that tests read; and a copy of it for those that break things."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from filelock import FileLock
from hypothesis import settings

from pipeline.cli import main
from pipeline.verify.compiler import compiler

# Examples follow from the test alone, and a busy machine fails no test.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

Cli = Callable[..., subprocess.CompletedProcess[str]]
# What `trained` was made with.
WHOLE = ["--model", "lenet5-classic", "--epochs", "30", "--batch-size", "32"]
WHOLE += ["--run", "small", "--images", "64"]
MARKS = ("slow", "emulated")  # of what takes long
# The files of these that take longest, the longest first.
LONGEST = (
    "test_readme",
    "test_machine",
    "test_small_weights",
    "test_emulated_python",
    "test_emulated_bundles",
    "test_mixed",
    "test_emulated_install",
    "test_grid",
    "test_emulated",
)


def pipeline(*arguments: str, runs: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PIPELINE_RUNS_DIR": str(runs)} | environment,
        check=False,
    )


def called(*arguments: str, runs: Path) -> subprocess.CompletedProcess[str]:
    """The command line inside this process: torch is imported once, not each time."""
    environment = {"PIPELINE_RUNS_DIR": str(runs), "PIPELINE_DEBUG": ""}
    result = CliRunner().invoke(main, arguments, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


@pytest.hookimpl(trylast=True)  # after what is not to run has been taken out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that two processes end together; then one that
    makes what is `trained`, and what needs no such thing, so that none waits for it.
    """
    functions = [item for item in items if isinstance(item, pytest.Function)]
    needing = {item.path.stem for item in functions if "trained" in item.fixturenames}
    slow = {item.path.stem for item in functions if not {*MARKS}.isdisjoint(item.keywords)}
    rank = {name: number for number, name in enumerate(LONGEST) if name in slow}
    first = min(needing - rank.keys(), default="")

    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.stem
        return rank.get(name, len(LONGEST)), name in needing and name != first

    items.sort(key=place)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with one whole run, `small`: lenet5-classic on digits, 30 epochs.

    The classic network has every int8 rule but ReLU's: sigmoid, average pooling, fixed parameters.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the processes of one test run share it
        base = base.parent
    runs = base / "trained"
    with FileLock(base / "trained.lock"):
        if not (runs / "report.json").exists():
            done = pipeline("run", *WHOLE, "--json", runs=runs)
            assert done.returncode == 0, done.stderr
            (runs / "report.json").write_text(done.stdout)
    return runs


@pytest.fixture(scope="session")
def packed(trained: Path) -> Path:
    """The signed .tar.gz for `host` with C alone, of int8, in a runs folder of its own; beside that
    `private.pem` and `public.pem`.
    """
    if compiler() is None:
        pytest.skip("there is no C compiler")
    place = trained.parent / "packed"
    archive = place / "runs" / "small" / "lenet5-classic-host-bundle.tar.gz"
    with FileLock(trained.parent / "packed.lock"):
        if not archive.exists():
            shutil.copytree(trained, place / "runs")
            private, public = key_files(Ed25519PrivateKey.generate())
            (place / "private.pem").write_bytes(private)
            (place / "public.pem").write_bytes(public)
            options = ["--target", "host", "--runtime", "c", "--precision", "int8"]
            options += ["--sign", str(place / "private.pem")]
            done = pipeline("package", "--run", "small", *options, runs=place / "runs")
            assert done.returncode == 0, done.stderr
    return archive


@pytest.fixture(scope="module")
def unpacked(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that bundle."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def key_files(key: Ed25519PrivateKey, passphrase: bytes | None = None) -> tuple[bytes, bytes]:
    """Both halves of a key in PEM, as openssl writes them."""
    kind = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, kind),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


@pytest.fixture(scope="session")
def whole_run(trained: Path) -> dict[str, Any]:
    """What `pipeline run --json` printed for `trained`."""
    report: dict[str, Any] = json.loads((trained / "report.json").read_text())
    return report


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained runs folder that a test may change."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def cli(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`called` on that copy, which the test's own calls of the library mean, too."""
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(runs))
    return partial(called, runs=runs)
