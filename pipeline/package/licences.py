"""Whose work is in a bundle, or is installed with it, and on which terms: NOTICES.

Texts are those of the installed distributions they come with, never typed in here.
"""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from deploy.runner.bundle import RUNNER

from ..errors import Missing
from .native import CLASSIFY
from .targets import Place
from .toolchain import GCC, MEND, cross_glibc

OURS = "Apache-2.0"
# SPDX expressions of the packages that requirements name, as those themselves state them.
WHEELS = {
    "ai-edge-litert": "Apache-2.0",
    "backports-strenum": "MIT",
    "flatbuffers": "Apache-2.0",
    "ml-dtypes": "Apache-2.0",
    "numpy": "BSD-3-Clause",
    "onnxruntime": "MIT",
    "packaging": "Apache-2.0 OR BSD-2-Clause",
    "pillow": "MIT-CMU",
    "protobuf": "BSD-3-Clause",
    "tflite-runtime": "Apache-2.0",
    "tqdm": "MPL-2.0 AND MIT",
    "typing-extensions": "PSF-2.0",
}
RULE = "-" * 80


@dataclass(frozen=True)
class Linked:
    """Something that the file `inside` contains. `text` is its licence, or where that is."""

    name: str
    version: str
    licence: str
    text: str
    inside: str = CLASSIFY


@dataclass(frozen=True)
class Wheel:
    """A line of requirements: `sha256` of every wheel that pip takes for it."""

    name: str
    version: str
    sha256: tuple[str, ...]

    @property
    def licence(self) -> str:
        """Its SPDX expression."""
        return WHEELS[self.name]


def our_licence() -> bytes:
    """The text of this project's own licence."""
    return (distribution("pi-pipeline").read_text("licenses/LICENSE") or "").encode()


def wheels_of(requirements: Iterable[bytes]) -> list[Wheel]:
    """What files of requirements name, once each, by name."""
    found = {
        Wheel(name, version, tuple(sorted(re.findall(r"sha256:([0-9a-f]{64})", hashes))))
        for text in requirements
        for name, version, hashes in re.findall(
            r"^([\w-]+)==(\S+)((?:.*\\\n)*.*)", text.decode(), re.MULTILINE
        )
    }
    return sorted(found, key=lambda wheel: (wheel.name, wheel.version))


def packed_with_the_runner() -> Linked:
    """The web server in runner.pyz."""
    found = distribution("waitress")
    text = found.read_text("LICENSE.txt") or found.read_text("licenses/LICENSE.txt")
    if text is None:
        raise Missing("waitress is installed without its licence", "install it again with pip")
    return Linked("waitress", found.version, "ZPL-2.1", text, RUNNER)


def linked_into(place: Place, by: str | None) -> list[Linked]:
    """The libraries in a static executable for this place; for a board it is `by` one of
    toolchain.COMPILERS. Raises Missing without Zig.
    """
    if not place.target.board:  # by the compiler here, with its C library
        name, version = platform.libc_ver()
        return [_libc(name or "musl", version or "unknown")]
    if by == GCC:
        return [_libc("glibc", cross_glibc(place.target.board))]
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise Missing(f"{place.name}: there is no Zig, whose libraries are in classify", MEND)
    zig = Path(spec.origin).parent
    musl = zig / "lib" / "libc" / "musl"
    version = re.findall(r'"(.+)"', (musl / "src" / "internal" / "version.h").read_text())[0]
    return [
        Linked("musl", version, "MIT", (musl / "COPYRIGHT").read_text()),
        Linked(
            "compiler-rt of Zig",
            distribution("ziglang").version,
            "MIT AND Apache-2.0 WITH LLVM-exception",
            "Parts were ported from LLVM's compiler-rt, whose exception asks for no copy of its\n"
            "text where it is embedded in this way.\n\n" + (zig / "LICENSE").read_text(),
        ),
    ]


def _libc(name: str, version: str) -> Linked:
    where, licence = ("libc6", "LGPL-2.1-or-later") if name == "glibc" else ("musl", "MIT")
    text = f"Its terms are in /usr/share/doc/{where}/copyright.\n"
    return Linked(name, version, licence, text)


def notices(linked: Iterable[Linked], wheels: Iterable[Wheel]) -> bytes:
    """The file NOTICES."""
    parts = [
        "What pipeline made or brings along (runner.pyz, the C in classify and in *.so, the\n"
        "scripts) is Copyright 2026 the authors of pipeline, under the Apache License 2.0: see\n"
        "LICENSE. The models' weights, and the data that they come from, are their owners'.\n"
    ]
    for library in linked:
        head = f"{library.inside} contains {library.name} {library.version} ({library.licence})"
        parts.append(f"{RULE}\n{head}\n{RULE}\n\n{library.text}")
    listed = "".join(f"  {w.name} {w.version}: {w.licence}\n" for w in wheels)
    if listed:
        parts.append(
            f"{RULE}\nInstalled by pip, by choice of a runtime; each wheel has its licence texts\n"
            f"{RULE}\n\n{listed}"
        )
    return "\n".join(parts).encode()
