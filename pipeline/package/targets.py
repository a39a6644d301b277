"""What a bundle can be for: the boards, their systems, and which runtimes there are for those."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import deploy

from ..errors import BadInput, UsageError, unknown


class Newest(NamedTuple):
    """Versions of ONNX files: of the format, and of the default operators."""

    ir: int
    opset: int


PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}  # of Raspberry Pi OS, by its release
DEFAULT = "bookworm"
LIBCS = {"bookworm": 36, "trixie": 41}  # glibc 2.x of these, which decides the wheels that fit
LAST = (3, 11)  # Python that tflite-runtime has wheels for
FORMATS = {"litert": "tflite", "tflite-runtime": "tflite", "onnxruntime": "onnx"}
RUNTIMES = {
    "x86_64": tuple(FORMATS),
    "aarch64": tuple(FORMATS),
    "armv7l": ("tflite-runtime",),
    "": (),
}
ARCHITECTURES = {  # what Debian and Raspberry Pi OS call them; the latter calls ARMv6 armhf, too
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "armhf",
    "": "armhf",
}
# The newest ONNX that ONNX Runtime reads, by its minor release (found by loading files).
ONNX_READ = {
    "1.28": Newest(ir=13, opset=26),
    "1.29": Newest(ir=13, opset=26),
    "1.30": Newest(ir=13, opset=26),
    "1.31": Newest(ir=13, opset=26),
}


@dataclass(frozen=True)
class Target:
    """`board` is the weakest of `toolchain.BOARDS` that it means, "" for this machine; `wheels`
    what wheels' tags call its processor, "" where nobody makes any.
    """

    hardware: str
    board: str
    wheels: str


TARGETS = {
    "pi-zero": Target("a Pi 1, Zero or Zero W (ARMv6)", "pi-zero", ""),
    "pi-32": Target("a Pi 2, 3 or 4 with a 32-bit system (ARMv7)", "pi-2", "armv7l"),
    "pi-zero-2": Target("a Pi Zero 2 W with a 64-bit system", "pi-3", "aarch64"),
    "pi-3": Target("a Pi 3 with a 64-bit system", "pi-3", "aarch64"),
    "pi-4": Target("a Pi 4 with a 64-bit system", "pi-4", "aarch64"),
    "pi-5": Target("a Pi 5", "pi-5", "aarch64"),
    "host": Target(f"a machine like this one ({platform.machine()})", "", platform.machine()),
}


@dataclass(frozen=True)
class Place:
    """A target with its system. `python` is "3.11" or alike, `libc` the x of glibc 2.x."""

    name: str
    system: str
    target: Target
    python: str
    libc: int

    @property
    def label(self) -> str:
        """What files for it are called: with the release, unless it is that of `place_of`."""
        return f"{self.name}-{self.system}" if self.system not in ("", DEFAULT) else self.name

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes that have wheels for it."""
        found = RUNTIMES.get(self.target.wheels, ())
        major, minor = (int(part) for part in self.python.split("."))
        return tuple(n for n in found if n != "tflite-runtime" or (major, minor) <= LAST)

    @property
    def formats(self) -> tuple[str, ...]:
        """What can run there: C always, and what a runtime reads."""
        read = {FORMATS[name] for name in self.runtimes}
        return ("c", *(name for name in ("onnx", "tflite") if name in read))

    @property
    def has_python(self) -> bool:
        """Whether the Python runner is for it: even with C alone it needs NumPy."""
        return bool(self.target.wheels)

    def refuse(self, formats: Sequence[str]) -> None:
        """Raises UsageError for a format that nothing there can run, with the nearest thing that is
        possible.
        """
        for name in formats:
            if name not in self.formats:
                others = [
                    f"--os {system}"
                    for system in PYTHONS
                    if self.system and name in place_of(self.name, system).formats
                ]
                mend = " or ".join([*others, f"--runtime {','.join(self.formats)}"])
                processor = self.target.wheels or "ARMv6"
                raise UsageError(
                    f"{self.name}: no runtime of {name} has a wheel for {processor} and "
                    f"Python {self.python}",
                    f"give {mend}",
                )


def place_of(name: str, system: str | None = None) -> Place:
    """A target and a release of its system, bookworm where none is named. Raises UsageError."""
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    target = TARGETS[name]
    if not target.board:
        if system is not None:
            raise UsageError("--os with --target host", "leave it out: it is the system here")
        libc = platform.libc_ver()[1].rpartition(".")[2]
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Place(name, "", target, python, int(libc or 0))
    system = system or DEFAULT
    if system not in PYTHONS:
        raise unknown("system", system, PYTHONS)
    return Place(name, system, target, PYTHONS[system], LIBCS[system])


def refuse_newer(name: str, model: bytes) -> None:
    """Raises BadInput for an ONNX file that the ONNX Runtime of the requirements cannot read."""
    import onnx

    text = (Path(deploy.__file__).parent / "requirements" / "onnxruntime.txt").read_text()
    release = re.findall(r"^onnxruntime==(\d+\.\d+)", text, re.MULTILINE)[0]
    newest = ONNX_READ[release]
    read = onnx.load_from_string(model)
    opset = max((e.version for e in read.opset_import if e.domain in ("", "ai.onnx")), default=0)
    for what, found, limit in (("IR", read.ir_version, newest.ir), ("opset", opset, newest.opset)):
        if found > limit:
            raise BadInput(
                f"{name}: {what} {found}, but onnxruntime {release} on the device reads up to "
                f"{limit}",
                "export it again with 'pipeline export --format onnx'",
            )
