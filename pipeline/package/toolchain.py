"""Generated C compiled for every board here, and an emulator that runs it as the board would.

Zig's C compiler knows all of the targets and brings their libraries: what it makes is static. QEMU
enforces what a processor lacks: an instruction of a later one ends in SIGILL.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import Missing, unknown
from ..verify.compiler import LIBRARY, PRODUCTS, PROGRAM, Sources, made

QEMU = Path(sys.prefix) / "qemu" / "usr" / "bin"  # where `make emulators` unpacks it
MEND = "run 'make emulators'"
GLIBC = "2.17"  # which libraries ask for: every system of the last ten years has it


@dataclass(frozen=True)
class Board:
    """What a board's processor is to the compiler (`target`, `cpu`; no `cpu`: any such) and to
    QEMU. `sets` are the instruction sets of a binary for it, `runs` those that it runs.
    """

    target: str
    cpu: str
    qemu: str
    model: str
    sets: tuple[str, ...]
    runs: tuple[str, ...]

    def compiler(self, product: str) -> list[str]:
        """The command that compiles for it: programs bring musl, libraries use its glibc."""
        target = self.target
        if product == LIBRARY:
            target = f"{target.replace('musl', 'gnu')}.{GLIBC}"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target]
        return [*command, f"-mcpu={self.cpu}"] if self.cpu else command

    @property
    def binary(self) -> str:
        """A name for what is compiled alike: 64-bit boards share one binary."""
        return f"{self.target}-{self.cpu}" if self.cpu else self.target


ARMV6 = ("arm-linux-musleabihf", "arm1176jzf_s", "qemu-arm", "arm1176")
ARMV7 = ("arm-linux-musleabihf", "cortex_a7", "qemu-arm", "cortex-a7")
ARM64 = ("aarch64-linux-musl", "", "qemu-aarch64")
SETS_OF_ARM64 = ("neon", "dotprod")

BOARDS = {
    "pi-zero": Board(*ARMV6, ("portable",), ("portable",)),
    "pi-2": Board(*ARMV7, ("neon",), ("neon",)),
    "pi-3": Board(*ARM64, "cortex-a53", SETS_OF_ARM64, ("neon",)),
    "pi-4": Board(*ARM64, "cortex-a72", SETS_OF_ARM64, ("neon",)),
    "pi-5": Board(*ARM64, "cortex-a76", SETS_OF_ARM64, SETS_OF_ARM64),
}


def board_of(name: str) -> Board:
    """The board of that name. Raises UsageError."""
    if name not in BOARDS:
        raise unknown("board", name, BOARDS)
    return BOARDS[name]


def compiled(folder: Path, board: str, target: str = PROGRAM) -> bytes:
    """The executable or the library of a generated folder for a board.

    Raises UsageError for unknown boards and targets, Missing without Zig or make, BadInput with
    the compiler's first complaint.
    """
    chosen = board_of(board)
    if target not in PRODUCTS:
        raise unknown("target", target, PRODUCTS)
    if importlib.util.find_spec("ziglang") is None or shutil.which("make") is None:
        raise Missing(f"{board}: there is no compiler for it, or no make", MEND)
    options = ["LDFLAGS=-s"] if target == LIBRARY else []
    compiler = chosen.compiler(target)
    return made(Sources.of(folder), target, compiler, options, f"Zig for a {board}")


def build(folder: Path, board: str, target: str = PROGRAM, into: Path | None = None) -> Path:
    """As `compiled`, in a file that comes to lie in `into`, by default a folder in `folder` that is
    named by the processor.
    """
    content = compiled(folder, board, target)
    place = (into or folder / board_of(board).binary) / PRODUCTS[target]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    place.chmod(0o755)
    return place


def emulator(board: str) -> list[str]:
    """The command that runs a board's executables here. Raises Missing, and UsageError."""
    chosen = board_of(board)
    names = (chosen.qemu, f"{chosen.qemu}-static")
    paths = (os.environ.get("PATH", os.defpath), str(QEMU))
    there = [p for path in paths for name in names if (p := shutil.which(name, path=path))]
    found = next((path for path in there if _runs(path)), None)
    if found is None:
        raise Missing(f"{board}: there is no emulator ({chosen.qemu})", MEND)
    return [found, "-cpu", chosen.model]


@functools.cache
def _runs(path: str) -> bool:
    """Whether an emulator starts: one that was unpacked may lack its libraries."""
    done = subprocess.run([path, "--version"], capture_output=True, check=False)
    return done.returncode == 0
