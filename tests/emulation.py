"""Programs of a board, and their children, as the kernel runs them on the board.

In a user namespace of its own the kernel hands a board's programs to the emulator (Linux 6.7).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import certifi
import pytest
from conftest import pipeline

from pipeline.package.toolchain import BOARDS, QEMU, emulator

NEEDS_ZIG = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="no ziglang: run 'make emulators'"
)
Bundle = Callable[[tuple[str, ...], Path], str]  # see `orders`
DEBIAN = Path(sys.prefix) / "boards"  # where `make emulators` unpacks it
MACHINES = {"qemu-aarch64": 183, "qemu-arm": 40}  # e_machine of ELF
REGISTER = """
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf '%s' "$1" > /proc/sys/fs/binfmt_misc/register
shift
"""
# What needs no network has none: its namespace is an empty one.
CHANGE_ROOT = """
mount --rbind /dev "$1/dev"
mount --bind "$1/debian/usr" "$1/usr"
root=$1
shift
exec chroot "$root" "$@"
"""
ARM64 = "fp asimd evtstrm crc32 cpuid"
ARMV7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm"
# /proc/cpuinfo of each: QEMU shows this machine's, from which runtimes choose their kernels (and
# crash). CPU part, Features, name.
PROCESSORS = {
    "pi-zero": ("0xb76", "half thumb fastmult vfp edsp java tls", "Zero W Rev 1.1"),
    "pi-2": ("0xc07", ARMV7, "2 Model B Rev 1.1"),
    "pi-3": ("0xd03", ARM64, "3 Model B Rev 1.2"),
    "pi-4": ("0xd08", ARM64, "4 Model B Rev 1.4"),
    "pi-5": ("0xd0b", f"{ARM64} asimdhp asimddp", "5 Model B Rev 1.0"),
}


def said(command: list[str], *arguments: str) -> str:
    """What a command prints that succeeds."""
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def orders(runs: Path, board: str, place: Path) -> Bundle:
    """Unpacks what `package` makes with some options below /tmp of a root folder, and says where;
    each is packed once, in a folder below `place`.
    """

    @functools.cache
    def packed(order: tuple[str, ...]) -> Path:
        copy = place / str(hash(order)) / "runs"
        shutil.copytree(runs, copy)
        options = ["--run", "small", "--target", board, *order, "--json"]
        done = pipeline("package", *options, runs=copy)
        if done.returncode == 4 and "wheels" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["file"])

    def unpacked(order: tuple[str, ...], root: Path) -> str:
        folder = root / "tmp" / str(len(order))
        with tarfile.open(packed(order)) as files:
            files.extractall(folder, filter="data")
        (name,) = folder.iterdir()
        return f"/tmp/{folder.name}/{name.name}"

    return unpacked


def within(board: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command here whose children may be programs of the board.

    sh, where dpkg is in it, finds the emulated processor in QEMU_CPU.
    """
    interpreter, _, model = emulator(board)
    variables = os.environ | {"QEMU_CPU": model}
    return _namespace(board, interpreter, ['exec "$@"', *command], variables)


def on_board(
    board: str, root: Path, *command: str, mounts: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the board's in a folder of `board_root`, without a network. `mounts` is a
    script before it, by this machine's programs, that finds the folder in $1.
    """
    name = f"{BOARDS[board].qemu}-static"
    interpreter = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}{QEMU}")
    if interpreter is None:
        pytest.skip(f"no {name}: run 'make emulators'")
    known = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }
    known["QEMU_CPU"] = BOARDS[board].model
    inside = [mounts + CHANGE_ROOT, str(root), *command]
    return _namespace(board, interpreter, inside, known | variables, "--net")


def _namespace(
    board: str, interpreter: str, inside: list[str], variables: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    machine = MACHINES[BOARDS[board].qemu]
    size = 2 if machine == 183 else 1  # 64 or 32 bits
    magic = f"\\x7fELF\\x0{size}\\x01\\x01" + "\\x00" * 9 + f"\\x02\\x00\\x{machine:02x}\\x00"
    # The type is that of a program at a fixed address (2) or at any (3).
    mask = "\\xff" * 7 + "\\x00" * 9 + "\\xfe\\xff\\xff\\xff"
    script, *arguments = inside
    register = f":board:M::{magic}:{mask}:{interpreter}:F"
    alone = ["unshare", "--user", "--map-root-user", "--mount", *options]
    return subprocess.run(
        [*alone, "sh", "-ec", REGISTER + script, "sh", register, *arguments],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def debian(board: str, release: str = "") -> Path:
    """The board's Debian, of another release than this machine's if it is named."""
    architecture = "arm64" if BOARDS[board].qemu == "qemu-aarch64" else "armhf"
    name = f"{architecture}-{release}" if release else architecture
    if not (DEBIAN / name).is_dir():
        pytest.skip(f"no Debian for {name}: run 'make emulators'")
    return DEBIAN / name


def board_root(board: str, folder: Path, release: str = "") -> Path:
    """A root folder of the board in a folder: its Debian is mounted there while commands run."""
    for name in ("usr", "dev", "tmp", "opt", "proc/device-tree"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "lib", "sbin"):
        (folder / name).symlink_to(f"usr/{name}")
    (folder / "debian").symlink_to(debian(board, release))
    (folder / "etc" / "ssl" / "certs").mkdir(parents=True)  # where Debian's pip looks, even offline
    shutil.copy(certifi.where(), folder / "etc" / "ssl" / "certs" / "ca-certificates.crt")
    part, features, name = PROCESSORS[board]
    lines = f"processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
    (folder / "proc" / "cpuinfo").write_text(lines)
    (folder / "proc" / "device-tree" / "model").write_text(f"Raspberry Pi {name}\0")
    done = on_board(board, folder, "/bin/true")
    if done.returncode != 0:
        pytest.skip(f"no user namespaces with binfmt_misc of their own ({done.stderr.strip()})")
    return folder
