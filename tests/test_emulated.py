"""Static executables for every board, run as the board would run them."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import pipeline
from emulation import NEEDS_ZIG, said

from pipeline.data import load_dataset
from pipeline.errors import Missing
from pipeline.export.c import generate, write
from pipeline.package.toolchain import BOARDS, build, emulator
from pipeline.verify.compiler import compiler

IMAGES = 20
LIMIT = 120_000  # bytes of lenet5
# The classic network has twice as many layers, and so golden values, and a table for each sigmoid.
CLASSIC_LIMIT = 140_000
PRECISIONS = ("int8", "fp32")
pytestmark = [
    pytest.mark.emulated,
    NEEDS_ZIG,
    pytest.mark.skipif(compiler() is None, reason="no C compiler, or no make"),
]


@pytest.fixture(scope="session")
def sources(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The generated folders of `trained`, by precision."""
    folders = {}
    for precision in PRECISIONS:
        model = trained / "small" / f"lenet5-classic-{precision}.onnx"
        folders[precision] = tmp_path_factory.mktemp("c") / precision
        folders[precision].mkdir()
        write(generate(model.read_bytes(), model.name), folders[precision])
    return folders


@pytest.fixture(scope="session")
def native(sources: dict[str, Path]) -> dict[str, list[str]]:
    """The executables of this machine."""
    for folder in sources.values():
        subprocess.run(["make", "-s", "classify"], cwd=folder, check=True)
    return {precision: [str(folder / "classify")] for precision, folder in sources.items()}


@pytest.fixture(scope="session")
def emulated(
    sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], list[str]]:
    """The command that runs a board's executable; boards that share one have it built once."""
    built: dict[tuple[str, str], Path] = {}
    place = tmp_path_factory.mktemp("boards")

    def command(board: str, precision: str) -> list[str]:
        try:
            run = emulator(board)
        except Missing as error:
            pytest.skip(str(error))
        key = (precision, BOARDS[board].binary)
        if key not in built:
            built[key] = build(sources[precision], board, into=place / "-".join(key))
        return [*run, str(built[key])]

    return command


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An IDX file of test images."""
    pixels: Any = load_dataset("digits", (1, 28, 28), seed=0).test.images[:IMAGES, 0].numpy()
    path = tmp_path_factory.mktemp("images") / "images.idx"
    path.write_bytes(struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes())
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("board", BOARDS)
def test_every_layer_repeats_its_golden_value(
    board: str, precision: str, emulated: Callable[[str, str], list[str]]
) -> None:
    said(emulated(board, precision), "--selftest")


@pytest.mark.parametrize("board", BOARDS)
def test_int8_scores_are_those_of_this_machine(
    board: str,
    emulated: Callable[[str, str], list[str]],
    native: dict[str, list[str]],
    images: Path,
) -> None:
    assert said(emulated(board, "int8"), str(images)) == said(native["int8"], str(images))

    def top(command: list[str]) -> list[list[tuple[str, float]]]:
        answers = json.loads(said(command, "--json", "--top", "10", str(images)))["answers"]
        return [answer["top"] for answer in answers]

    wanted, found = top(native["int8"]), top(emulated(board, "int8"))
    assert [len(one) for one in wanted] == [10] * IMAGES
    assert [[label for label, _ in one] for one in found] == [[x for x, _ in one] for one in wanted]
    # Probabilities are of two C libraries' exp in double; a score one step off is far more.
    for one, other in zip(found, wanted, strict=True):
        assert [p for _, p in one] == pytest.approx([p for _, p in other], rel=1e-9)


@pytest.mark.parametrize("board", BOARDS)
def test_fp32_labels_are_those_of_this_machine(
    board: str,
    emulated: Callable[[str, str], list[str]],
    native: dict[str, list[str]],
    images: Path,
) -> None:
    def labels(command: list[str]) -> list[str]:
        return [line.split()[0] for line in said(command, str(images)).splitlines()]

    wanted = labels(native["fp32"])
    assert len(wanted) == IMAGES
    assert len(set(wanted)) > 3
    assert labels(emulated(board, "fp32")) == wanted


@pytest.mark.parametrize("board", BOARDS)
def test_the_instruction_sets_are_those_of_the_board(
    board: str, emulated: Callable[[str, str], list[str]]
) -> None:
    sets = json.loads(said(emulated(board, "int8"), "--version", "--json"))["sets"]
    assert tuple(sets) == BOARDS[board].runs


@pytest.mark.parametrize("board", BOARDS)
def test_it_stands_alone_and_is_small(
    board: str, emulated: Callable[[str, str], list[str]]
) -> None:
    program = Path(emulated(board, "int8")[-1]).read_bytes()
    assert program.startswith(b"\x7fELF")
    assert b"ld-musl" not in program  # it is static
    assert len(program) <= CLASSIC_LIMIT


@pytest.fixture(scope="session")
def lenet5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated int8 folder of lenet5, hardly trained."""
    runs = tmp_path_factory.mktemp("lenet5")
    for command in (["train", "--epochs", "1"], ["export", "--format", "c", "--precision", "int8"]):
        done = pipeline(*command, "--run", "lenet5", runs=runs)
        assert done.returncode == 0, done.stderr
    return runs / "lenet5" / "lenet5-int8-c"


@pytest.mark.parametrize("board", BOARDS)
def test_lenet5_is_within_its_size(board: str, lenet5: Path, tmp_path: Path) -> None:
    assert build(lenet5, board, into=tmp_path).stat().st_size <= LIMIT
