"""Wheels for another machine, so that installing there needs no network."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import Missing
from .targets import Place

OLDEST = 17  # glibc 2.x of the oldest wheels that are still made: manylinux2014


def wheelhouse(requirements: Mapping[str, bytes], place: Place) -> dict[str, bytes]:
    """The wheels that these files of requirements ask for there, by name. Raises Missing with what
    pip said.

    pip checks their hashes; which platforms a machine takes it knows only of its own.
    """
    machine = place.target.wheels
    platforms = [f"manylinux_2_{n}_{machine}" for n in range(place.libc, OLDEST - 1, -1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--require-hashes", "--no-deps"]
    command += ["--python-version", place.python]
    for name in (*platforms, f"manylinux2014_{machine}"):
        command += ["--platform", name]
    with tempfile.TemporaryDirectory() as work:
        wheels = Path(work) / "wheels"
        for name, text in requirements.items():
            (Path(work) / name).write_bytes(text)
            done = subprocess.run(
                [*command, "--dest", str(wheels), "--requirement", str(Path(work) / name)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                reason = (said or ["pip failed"])[0].removeprefix("ERROR: ")
                raise Missing(
                    f"{name}: no wheels for {place.name}, Python {place.python} ({reason})",
                    "leave out --wheelhouse, or see to it that a package index can be reached",
                )
        return {path.name: path.read_bytes() for path in sorted(wheels.iterdir())}
