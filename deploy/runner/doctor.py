"""What a device is, what works on it, and the command that mends what does not.

Of the board it reads only files, below a root that tests put elsewhere.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import camera
from .apart import Answer, choices, run_apart
from .backends import BACKENDS
from .bundle import Bundle

FINE, NOTE, WRONG = "fine", "note", "WRONG"
OLDEST_GLIBC = 28  # 2.x that the wheels of LiteRT and ONNX Runtime ask for
THROTTLED = Path("sys/devices/platform/soc/soc:firmware/get_throttled")
# The bits of the firmware's word: now, and 16 higher since it was started (documentation of
# vcgencmd get_throttled).
FLAGS = {
    0: ("under-voltage", "use a power supply and a cable that are meant for this board"),
    1: ("a capped frequency", "cool the board"),
    2: ("throttling", "cool the board"),
    3: ("the soft limit of temperature", "cool the board"),
}
HOT = 80.0  # degrees Celsius, at which a Raspberry Pi begins to slow down
FEATURES = {  # of the processor, as Linux names them: what int8 kernels profit from
    "asimddp": "dot product",
    "asimd": "NEON",
    "neon": "NEON",
    "avx512_vnni": "AVX-512 VNNI",
    "avx2": "AVX2",
}


@dataclass(frozen=True)
class Finding:
    """One line of the table. `mend` is a command or an action, "" where nothing is to be done."""

    what: str
    state: str
    found: str
    mend: str = ""


def examine(bundle: Bundle, root: Path = Path("/")) -> list[Finding]:
    """Every finding, the board first; `root` is where /proc and /sys are."""
    return [*_board(bundle, root), *_software(), *_state(root), *_runtimes(bundle)]


def exit_code(findings: list[Finding]) -> int:
    """0 if a runtime computes what was trained and none anything else; 1 if one does; else 4."""
    runtimes = [finding for finding in findings if finding.what.startswith("runtime ")]
    if any(finding.state == WRONG for finding in runtimes):
        return 1
    return 0 if any(finding.state == FINE for finding in runtimes) else 4


def _read(path: Path) -> str:
    """The text of a file of the kernel's, or ""."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _board(bundle: Bundle, root: Path) -> Iterator[Finding]:
    name = _read(root / "proc/device-tree/model") or "no device tree: not a Raspberry Pi"
    yield Finding("board", FINE, f"{name}, {platform.machine()}")
    target = bundle.manifest.get("target")
    if target:
        yield Finding("bundle", FINE, f"{target['name']}: for {target['hardware']}")
    info = _read(root / "proc/cpuinfo")
    words = " ".join(re.findall(r"^(?:Features|flags)\s*:(.*)$", info, re.MULTILINE)[:1]).split()
    there = [meaning for feature, meaning in FEATURES.items() if feature in words]
    yield Finding("processor", FINE, ", ".join(dict.fromkeys(there)) or "no vector instructions")


def _software() -> Iterator[Finding]:
    yield Finding("Python", FINE, platform.python_version())  # an older one has not come so far
    libc, version = platform.libc_ver()
    minor = int(version.rpartition(".")[2] or 0) if libc == "glibc" else 0
    old = minor < OLDEST_GLIBC
    mend = "'--runtime c' works; the wheels of other runtimes ask for glibc 2.28" if old else ""
    yield Finding("C library", NOTE if old else FINE, f"{libc} {version}".strip() or "musl", mend)
    yield Finding("NumPy", FINE, np.__version__)
    yield _camera()


def _camera() -> Finding:
    """picamera2 is imported in a process of its own: it may be there and not fit this NumPy."""
    command = [sys.executable, "-P", "-c", "from picamera2 import Picamera2"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return Finding("camera", FINE, "picamera2 is here")
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Finding("camera", NOTE, f"no picamera2 that works ({said})", camera.mend(said))


def _state(root: Path) -> Iterator[Finding]:
    word = _read(root / THROTTLED)
    if re.fullmatch(r"(0x)?[0-9a-f]+", word):
        bits = int(word, 16)
        flags = [
            (f"{name} {when}", mend, state)
            for bit, (name, mend) in FLAGS.items()
            for shift, when, state in ((0, "now", WRONG), (16, "since it was started", NOTE))
            if bits >> (bit + shift) & 1
        ]
        for found, mend, state in flags:
            yield Finding("power", state, found, mend)
        if not flags:
            yield Finding("power", FINE, "no under-voltage, not throttled")
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    degrees = [int(text) / 1000 for zone in zones if (text := _read(zone)).lstrip("-").isdigit()]
    if degrees:
        hot = max(degrees) >= HOT
        mend = "cool the board: it slows down from 80 °C" if hot else ""
        yield Finding("temperature", WRONG if hot else FINE, f"{max(degrees):.1f} °C", mend)
    governor = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor:
        slow = governor == "powersave"
        path = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        mend = f"echo ondemand | sudo tee {path}" if slow else ""
        yield Finding("clock", NOTE if slow else FINE, governor, mend)


def _runtimes(bundle: Bundle) -> Iterator[Finding]:
    """Each runtime repeats the golden vectors, in a process of its own."""
    for choice in choices(bundle, None, None):
        what = f"runtime {choice.runtime} {choice.precision}"
        answer = run_apart(bundle, "selftest", choice)
        if answer.document is None:
            found, _, mend = answer.reason.partition("; ")
            yield Finding(what, NOTE, found, mend_of(bundle, choice.runtime, answer) or mend)
            continue
        (result,) = answer.document
        largest = f"{result['largest']:.3g} {result['unit']}"
        found = f"{result['runtime']}: at most {largest} off"
        if result["passed"]:
            yield Finding(what, FINE, found)
        else:
            yield Finding(what, WRONG, found, f"do not use --runtime {choice.runtime} here")


def mend_of(bundle: Bundle, runtime: str, answer: Answer) -> str:
    """What mends a runtime that gives no answer, "" where its own message says so."""
    if runtime == "c":
        return "make the bundle with the --target of this board"
    file = bundle.folder / f"requirements-{runtime}.txt"
    if answer.crashed:
        return f"do not use --runtime {runtime} here"
    lacking = any(lack in answer.reason for lack in ("not installed", "not fit"))
    if not lacking or not file.is_file():
        return ""
    python, first = sys.executable, ""
    if "numpy<2" in BACKENDS[runtime].PIP and int(np.__version__.partition(".")[0]) > 1:
        # Here it would take away the NumPy that the others need.
        python = f"~/{runtime}/bin/python"
        first = f"python3 -m venv ~/{runtime} && "
    wheels = bundle.folder / "wheels"
    offline = f"--no-index --find-links {wheels} " if wheels.is_dir() else ""
    return f"{first}{python} -m pip install --require-hashes --no-deps {offline}-r {file}"
