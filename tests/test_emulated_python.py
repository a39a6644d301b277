"""Bundles installed on emulated boards without a network, and what the Python runner does there."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import pipeline
from emulation import NEEDS_ZIG, board_root, on_board, within

from pipeline.data import load_dataset

IMAGES = 200
BOARDS = {"pi-3": "pi-3", "pi-4": "pi-4", "pi-5": "pi-5", "pi-32": "pi-2"}  # by target
# Beside C, once for each of Debian's architectures: an installation with wheels takes a minute.
RUNTIMES = {"pi-4": "litert", "pi-32": "tflite-runtime"}
CURRENT = "/opt/x/current"
CORTEX_A9 = "cortex-a9"
AS_C = ["--runtime", "c", "--precision", "int8", "--top", "10"]
pytestmark = [
    pytest.mark.emulated,
    pytest.mark.timeout(1200),  # the first test of a board packs and installs
    NEEDS_ZIG,
]

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Installed:
    """A bundle that was installed on a board. `root` is that of the board."""

    board: str
    root: Path
    python: str

    def run(self, *arguments: str, **variables: str) -> Done:
        command = [self.python, f"{CURRENT}/bundle/runner.pyz", *arguments]
        return on_board(self.board, self.root, *command, **variables)

    def answer(self, *arguments: str) -> Any:
        """The JSON document of a command that succeeds."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def on(self, board: str, root: Path) -> Installed:
        """The same installation on another board."""
        board_root(board, root)
        shutil.copytree(
            self.root / "opt",
            root / "opt",
            symlinks=True,
            copy_function=os.link,
            dirs_exist_ok=True,
        )
        return Installed(board, root, self.python)


@pytest.fixture(scope="session")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """Unpacks a target's bundle into a folder; each is packed once."""
    runs = tmp_path_factory.mktemp("python") / "runs"
    shutil.copytree(trained, runs)

    @functools.cache
    def packed(target: str) -> Path:
        wheels = ["--runtime", "c,tflite", "--wheelhouse"]
        options = wheels if target in RUNTIMES else ["--runtime", "c"]
        done = pipeline(
            "package", "--run", "small", "--target", target, *options, "--json", runs=runs
        )
        if done.returncode == 4 and "wheels" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["file"])

    def unpacked(target: str, folder: Path) -> Path:
        with tarfile.open(packed(target)) as files:
            files.extractall(folder, filter="data")
        return folder / packed(target).name.removesuffix(".tar.gz")

    return unpacked


