"""What the static executable costs: its size, the time to its first answer, its memory."""

from __future__ import annotations

import importlib.util
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput
from pipeline.verify.compiler import compiler

STARTS = 50


@dataclass(frozen=True)
class Footprint:
    """`peak_kib` is -1 where no process may be traced."""

    start_ms: float
    peak_kib: int
    arena: int
    bytes: int
    compiler: str


def static_classify(folder: Path, work: Path) -> tuple[Path, str]:
    """The static executable of a generated folder, for this machine, and by which compiler: Zig
    with musl as for the boards where `make emulators` brought it.
    """
    copy = work / f"{folder.name}-static"
    shutil.copytree(folder, copy)
    command = compiler() or ["cc"]
    if importlib.util.find_spec("ziglang") is not None:
        target = f"{platform.machine()}-linux-musl"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target]
    subprocess.run(["make", "-s", "clean"], cwd=copy, capture_output=True, check=False)
    make = ["make", "-s", "static", f"CC={shlex.join(command)}"]
    done = subprocess.run(make, cwd=copy, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BadInput(f"{folder}: not compiled ({(done.stderr.splitlines() or ['?'])[0]})")
    return copy / "classify", "Zig, musl" if "ziglang" in command else command[0]


def footprint_of(static: tuple[Path, str], start: Path, image: Any, work: Path) -> Footprint:
    """Start it with one image C x H x W, STARTS times; see start.c."""
    program, by = static
    channels, height, width = image.shape
    picture = work / ("image.pgm" if channels == 1 else "image.ppm")
    head = f"P{5 if channels == 1 else 6}\n{width} {height}\n255\n".encode()
    picture.write_bytes(head + image.transpose(1, 2, 0).tobytes())
    command = [str(start), str(STARTS), str(program), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BadInput(f"{program.name}: {done.stderr.strip()}")
    times, peak = done.stdout.splitlines()
    header = (program.parent / "model.h").read_text()
    found = re.search(r"MODEL_ARENA (\d+)", header)
    return Footprint(
        statistics.median(int(t) for t in times.split()) / 1e6,
        int(peak),
        int(found[1]) if found else -1,
        program.stat().st_size,
        by,
    )
