"""Bundles and Debian packages for every board, used on the weakest that each is for."""

from __future__ import annotations

import functools
import json
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import pipeline
from emulation import NEEDS_ZIG, said, within

from deploy.runner.contract import Contract
from deploy.runner.scores import probabilities, real
from pipeline.data import load_dataset
from pipeline.errors import Missing
from pipeline.export.c.evaluate import evaluate, seen
from pipeline.export.c.golden import as_input
from pipeline.export.c.lowering import Lowering
from pipeline.export.c.operators import OPERATORS
from pipeline.export.c.reading import read
from pipeline.export.c.values import Program
from pipeline.package import check_archive
from pipeline.package.targets import TARGETS
from pipeline.package.toolchain import BOARDS, COMPILERS, GCC, ZIG, emulator
from pipeline.verify.compiler import compiler

pytestmark = [
    pytest.mark.emulated,
    NEEDS_ZIG,
    pytest.mark.skipif(compiler() is None, reason="no C compiler, or no make"),
]

# The weakest board that a target means; what runs there runs on all.
WEAKEST = {name: target.board for name, target in TARGETS.items() if target.board}
# A target for each binary.
BINARIES = list({BOARDS[board].binary: target for target, board in WEAKEST.items()}.values())
COMPILED = [*((target, ZIG) for target in WEAKEST), ("pi-32", GCC), ("pi-4", GCC)]


@pytest.fixture(scope="session")
def bundles(
    trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Path]]:
    """By target, and compiler, the archive with C alone, int8, and where it was unpacked."""
    places = {by: tmp_path_factory.mktemp(by) for by in COMPILERS}
    for place in places.values():
        shutil.copytree(trained, place / "runs")

    @functools.cache
    def packed(target: str, by: str = ZIG) -> tuple[Path, Path]:
        place = places[by]
        options = ["--target", target, "--runtime", "c", "--precision", "int8", "--json"]
        options += ["--compiler", by]
        done = pipeline("package", "--run", "small", *options, runs=place / "runs")
        assert done.returncode == 0, done.stderr
        archive = Path(json.loads(done.stdout)["file"])
        with tarfile.open(archive) as files:
            files.extractall(place, filter="data")
        return archive, place / archive.name.removesuffix(".tar.gz")

    return packed


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """200 pictures as an IDX file, and as uint8 N x 1 x 28 x 28."""
    pixels: Any = load_dataset("digits", (1, 28, 28), seed=0).test.images[:200].numpy()
    path = tmp_path_factory.mktemp("pictures") / "pictures.idx"
    path.write_bytes(struct.pack(">4I", 0x803, *pixels[:, 0].shape) + pixels.tobytes())
    return path, pixels


def repeated(program: Program, pixels: Any) -> Any:
    """The output, int8 N x classes, of uint8 pixels by the layers in NumPy: what C must repeat."""
    (given,), (output,) = program.inputs, program.outputs
    values = [evaluate(program, {given.name: as_input(given, image)}) for image in pixels]
    return np.concatenate([seen(output, value[output.root]) for value in values]).astype(np.int8)


