"""What this workstation has for the pipeline, and the command that mends what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from deploy.runner.apart import processors
from deploy.runner.doctor import FINE, NOTE, WRONG, Finding

from .data import DATASETS
from .errors import Missing, UserError
from .package.targets import TARGETS
from .package.toolchain import MEND, cross_compiler, emulator, version_of
from .run_folder import runs_root
from .verify.compiler import MEND as COMPILER_MEND
from .verify.compiler import compiler
from .verify.remote import tflite_runtime_python

PACKAGE = "pi-pipeline"
ROOM = 2e9  # bytes: a run takes some millions, wheels for a board some hundreds
TOOLS = {  # programs, and what cannot be done without them
    "ssh": ("pipeline deploy", "sudo apt install openssh-client"),
    "scp": ("pipeline deploy", "sudo apt install openssh-client"),
    "ansible-playbook": ("pipeline deploy --inventory", f"pip install '{PACKAGE}[fleet]'"),
}


def examine() -> list[Finding]:
    """Every finding, in the order in which a run meets it."""
    return [
        Finding("system", FINE, f"{platform.system()} {platform.machine()}, {processors()} CPUs"),
        _python(),
        *_packages(),
        *_runtimes(),
        *_data(),
        _compiler(),
        *_boards(),
        *_tools(),
        _runs(),
    ]


def complete(findings: list[Finding]) -> bool:
    """Whether nothing is wrong that every run needs; notes are about what only some need."""
    return all(finding.state != WRONG for finding in findings)


def _python() -> Finding:
    return Finding("Python", FINE, f"{platform.python_version()} in {sys.prefix}")


def _packages() -> Iterator[Finding]:
    """What pyproject.toml asks for, the extras apart."""
    try:
        wanted = requires(PACKAGE) or []
    except PackageNotFoundError:
        yield Finding("packages", WRONG, f"{PACKAGE} is not installed", "make install")
        return
    names = [text for text in wanted if "extra ==" not in text]
    found = []
    for text in names:
        name = text.partition(">")[0].partition(";")[0].strip()
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding(name, WRONG, "not installed", "make install")
    yield Finding("packages", FINE, ", ".join(found))


def _runtimes() -> Iterator[Finding]:
    for name, module in (("onnxruntime", "onnxruntime"), ("litert", "ai_edge_litert.interpreter")):
        command = [sys.executable, "-c", f"import {module}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            yield Finding(f"runtime {name}", FINE, "starts")
        else:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            yield Finding(f"runtime {name}", WRONG, last, "make install")
    if tflite_runtime_python() is not None:
        yield Finding("runtime tflite-runtime", FINE, "in an environment of its own")
    else:
        found = "not there: it has wheels for Python 3.11 at most"
        yield Finding("runtime tflite-runtime", NOTE, found, "make install, with Python 3.11")


def _data() -> Iterator[Finding]:
    place = os.environ.get("PIPELINE_DATA_DIR")
    if not place:
        found = "digits are here; MNIST and Fashion-MNIST are fetched when first used"
        yield Finding("data", FINE, found)
        return
    for name in ("mnist", "fashion-mnist"):
        try:
            DATASETS[name].read(Path(place))
        except UserError as error:
            yield Finding(f"data {name}", NOTE, error.message, error.mend)
        else:
            yield Finding(f"data {name}", FINE, f"in {place}")


def _compiler() -> Finding:
    command = compiler()
    if command is None:
        return Finding("C compiler", NOTE, "none, or no make: C is not verified", COMPILER_MEND)
    return Finding("C compiler", FINE, " ".join(command))


def _boards() -> Iterator[Finding]:
    compilers: dict[str, list[str]] = {}
    boards = {name: target.board for name, target in TARGETS.items() if target.board}
    for name, board in boards.items():
        try:
            by = version_of(board, cross_compiler(board))
            compilers.setdefault(by, []).append(name)
        except Missing as error:
            yield Finding(f"C for {name}", NOTE, error.message, error.mend)
    for by, names in compilers.items():
        yield Finding("C for boards", FINE, f"{by} for {', '.join(names)}")
    lacking = []
    for name, board in boards.items():
        try:
            emulator(board)
        except Missing:
            lacking.append(name)
    if lacking:
        yield Finding("emulators", NOTE, f"none for {', '.join(lacking)}", MEND)
    else:
        yield Finding("emulators", FINE, f"QEMU for {', '.join(boards)}")


def _tools() -> Iterator[Finding]:
    for name, (what, mend) in TOOLS.items():
        beside = str(Path(sys.executable).parent)
        if shutil.which(name) or shutil.which(name, path=beside):
            yield Finding(name, FINE, "there")
        else:
            yield Finding(name, NOTE, f"not there: {what} needs it", mend)


def _runs() -> Finding:
    place = runs_root()
    there = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    mend = "make room, or set PIPELINE_RUNS_DIR"
    if not os.access(there, os.W_OK):
        return Finding("runs", WRONG, f"{place}: cannot be written", mend)
    found = f"{place}, {free / 1e9:,.1f} GB free"
    return Finding("runs", FINE if free > ROOM else NOTE, found, "" if free > ROOM else mend)
