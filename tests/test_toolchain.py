"""The compiler and the emulators of the boards: what is said where they are not there."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from emulation import NEEDS_ZIG

from pipeline.errors import BadInput, Missing, UsageError
from pipeline.package import toolchain
from pipeline.package.order import Order
from pipeline.package.toolchain import (
    BOARDS,
    build,
    cross_compiler,
    cross_glibc,
    emulator,
    version_of,
)

MAKEFILE = "static:\n\t$(CC) $(CFLAGS) -static -s main.c -o classify\n"
ANSWER = 42


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a generated folder is to make: sources, and a Makefile with the target."""
    place = tmp_path / "some model-c"
    place.mkdir()
    (place / "main.c").write_text(f"int main(void) {{ return {ANSWER}; }}\n")
    (place / "Makefile").write_text(MAKEFILE)
    return place


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_boards_targets_and_emulators_are_known_by_name(folder: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'pi-4'"):
        build(folder, "pi4")
    with pytest.raises(UsageError, match="unknown target 'dynamic'"):
        build(folder, "pi-4", "dynamic")
    with pytest.raises(UsageError, match="unknown board"):
        emulator("pdp-11")


@pytest.mark.parametrize("board", BOARDS)
def test_without_an_emulator_it_says_how_to_get_one(
    board: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "QEMU", tmp_path / "nowhere")
    with pytest.raises(Missing) as caught:
        emulator(board)
    assert caught.value.mend == "run 'make emulators'"
    assert board in caught.value.message


def test_an_emulator_on_the_path_goes_before_an_unpacked_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = executable(tmp_path / "unpacked" / "qemu-arm-static")
    monkeypatch.setattr(toolchain, "QEMU", unpacked.parent)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert emulator("pi-zero") == [str(unpacked), "-cpu", "arm1176"]
    installed = executable(tmp_path / "path" / "qemu-arm-static")
    assert emulator("pi-zero") == [str(installed), "-cpu", "arm1176"]
    other = executable(tmp_path / "path" / "qemu-arm")  # the one that takes plugins
    assert emulator("pi-2") == [str(other), "-cpu", "cortex-a7"]


def test_without_the_compiler_it_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Missing, match=r"run 'make emulators'$"):
        build(folder, "pi-zero")
    with pytest.raises(Missing, match="emulators' or 'sudo apt install gcc-aarch64-linux-gnu'"):
        build(folder, "pi-4")
    with pytest.raises(Missing, match="; 'sudo apt install gcc-arm-linux-gnueabihf'"):
        build(folder, "pi-2", by="gcc")


def test_gcc_is_taken_where_there_is_no_zig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("make", "aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc"):
        executable(tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert [cross_compiler(board) for board in BOARDS if board != "pi-zero"] == ["gcc"] * 4
    with pytest.raises(Missing, match="pi-zero"):
        cross_compiler("pi-zero")
    with pytest.raises(Missing, match=r"emulators'$"):
        cross_compiler("pi-4", "zig")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    assert {cross_compiler(board) for board in BOARDS} == {"zig"}
    assert cross_compiler("pi-4", "gcc") == "gcc"


def test_without_make_that_is_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "aarch64-linux-gnu-gcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="pi-4: there is no make; run 'sudo apt install make'"):
        cross_compiler("pi-4", "gcc")


def test_what_cannot_compile_for_a_board_is_refused() -> None:
    with pytest.raises(UsageError, match="ARMv7 at least; leave out --compiler gcc"):
        cross_compiler("pi-zero", "gcc")
    with pytest.raises(UsageError, match="unknown compiler 'clang'"):
        cross_compiler("pi-4", "clang")
    for target, runtimes in ((None, ()), ("host", ()), ("pi-4", ["onnx"])):
        with pytest.raises(UsageError, match="--compiler is for the C of a board"):
            Order.of(runtimes, ["int8"], target, compiler="gcc")


@pytest.mark.emulated
@pytest.mark.parametrize("board", [name for name, board in BOARDS.items() if board.gcc])
def test_debians_gcc_compiles_for_a_board_as_zig_does(folder: Path, board: str) -> None:
    if shutil.which(BOARDS[board].gcc[0]) is None:
        pytest.skip(f"no {BOARDS[board].gcc[0]}: Debian has it")
    try:
        command = emulator(board)
    except Missing as error:
        pytest.skip(str(error))
    program = build(folder, board, by="gcc")
    assert subprocess.run([*command, str(program)], check=False).returncode == ANSWER
    name, number = version_of(board, "gcc").split()
    assert name == BOARDS[board].gcc[0] and int(number.split(".")[0]) >= 10
    major, minor = cross_glibc(board).split(".")
    assert (int(major), int(minor)) >= (2, 31)


@pytest.mark.emulated
@NEEDS_ZIG
def test_what_does_not_compile_is_one_line(folder: Path) -> None:
    (folder / "main.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(BadInput, match="pi-4") as caught:
        build(folder, "pi-4")
    assert "undeclared" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["Makefile", "main.c"]


def test_a_folder_without_a_makefile_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "Makefile").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    with pytest.raises(BadInput, match="some model-c: Makefile is missing"):
        build(folder, "pi-4")


@pytest.mark.emulated
@NEEDS_ZIG
@pytest.mark.parametrize("board", BOARDS)
def test_a_program_is_compiled_for_a_board_and_runs_as_there(folder: Path, board: str) -> None:
    try:
        command = emulator(board)
    except Missing as error:
        pytest.skip(str(error))
    program = build(folder, board)
    assert program.parent.name == BOARDS[board].binary
    assert subprocess.run([*command, str(program)], check=False).returncode == ANSWER


@pytest.mark.emulated
@NEEDS_ZIG
def test_an_emulator_refuses_instructions_that_the_board_lacks(folder: Path) -> None:
    # Dot product (SDOT), which is of the Pi 5 alone.
    code = '__asm__ volatile(".inst 0x4e829400" ::: "v0");'
    (folder / "main.c").write_text(f"int main(void) {{ {code} return {ANSWER}; }}\n")
    program, codes = build(folder, "pi-5"), {}
    for board in ("pi-3", "pi-4", "pi-5"):
        try:
            command = emulator(board)
        except Missing as error:
            pytest.skip(str(error))
        codes[board] = subprocess.run([*command, str(program)], check=False).returncode
    assert codes == {"pi-3": -signal.SIGILL, "pi-4": -signal.SIGILL, "pi-5": ANSWER}
