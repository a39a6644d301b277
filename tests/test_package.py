"""Bundles for boards: what is in them, what is refused, and their installation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, pipeline

from pipeline.errors import UsageError
from pipeline.package import Order, check_archive
from pipeline.package.targets import PYTHONS, TARGETS, place_of
from pipeline.verify.compiler import compiler

NAME = "lenet5-classic-host-bundle"


# --- Targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_everything_that_a_target_can_run_is_possible(name: str) -> None:
    systems = list(PYTHONS) if TARGETS[name].board else [None]
    for system in systems:
        order = Order.of((), ["int8"], name, system)
        assert order.formats[0] == "c" and order.is_native
        assert bool(order.runtimes) == (len(order.formats) > 1)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no wheel": (["--target", "pi-zero", "--runtime", "onnx"], "give --runtime c"),
    "32 bits": (["--target", "pi-32", "--runtime", "c,onnx"], "give --runtime c,tflite"),
    "Python": (
        ["--target", "pi-32", "--os", "trixie", "--runtime", "tflite"],
        "give --os bookworm or --runtime c",
    ),
    "target": (["--target", "pi4"], "did you mean 'pi-4'?"),
    "system": (["--target", "pi-4", "--os", "jessie"], "known: bookworm, trixie"),
    "host": (["--target", "host", "--os", "trixie"], "leave it out"),
    "system of nothing": (["--os", "trixie"], "belong to a --target"),
    "wheels of nothing": (["--target", "pi-zero", "--wheelhouse"], "C needs no wheels"),
    "C of nothing": (["--runtime", "c"], "give --target"),
    "runtime": (["--runtime", "tensorrt"], "unknown runtime 'tensorrt'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_possible_is_refused_with_the_nearest_that_is(name: str, cli: Cli) -> None:
    arguments, reason = REFUSED[name]
    done = cli("package", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_release_decides_the_runtimes() -> None:
    assert place_of("pi-4", "bookworm").runtimes == ("litert", "tflite-runtime", "onnxruntime")
    assert place_of("pi-4", "trixie").runtimes == ("litert", "onnxruntime")
    assert place_of("pi-32", "bookworm").runtimes == ("tflite-runtime",)
    assert place_of("pi-zero").runtimes == ()
    with pytest.raises(UsageError, match=r"Python 3\.13"):
        place_of("pi-32", "trixie").refuse(["tflite"])


# --- A bundle for this machine --------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def packed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive for `host` with C alone, of int8."""
    runs = tmp_path_factory.mktemp("packed") / "runs"
    shutil.copytree(trained, runs)
    options = ["--target", "host", "--runtime", "c", "--precision", "int8"]
    done = pipeline("package", "--run", "small", *options, runs=runs)
    assert done.returncode == 0, done.stderr
    return runs / "small" / f"{NAME}.tar.gz"


@pytest.fixture
def bundle(packed: Path, tmp_path: Path) -> Path:
    """It, unpacked."""
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / NAME


def install(bundle: Path, *options: str, prefix: Path) -> subprocess.CompletedProcess[str]:
    command = [str(bundle / "install.sh"), "--prefix", str(prefix), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_compiler
def test_a_bundle_says_what_it_is_for_and_holds_it(packed: Path) -> None:
    manifest = check_archive(packed)
    assert manifest["target"]["name"] == "host"
    assert list(manifest["models"]) == ["lenet5-classic-int8.so"]
    assert manifest["models"]["lenet5-classic-int8.so"]["verified_with"].startswith("c ")
    assert {"classify", "include/model.h", "install.sh", "SHA256SUMS"} <= set(manifest["files"])
    assert not [name for name in manifest["files"] if name.startswith(("requirements", "c/"))]


@needs_compiler
def test_the_library_is_a_model_of_the_runner(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(bundle / "runner.pyz"), "selftest", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["runtime"].startswith("c ") and result["equal"] == 1.0


@needs_compiler
def test_an_installation_is_repeated_replaced_and_removed(bundle: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "some where"
    done = install(bundle, "--no-python", prefix=prefix)
    assert done.returncode == 0, done.stderr
    program = prefix / "current" / "bundle" / "classify"
    assert subprocess.run([program, "--selftest"], capture_output=True, check=False).returncode == 0
    assert "already installed" in install(bundle, "--no-python", prefix=prefix).stdout
    first = (prefix / "current").readlink()
    resealed(bundle, "README.md", b"another version\n")
    assert install(bundle, "--no-python", prefix=prefix).returncode == 0
    assert (prefix / "current").readlink() != first
    assert len(list(prefix.glob("version-*"))) == 1
    (prefix / "mine").write_text("kept")
    done = install(bundle, "--uninstall", prefix=prefix)
    assert done.returncode == 0 and "left alone" in done.stdout
    assert [path.name for path in prefix.iterdir()] == ["mine"]
    assert install(bundle, "--uninstall", prefix=prefix).returncode == 4


def resealed(bundle: Path, name: str, content: bytes) -> None:
    """Another content, with its sum."""
    (bundle / name).write_bytes(content)
    names = [line.split("  ")[1] for line in (bundle / "SHA256SUMS").read_text().splitlines()]
    command = ["sha256sum", *names]
    sums = subprocess.run(command, cwd=bundle, capture_output=True, check=True).stdout
    (bundle / "SHA256SUMS").write_bytes(sums)


def damaged(bundle: Path) -> None:
    library = bundle / "lenet5-classic-int8.so"
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def of_another_board(bundle: Path) -> None:
    resealed(bundle, "classify", b"\x7fELF, but of another machine")


def wrong_here(bundle: Path) -> None:
    resealed(bundle, "classify", b'#!/bin/sh\n[ "$1" = --version ]\n')


BAD: dict[str, tuple[Any, list[str], int, str]] = {
    "damaged": (damaged, [], 3, "the bundle is damaged"),
    "another board": (of_another_board, [], 4, "this bundle is for a machine like this one"),
    "wrong results": (wrong_here, [], 1, "the selftest failed here"),
    "no such option": (None, ["--root"], 2, "unknown option --root"),
    "no value": (None, ["--prefix"], 2, "lacks its value"),
    "no such runtime": (None, ["--runtime", "litert"], 2, "unknown runtime 'litert'"),
    "a relative place": (None, ["--prefix", "here"], 2, "no absolute path"),
    "a place that is a file": (None, ["--prefix", "/dev/null"], 3, "cannot be made"),
}


@needs_compiler
@pytest.mark.parametrize("name", BAD)
def test_what_goes_wrong_leaves_the_installation_as_it_was(
    name: str, bundle: Path, tmp_path: Path
) -> None:
    prefix = tmp_path / "place"
    assert install(bundle, "--no-python", prefix=prefix).returncode == 0
    before = sorted(path.relative_to(prefix) for path in prefix.rglob("*"))
    change, options, code, reason = BAD[name]
    if change is not None:
        change(bundle)
    done = install(bundle, "--no-python", *options, prefix=prefix)
    assert done.returncode == code
    assert reason in done.stderr and done.stderr.count("\n") == 1
    assert (prefix / "current" / "bundle" / "classify").is_file()
    assert sorted(path.relative_to(prefix) for path in prefix.rglob("*")) == before
