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


def built(sources: Sources, options: Sequence[str] = ()) -> bytes:
    """`make libmodel.so` of a copy, as a person would on the device: the library.

    `options` are make's own, like "CFLAGS=-O1". Raises Missing without a compiler, BadInput with
    the first complaint of one.
    """
    command, name = compiler(), sources.folder.name
    if command is None:
        raise Missing(f"{name}: there is no C compiler, or no make", MEND)
    with tempfile.TemporaryDirectory() as work:
        for file in sources.files:
            place = Path(work) / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(sources.folder / file, place)
        make = ["make", "-s", f"-j{os.cpu_count() or 1}", LIBRARY, f"CC={shlex.join(command)}"]
        done = subprocess.run(
            [*make, *options], cwd=work, capture_output=True, text=True, check=False
        )
        library = Path(work) / LIBRARY
        if done.returncode != 0 or not library.is_file():
            said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            reason = (said or done.stderr.splitlines() or ["nothing was made"])[0]
            raise BadInput(f"{name}: {command[0]} does not compile it ({reason})")
        return library.read_bytes()
