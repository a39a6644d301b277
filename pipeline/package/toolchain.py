"""Generated C compiled for every board here, and an emulator that runs it as the board would.

Zig's C compiler knows all of the targets and brings their libraries; Debian's cross gcc, where that
is here instead, knows all but ARMv6, and libraries ask for its glibc. Programs are static either
way. QEMU enforces what a processor lacks: an instruction of a later one ends in SIGILL.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..errors import Missing, UsageError, unknown
from ..verify.compiler import LIBRARY, PRODUCTS, PROGRAM, Sources, compiler, made

QEMU = Path(sys.prefix) / "qemu" / "usr" / "bin"  # where `make emulators` unpacks it
MEND = "run 'make emulators'"
GLIBC = "2.17"  # which libraries of Zig ask for: every system of the last ten years has it
ZIG, GCC = COMPILERS = ("zig", "gcc")


@dataclass(frozen=True)
class Board:
    """What a board's processor is to Zig (`target`, `cpu`; no `cpu`: any such), to Debian's gcc
    (its command, empty where it has none) and to QEMU. `sets` are the instruction sets of a binary
    for it, `runs` those that it runs.
    """

    target: str
    cpu: str
    gcc: tuple[str, ...]
    qemu: str
    model: str
    sets: tuple[str, ...]
    runs: tuple[str, ...]

    def compiler(self, product: str, by: str = ZIG) -> list[str]:
        """The command that compiles for it, by one of COMPILERS: Zig's programs bring musl."""
        if by == GCC:
            return list(self.gcc)
        target = self.target
        if product == LIBRARY:
            target = f"{target.replace('musl', 'gnu')}.{GLIBC}"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target]
        return [*command, f"-mcpu={self.cpu}"] if self.cpu else command

    @property
    def binary(self) -> str:
        """A name for what is compiled alike: 64-bit boards share one binary."""
        return f"{self.target}-{self.cpu}" if self.cpu else self.target


ARMV7_GCC = ("arm-linux-gnueabihf-gcc", "-mcpu=cortex-a7", "-mfpu=neon-vfpv4")
ARMV6 = ("arm-linux-musleabihf", "arm1176jzf_s", (), "qemu-arm", "arm1176")
ARMV7 = ("arm-linux-musleabihf", "cortex_a7", ARMV7_GCC, "qemu-arm", "cortex-a7")
ARM64 = ("aarch64-linux-musl", "", ("aarch64-linux-gnu-gcc",), "qemu-aarch64")
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


def cross_compiler(board: str, wanted: str | None = None) -> str:
    """Which of COMPILERS compiles for a board: the one that is wanted, or Zig before gcc.

    Raises UsageError where gcc cannot, Missing where there is none, or no make.
    """
    gcc = board_of(board).gcc
    if wanted is not None and wanted not in COMPILERS:
        raise unknown("compiler", wanted, COMPILERS)
    if wanted == GCC and not gcc:
        raise UsageError(
            f"{board}: Debian's cross gcc compiles for ARMv7 at least", "leave out --compiler gcc"
        )
    here, mends = {ZIG: importlib.util.find_spec("ziglang") is not None}, {ZIG: MEND}
    if gcc:
        here[GCC] = shutil.which(gcc[0]) is not None
        mends[GCC] = f"'sudo apt install gcc-{gcc[0].removesuffix('-gcc')}'"
    asked = [name for name in here if wanted in (None, name)]
    found = [name for name in asked if here[name]]
    if not found:
        mend = " or ".join(mends[name] for name in asked)
        raise Missing(f"{board}: there is no compiler for it", mend)
    if shutil.which("make") is None:
        raise Missing(f"{board}: there is no make", "run 'sudo apt install make'")
    return found[0]


def compiled(folder: Path, board: str, target: str = PROGRAM, by: str | None = None) -> bytes:
    """The executable or the library of a generated folder for a board, by `cross_compiler`.

    Raises UsageError for unknown boards and targets, Missing without a compiler or make, BadInput
    with the compiler's first complaint.
    """
    chosen = board_of(board)
    if target not in PRODUCTS:
        raise unknown("target", target, PRODUCTS)
    by = cross_compiler(board, by)
    options = ["LDFLAGS=-s"] if target == LIBRARY else []
    name = {ZIG: "Zig", GCC: "gcc"}[by]
    return made(
        Sources.of(folder), target, chosen.compiler(target, by), options, f"{name} for a {board}"
    )


def version_of(board: str, by: str | None) -> str:
    """One of COMPILERS by name and version, as it is here; without a board, this machine's own
    compiler, or "" where there is none.
    """
    if by == ZIG:
        return f"Zig {version('ziglang')}"
    command = [board_of(board).gcc[0]] if board else compiler()
    if command is None:
        return ""
    asked = [*command, "-dumpfullversion" if board else "--version"]
    done = subprocess.run(asked, capture_output=True, text=True, errors="replace", check=False)
    return " ".join([*command, *done.stdout.splitlines()[:1]])


def cross_glibc(board: str) -> str:
    """The version of glibc that gcc's programs for a board contain, as its headers have it."""
    asked = "#include <features.h>\n__GLIBC__ __GLIBC_MINOR__\n"
    command = [*board_of(board).gcc, "-E", "-P", "-"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    return ".".join(done.stdout.split()[-2:])


def build(
    folder: Path,
    board: str,
    target: str = PROGRAM,
    into: Path | None = None,
    by: str | None = None,
) -> Path:
    """As `compiled`, in a file that comes to lie in `into`, by default a folder in `folder` that is
    named by the processor.
    """
    content = compiled(folder, board, target, by)
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