@pytest.mark.parametrize(("target", "by"), COMPILED)
def test_a_bundle_computes_on_its_weakest_board_what_was_trained(
    target: str,
    by: str,
    bundles: Callable[..., tuple[Path, Path]],
    mnist: tuple[Path, Any],
    trained: Path,
) -> None:
    try:
        command = emulator(WEAKEST[target])
    except Missing as error:
        pytest.skip(str(error))
    if by == GCC and shutil.which(BOARDS[WEAKEST[target]].gcc[0]) is None:
        pytest.skip(f"no {BOARDS[WEAKEST[target]].gcc[0]}: Debian has it")
    archive, folder = bundles(target, by)
    manifest = check_archive(archive)
    assert manifest["target"]["name"] == target
    assert ("Zig" in manifest["target"]["compiler"]) == (by == ZIG)
    assert ("glibc" in (folder / "NOTICES").read_text()) == (by == GCC)
    path, pixels = mnist
    classify = [*command, str(folder / "classify")]
    said(classify, "--selftest")
    answers = json.loads(said(classify, "--json", "--top", "10", str(path)))["answers"]
    contract = Contract.from_json(json.dumps(manifest["contracts"]["int8"]), archive.name)
    model = trained / "small" / "lenet5-classic-int8.onnx"
    lowered = Lowering(read(model.read_bytes(), model.name)).program(OPERATORS)
    wanted = probabilities(real(repeated(lowered, pixels), contract.output), contract)
    assert len(answers) == len(wanted) == 200
    for answer, chances in zip(answers, wanted, strict=True):
        found = dict(answer["top"])
        # A step of the last layer is a tenth of a probability and more; scores are float32, and
        # nine decimals are printed.
        shown = np.array([found[label] for label in contract.labels])
        np.testing.assert_allclose(shown, chances, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("target", BINARIES)
def test_a_bundle_is_the_same_bytes_from_another_folder(
    target: str, bundles: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    archive, _ = bundles(target)
    shutil.copytree(archive.parents[1], tmp_path / "elsewhere")
    copy = tmp_path / "elsewhere" / archive.relative_to(archive.parents[1])
    copy.unlink()
    options = ["--target", target, "--runtime", "c", "--precision", "int8"]
    done = pipeline("package", "--run", "small", *options, runs=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == archive.read_bytes()


# --- Packages for dpkg ----------------------------------------------------------------------------


def dpkg(board: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    forced = ["--force-script-chrootless", "--force-depends", "--force-architecture"]
    return within(board, "dpkg", f"--root={root}", *forced, *arguments)


@pytest.fixture(scope="session")
def deb(bundles: Callable[[str], tuple[Path, Path]]) -> Callable[[str], Path]:
    """By target the .deb of what is in `bundles`."""
    if shutil.which("dpkg") is None:
        pytest.skip("there is no dpkg")
    if shutil.which("unshare") is None or within("pi-4", "true").returncode != 0:
        pytest.skip("no user namespaces with a binfmt_misc of their own")

    @functools.cache
    def packed(target: str) -> Path:
        runs = bundles(target)[0].parents[1]
        options = ["--target", target, "--runtime", "c", "--precision", "int8", "--format", "deb"]
        done = pipeline("package", "--run", "small", *options, "--json", runs=runs)
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["file"])

    return packed


@pytest.mark.parametrize("target", WEAKEST)
def test_dpkg_installs_tests_and_removes_a_package_on_its_weakest_board(
    target: str, deb: Callable[[str], Path], tmp_path: Path
) -> None:
    package, board = deb(target), WEAKEST[target]
    done = dpkg(board, tmp_path, "--install", str(package))
    assert done.returncode == 0, done.stderr
    name = "pi-lenet5-classic"
    assert "install ok installed" in (tmp_path / "var/lib/dpkg/status").read_text()
    verified = dpkg(board, tmp_path, "--verify", name)
    assert (verified.returncode, verified.stdout) == (0, "")
    done = dpkg(board, tmp_path, "--purge", name)
    assert done.returncode == 0, done.stderr
    left = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert [path for path in left if "var/lib/dpkg" not in str(path)] == []


def test_a_package_says_that_the_board_is_the_wrong_one(
    deb: Callable[[str], Path], tmp_path: Path
) -> None:
    """ARMv7 code on a Pi Zero ends in an illegal instruction, though both are armhf to dpkg."""
    done = dpkg("pi-zero", tmp_path, "--install", str(deb("pi-32")))
    assert done.returncode != 0
    assert (
        "error: pi-lenet5-classic does not compute here what was trained: it is for a Pi 2, 3"
        in (done.stderr)
    )
    assert "make the package with another --target" in done.stderr


@pytest.mark.parametrize("target", WEAKEST)
def test_lintian_finds_no_errors_in_any_package(target: str, deb: Callable[[str], Path]) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("there is no lintian")
    command = ["lintian", "--fail-on", "error,warning", "--allow-root", str(deb(target))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