@pytest.fixture(scope="session")
def installed(
    bundle: Callable[[str, Path], Path],
    pictures: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Installed]:
    """By target its bundle, installed on its board; the pictures lie in /tmp there."""

    @functools.cache
    def made(target: str) -> Installed:
        board = BOARDS[target]
        root = board_root(board, tmp_path_factory.mktemp(target))
        folder = bundle(target, root / "tmp")
        command = [f"/tmp/{folder.name}/install.sh", "--prefix", "/opt/x"]
        # Compiling all of NumPy's Python takes longer here than all else.
        done = on_board(board, root, *command, PIP_NO_COMPILE="1")
        assert done.returncode == 0, done.stderr
        assert f"installed: {CURRENT}" in done.stdout
        for picture in pictures:
            shutil.copy(picture, root / "tmp")
        readme = (folder / "README.md").read_text()
        (python,) = re.findall(r"^    (\S+) bundle/runner\.pyz doctor$", readme, re.MULTILINE)
        return Installed(board, root, f"{CURRENT}/{python}" if "/" in python else python)

    return made


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Test pictures, one in each PGM file."""
    dataset = "mnist" if "PIPELINE_DATA_DIR" in os.environ else "digits"
    pixels: Any = load_dataset(dataset, (1, 28, 28), seed=0).test.images[:IMAGES, 0].numpy()
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pixels):
        (folder / f"{number:03}.pgm").write_bytes(b"P5 28 28 255\n" + picture.tobytes())
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def answers(
    bundle: Callable[[str, Path], Path],
    pictures: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Any]:
    """What the runner says of the pictures on this machine, with C in int8."""
    folder = bundle("host", tmp_path_factory.mktemp("here"))
    command = [sys.executable, str(folder / "runner.pyz"), "predict", *AS_C, *map(str, pictures)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    answered: list[Any] = json.loads(done.stdout)["answers"]
    return answered


def told(answer: list[Any]) -> list[list[list[Any]]]:
    """Labels and probabilities of every picture."""
    return [picture["top"] for picture in answer]


@pytest.mark.parametrize("target", BOARDS)
def test_the_golden_vectors_are_repeated(
    target: str, installed: Callable[[str], Installed]
) -> None:
    results = installed(target).answer("selftest")
    assert {(result["precision"], result["passed"]) for result in results} == {
        ("int8", True),
        ("fp32", True),
    }


@pytest.mark.parametrize("target", BOARDS)
def test_doctor_finds_the_board_and_what_works_on_it(
    target: str, installed: Callable[[str], Installed]
) -> None:
    found = {finding["what"]: finding for finding in installed(target).answer("doctor")}
    assert found["board"]["found"].startswith(f"Raspberry Pi {BOARDS[target][-1]} Model B")
    assert found["bundle"]["found"].startswith(f"{target}: ")
    dot_product = "dot product" in found["processor"]["found"]
    assert dot_product == (target == "pi-5")
    kernels = "dotprod" if target == "pi-5" else "neon"
    assert f"({kernels})" in found["runtime c int8"]["found"]
    for runtime in ("c", *([RUNTIMES[target]] if target in RUNTIMES else [])):
        for precision in ("int8", "fp32"):
            assert found[f"runtime {runtime} {precision}"]["state"] == "fine"
    assert "WRONG" not in {finding["state"] for finding in found.values()}


@pytest.mark.parametrize("target", BOARDS)
def test_bench_times_what_works(target: str, installed: Callable[[str], Installed]) -> None:
    card = installed(target).answer("bench", "--count", "5", "--threads", "1")
    metrics = [m for result in card["model-index"][0]["results"] for m in result["metrics"]]
    timed = {metric["args"]["runtime"].split()[0] for metric in metrics}
    assert timed == {"c", *([RUNTIMES[target]] if target in RUNTIMES else [])}
    assert min(metric["value"] for metric in metrics if metric["type"] == "p50_us") > 0


@pytest.mark.parametrize("target", BOARDS)
def test_int8_answers_of_c_are_those_of_this_machine(
    target: str,
    installed: Callable[[str], Installed],
    pictures: list[Path],
    answers: list[Any],
) -> None:
    wanted = told(answers)
    assert len(wanted) == IMAGES
    assert len({picture[0][0] for picture in wanted}) > 3
    names = [f"/tmp/{path.name}" for path in pictures]
    found = told(installed(target).answer("predict", *AS_C, *names)["answers"])
    for one, other in zip(found, wanted, strict=True):
        assert [label for label, _ in one] == [label for label, _ in other]
        # Probabilities are of two builds' exp in double; a score one step off is far more.
        assert [p for _, p in one] == pytest.approx([p for _, p in other], rel=1e-12)


@pytest.mark.parametrize("target", RUNTIMES)
def test_int8_scores_of_a_runtime_are_as_near_as_the_selftest_asks(
    target: str,
    installed: Callable[[str], Installed],
    pictures: list[Path],
    answers: list[Any],
) -> None:
    there = installed(target)
    # Its own manifest: how far a runtime may be off was found for the runtimes of that bundle.
    manifest = json.loads((there.root / CURRENT[1:] / "bundle/manifest.json").read_text())
    contract = manifest["contracts"]["int8"]
    assert contract["scores"] == "logits"
    # Of a softmax the logarithms are the scores but for a shift, at most as far off as they are.
    near = 2 * manifest["int8_steps"] * contract["output"]["scale"]
    options = ["--runtime", RUNTIMES[target], "--precision", "int8", "--top", "10"]
    names = [f"/tmp/{path.name}" for path in pictures]
    found = there.answer("predict", *options, *names)["answers"]
    for one, other in zip(told(found), told(answers), strict=True):
        chances = dict(other)
        for label, chance in one:
            assert abs(np.log(chance) - np.log(chances[label])) <= near + 1e-9


@pytest.mark.parametrize("board", ["pi-3", "pi-5"])
def test_litert_repeats_the_golden_vectors_on_other_cores(
    board: str, installed: Callable[[str], Installed], tmp_path: Path
) -> None:
    """Its kernels follow from the core, so that one installation takes others there."""
    there = installed("pi-4").on(board, tmp_path)
    results = there.answer("selftest", "--runtime", "litert")
    assert [result["passed"] for result in results] == [True, True]


def test_an_illegal_instruction_is_a_line_of_doctor(installed: Callable[[str], Installed]) -> None:
    """A Cortex-A9 runs Debian's armhf, but lacks what a Cortex-A7 has (VFPv4)."""
    there = installed("pi-32")
    done = there.run("doctor", "--json", QEMU_CPU=CORTEX_A9)
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    for precision in ("int8", "fp32"):
        finding = findings[f"runtime c {precision}"]
        assert finding["found"] == "an instruction that this processor lacks (SIGILL)"
        assert finding["mend"] == "make the bundle with the --target of this board"


def test_install_says_so_where_an_instruction_is_lacking(
    bundle: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    root = board_root("pi-2", tmp_path / "root")
    install = f"/tmp/{bundle('pi-32', root / 'tmp').name}/install.sh"
    done = on_board("pi-2", root, install, "--prefix", "/opt/x", QEMU_CPU=CORTEX_A9)
    assert done.returncode == 4
    assert "error: this bundle is for a Pi 2, 3 or 4 with a 32-bit system (ARMv7)" in done.stderr
    assert not (root / "opt" / "x").exists()


def test_a_bundle_for_a_better_board_is_not_installed(
    bundle: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    """ARMv7 on a Pi Zero, by the sh of this machine: Debian's for armhf does not run there."""
    folder = bundle("pi-32", tmp_path)
    done = within("pi-zero", str(folder / "install.sh"), "--prefix", str(tmp_path / "x"))
    if "binfmt_misc" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 4
    assert "error: this bundle is for a Pi 2, 3 or 4 with a 32-bit system (ARMv7)" in done.stderr
    assert not (tmp_path / "x").exists()
