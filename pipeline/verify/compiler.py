"""Generated C made a library, once for all that is verified with it, by the compiler here."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput, Missing

COMPILERS = ("gcc", "cc", "clang")
LIBRARY = "libmodel.so"
PROGRAM = "static"
PRODUCTS = {PROGRAM: "classify", LIBRARY: LIBRARY}  # by make's target
MEND = "install gcc and make, or name a compiler in CC"


def compiler() -> list[str] | None:
    """The command that compiles C: $CC, or the first that is there. None without it or make."""
    chosen = shlex.split(os.environ.get("CC", ""))
    names = [chosen] if chosen else [[name] for name in COMPILERS]
    found = next((command for command in names if shutil.which(command[0])), None)
    return found if shutil.which("make") else None


@dataclass(frozen=True)
class Sources:
    """A generated folder. Only `files` of it count: what else a person has there is left out."""

    folder: Path
    files: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> Sources:
        """All sources that lie in a folder."""
        names = (*folder.glob("*.c"), *folder.glob("*.h"), folder / "Makefile")
        return cls(folder, tuple(sorted(path.name for path in names)))

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        contents = (self.folder.joinpath(name).read_bytes() for name in self.files)
        digests = (hashlib.sha256(content).digest() for content in contents)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def built(sources: Sources, options: Sequence[str] = (), target: str = LIBRARY) -> bytes:
    """`make libmodel.so` or `make static` of a copy, by the compiler here, as `made`.

    Raises Missing without a compiler.
    """
    command = compiler()
    if command is None:
        raise Missing(f"{sources.folder.name}: there is no C compiler, or no make", MEND)
    return made(sources, target, command, options, command[0])


def made(
    sources: Sources, target: str, command: Sequence[str], options: Sequence[str], compiled_by: str
) -> bytes:
    """What `make` of one of PRODUCTS makes of a copy, as a person would on the device.

    `command` is the compiler, `options` are make's own, like "CFLAGS=-O1". What is stripped is the
    same in every folder. Raises BadInput with the first complaint of the compiler, by its name.
    """
    name = sources.folder.name
    with tempfile.TemporaryDirectory() as work:
        for file in sources.files:
            if not (sources.folder / file).is_file():
                raise BadInput(f"{sources.folder}: {file} is missing", "export it again")
            place = Path(work) / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sources.folder / file, place)
        make = ["make", "-s", f"-j{os.cpu_count() or 1}", target, f"CC={shlex.join(command)}"]
        done = subprocess.run(
            [*make, *options], cwd=work, capture_output=True, text=True, check=False
        )
        product = Path(work) / PRODUCTS[target]
        if done.returncode != 0 or not product.is_file():
            said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            reason = (said or done.stderr.splitlines() or ["nothing was made"])[0]
            raise BadInput(f"{name}: {compiled_by} does not compile it ({reason})")
        return product.read_bytes()
