"""The generated C of a run, compiled for where a bundle goes, and tried as it would run there."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.runner.contract import default_precision

from ..errors import VerificationFailed
from ..run_folder import RunFolder
from ..verify.compiler import LIBRARY, PROGRAM, Sources, built
from .targets import Place
from .toolchain import compiled, emulator

CLASSIFY = "classify"
HEADERS = ("model.h", "runner.h")


def library_name(run: RunFolder, precision: str) -> str:
    """The file name of the shared library of this precision."""
    return f"{run.model}-{precision}.so"


def native_files(
    run: RunFolder, place: Place, precisions: Sequence[str], by: str | None
) -> dict[str, bytes]:
    """A library for each precision; of the default one also the executable, which needs nothing
    beside it, and the headers. For a board `by` is one of toolchain.COMPILERS. Raises
    Missing without a compiler, BadInput.
    """
    files: dict[str, bytes] = {}
    for precision in precisions:
        folder = run.need(run.artefact(precision, "c"))
        files[library_name(run, precision)] = _made(folder, place, LIBRARY, by)
        if precision == default_precision(precisions):
            files[CLASSIFY] = _made(folder, place, PROGRAM, by)
            files |= {f"include/{name}": (folder / name).read_bytes() for name in HEADERS}
    return files


def _made(folder: Path, place: Place, target: str, by: str | None) -> bytes:
    if place.target.board:
        return compiled(folder, place.target.board, target, by)
    options = ["LDFLAGS=-s"] if target == LIBRARY else []  # as Zig's are
    return built(Sources.of(folder), options, target)


def try_out(place: Place, classify: bytes) -> None:
    """Run the very executable that is packed: every layer must repeat its golden value.

    Raises VerificationFailed, and Missing where nothing here runs it.
    """
    command = emulator(place.target.board) if place.target.board else []
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / CLASSIFY
        path.write_bytes(classify)
        path.chmod(0o755)
        done = subprocess.run(
            [*command, str(path), "--selftest"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if done.returncode != 0:
        said = (done.stdout or done.stderr).strip().replace("\n", ", ")
        raise VerificationFailed(
            f"{place.name}: the selftest of its executable ended with {done.returncode} ({said})",
            "nothing was packed; please report it",
        )
