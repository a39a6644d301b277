"""A process of its own for each runtime: an illegal instruction there is an answer here, and
import times and memory are those of one runtime alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from .backends import BACKENDS
from .bundle import RUNNER, Bundle

LONGEST = 600  # seconds
CRASHED = "its process crashed"
MEANINGS = {
    signal.SIGILL: "an instruction that this processor lacks",
    signal.SIGKILL: "killed, most likely for want of memory",
}


@dataclass(frozen=True)
class Choice:
    """A way to run the bundle's model."""

    runtime: str
    precision: str
    threads: int = 1

    def __str__(self) -> str:
        return f"--runtime {self.runtime} --precision {self.precision} --threads {self.threads}"


class Answer(NamedTuple):
    """What a process printed, or None and why it printed nothing; `crashed`: by a signal."""

    document: Any
    reason: str = ""
    crashed: bool = False


def choices(bundle: Bundle, runtime: str | None, precision: str | None) -> list[Choice]:
    """Every runtime that the bundle has a file for, in every precision; or only those named."""
    return [
        Choice(name, each)
        for name, backend in BACKENDS.items()
        for each in sorted(bundle.manifest["contracts"])
        if runtime in (None, name) and precision in (None, each)
        if backend.SUFFIX in bundle.models(each)
    ]


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_apart(
    bundle: Bundle, command: str, choice: Choice, *options: str, python: str = sys.executable
) -> Answer:
    """The JSON document that `command` prints. A failed selftest prints its document, too."""
    runner = [python, str(bundle.folder / RUNNER), command]
    where = ["--bundle", str(bundle.folder), "--json", *options]
    try:
        done = subprocess.run(
            [*runner, *str(choice).split(), *where],
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(None, f"no answer in {LONGEST} s")
    if done.returncode < 0:
        number = -done.returncode
        meaning = MEANINGS.get(signal.Signals(number), CRASHED)
        return Answer(None, f"{meaning} ({signal.Signals(number).name})", crashed=True)
    if done.returncode > 1 or not done.stdout:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Answer(None, said.removeprefix("error: "))
    return Answer(json.loads(done.stdout))
