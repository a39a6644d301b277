"""A whole emulated machine: Debian's kernel, and a root file system in memory that is made here."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from emulation import DEBIAN, debian

LONGEST = 600  # seconds
# What no program here reads; there are 256 MB for the files, packed and unpacked, and for the rest.
LEFT_OUT = (
    "share",
    "gconv",
    "tests",
    "test",
    "include",
    "python-wheels",
    "perl-base",
    "__pycache__",
)
INIT = """#!/usr/bin/python3 -I
import ctypes, json, os, subprocess
libc = ctypes.CDLL(None)
for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
    libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None)
os.environ.update(PATH="/usr/sbin:/usr/bin", HOME="/root", LC_ALL="C.UTF-8")
for command in {commands!r}:
    done = subprocess.run(command, capture_output=True, text=True)
    print("\\n@" + json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)
libc.reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF
"""


def emulator() -> list[str]:
    """QEMU for a whole machine; what was unpacked is started with its own libraries."""
    if found := shutil.which("qemu-system-aarch64"):
        return [found]
    root = DEBIAN / "machine"
    loaders = sorted(root.glob("usr/lib*/ld-linux-*"))
    if not loaders:
        pytest.skip("no qemu-system-aarch64: run 'make emulators'")
    (libraries,) = root.glob("usr/lib/*-linux-gnu")
    program = root / "usr" / "bin" / "qemu-system-aarch64"
    return [str(loaders[0]), "--library-path", str(libraries), str(program)]


def boot(
    board: str, cpu: str, files: Path, commands: Sequence[Sequence[str]], work: Path
) -> list[tuple[int, str, str]]:
    """Boot a machine with 256 MB, with `files` as /files, and run commands in it until it powers
    itself off. Of each: exit code, stdout, stderr.
    """
    kernels = sorted((DEBIAN / "kernel" / "boot").glob("vmlinuz-*"))
    if not kernels:
        pytest.skip("no kernel of Debian's: run 'make emulators'")
    command = emulator()
    init = INIT.format(commands=[list(each) for each in commands])
    image = work / "initrd.gz"
    with gzip.open(image, "wb", compresslevel=1) as archive:
        for entry in _archive({"usr": debian(board) / "usr", "files": files}, init):
            archive.write(entry)
    command += ["-M", "virt", "-cpu", cpu, "-m", "256", "-nographic", "-no-reboot", "-nic", "none"]
    command += ["-kernel", str(kernels[-1]), "-initrd", str(image)]
    command += ["-append", "console=ttyAMA0 quiet panic=-1 rootfstype=ramfs"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST, check=False
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{done.stderr.decode()}{said}"
    answers: list[Any] = [json.loads(line[1:]) for line in said.splitlines() if line[:1] == "@"]
    assert len(answers) == len(commands), said
    return [(code, out, error) for code, out, error in answers]


def _archive(folders: Mapping[str, Path], init: str) -> Iterator[bytes]:
    """A cpio archive as the kernel reads it: "newc", Documentation/driver-api/early-userspace."""
    for name in ("proc", "sys", "dev", "tmp", "root", "opt"):
        yield _entry(name, stat.S_IFDIR | 0o777)
    yield _entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for name in ("bin", "lib", "sbin"):
        yield _entry(name, stat.S_IFLNK | 0o777, f"usr/{name}".encode())
    yield _entry("init", stat.S_IFREG | 0o755, init.encode())
    for top, folder in folders.items():
        for place, directories, names in os.walk(folder):
            directories[:] = [n for n in directories if top != "usr" or n not in LEFT_OUT]
            below = (Path(top) / Path(place).relative_to(folder)).as_posix()
            yield _entry(below, stat.S_IFDIR | 0o755)
            for name in names + directories:
                path = Path(place) / name
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    yield _entry(f"{below}/{name}", mode, os.fsencode(path.readlink()))
                elif stat.S_ISREG(mode):
                    yield _entry(f"{below}/{name}", mode, path.read_bytes())
    yield _entry("TRAILER!!!", 0)


def _entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """Magic, 13 hexadecimal fields, the name, the content; each of the latter two fills 4 bytes."""
    # inode (0: no hard links), mode, uid, gid, links, time, size, device of the file, its own,
    # length of the name, checksum
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
