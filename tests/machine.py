"""A whole emulated machine: Debian's kernel, and a root file system in memory that is made here."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from emulation import DEBIAN, debian

LONGEST = 1000  # seconds; a slow machine has taken 550
# What no program of a small machine reads, whose 256 MB are for the files, packed and unpacked, and
# for the rest.
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
INIT = Path(__file__).with_name("machine_init.py")
# The beginning of a command that a user of the machine gives, not root.
AS_PI = (
    "/usr/bin/python3",
    "-Ic",
    "import os, pwd, sys; user = pwd.getpwnam('pi'); os.setgroups([]); os.setgid(user.pw_gid); "
    "os.setuid(user.pw_uid); os.chdir(user.pw_dir); "
    "os.environ.update(HOME=user.pw_dir, XDG_RUNTIME_DIR=f'/run/user/{user.pw_uid}'); "
    "os.execvp(sys.argv[1], sys.argv[1:])",
)


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
    board: str,
    cpu: str,
    files: Path,
    commands: Sequence[Sequence[str]],
    work: Path,
    *,
    megabytes: int = 256,
    systemd: bool = False,
) -> list[tuple[int, str, str]]:
    """Boot a machine with `files` as /files, and run commands in it until it powers itself off: as
    its only process, or in systemd, with a manager of user 1000. Of each: exit code, stdout,
    stderr.
    """
    kernels = sorted((DEBIAN / "kernel" / "boot").glob("vmlinuz-*"))
    if not kernels:
        pytest.skip("no kernel of Debian's: run 'make emulators'")
    command = emulator()
    folders = [("usr", debian(board) / "usr"), ("files", files)]
    if systemd:
        over = DEBIAN / f"{debian(board).name}-systemd" / "usr"
        if not over.is_dir():
            pytest.skip("no systemd of Debian's: run 'make emulators'")
        folders.insert(1, ("usr", over))
    job = {"commands": [list(each) for each in commands], "systemd": systemd}
    image = work / "initrd.gz"
    with gzip.open(image, "wb", compresslevel=1) as archive:
        left_out = LEFT_OUT if megabytes <= 256 else ()
        for entry in _archive(folders, json.dumps(job).encode(), left_out):
            archive.write(entry)
    command += ["-M", "virt", "-cpu", cpu, "-m", str(megabytes)]
    command += ["-nographic", "-no-reboot", "-nic", "none"]
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


def _archive(
    folders: Sequence[tuple[str, Path]], job: bytes, left_out: Sequence[str]
) -> Iterator[bytes]:
    """A cpio archive as the kernel reads it: "newc", Documentation/driver-api/early-userspace."""
    for name in ("proc", "sys", "dev", "tmp", "root", "opt"):
        yield _entry(name, stat.S_IFDIR | 0o777)
    yield _entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for name in ("bin", "lib", "sbin"):
        yield _entry(name, stat.S_IFLNK | 0o777, f"usr/{name}".encode())
    yield _entry("init", stat.S_IFREG | 0o755, INIT.read_bytes())
    yield _entry("job.json", stat.S_IFREG | 0o644, job)
    for top, folder in folders:
        for place, directories, names in os.walk(folder):
            directories[:] = [n for n in directories if top != "usr" or n not in left_out]
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
    called = os.fsencode(name) + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(called), 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + called
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
