"""Who is timed: a process for each runtime, precision, and set of instructions that it may use."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from batched import write_batched
from competitors import BATCHES, COMPETITORS

from deploy.runner.backends.library import loaded
from pipeline import console
from pipeline.errors import BadInput
from pipeline.run_folder import RunFolder
from pipeline.verify.compiler import Sources, built, compiler

HERE = Path(__file__).parent
MASKS = {"no AMX": "amx", "AVX2": "avx2"}  # what mask_cpuid.c is told


@dataclass
class Contender:
    """One process, which is told what to do in lines (see calls.c)."""

    name: str
    precision: str
    limited: str  # a key of MASKS, or an instruction set
    process: subprocess.Popen[str]
    version: str = ""
    times: list[int] = field(default_factory=list)
    images: float = 0.0
    batch: int = 1

    def ask(self, line: str) -> list[float]:
        """The numbers that it answers. Raises BadInput where it ended instead."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise BadInput(f"{self.name} {self.precision} {self.limited}: it ended ({line})")
        return [float(number) for number in answer.split()]

    @property
    def median(self) -> float:
        """Microseconds."""
        return statistics.median(self.times) / 1000

    @property
    def p99(self) -> float:
        """Microseconds."""
        return float(np.percentile(self.times, 99)) / 1000


def compile_c(source: str, target: Path, *options: str) -> Path:
    """One of the small programs beside this one."""
    command = [*(compiler() or ["cc"]), "-O2", str(HERE / source), "-o", str(target), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BadInput(f"{source}: not compiled ({(done.stderr.splitlines() or [''])[0]})")
    return target


def flags() -> set[str]:
    """What /proc/cpuinfo says that the processor has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())


def masks_of(runtime: str) -> list[str]:
    """The ways in which a runtime runs: LiteRT also without AMX, and with AVX2 alone."""
    if runtime != "litert" or platform.machine() != "x86_64":
        return [""]
    return ["", *(["no AMX"] if "amx_tile" in flags() else []), "AVX2"]


def interpreter_of(runtime: str) -> Path | None:
    """The Python that has this runtime, or None."""
    competitor = COMPETITORS[runtime]
    if not competitor.environment:
        return Path(sys.executable) if importlib.util.find_spec(competitor.module) else None
    python = Path(sys.prefix) / competitor.environment / "bin" / "python"
    return python if python.exists() else None


def started(name: str, precision: str, limited: str, command: list[str], **more: str) -> Contender:
    """Start one; it says its version first. Raises BadInput where it does not start."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=os.environ | more,
            text=True,
        )
        assert process.stdout is not None
        version = process.stdout.readline().strip()
        if not version:
            process.wait()
            said.seek(0)
            reason = (said.read().splitlines() or [f"code {process.returncode}"])[-1]
            raise BadInput(f"{name} {precision} {limited}: it does not start ({reason})")
    return Contender(name, precision, limited, process, version)


def contenders_of(run: RunFolder, work: Path, pixels: Path) -> list[Contender]:
    """All, the two of generated C first. What is not here or cannot be had is said and left out."""
    calls = compile_c("calls.c", work / "calls", f"-I{HERE.parent / 'deploy' / 'c'}", "-ldl")
    shape = [str(size) for size in run.input_shape]
    found, mask = [], work / "mask_cpuid.so"
    pythons = {runtime: interpreter_of(runtime) for runtime in COMPETITORS}
    for runtime in (name for name, python in pythons.items() if python is None):
        console.say(f"{runtime}: not installed, left out")
    if platform.machine() == "x86_64":
        compile_c("mask_cpuid.c", mask, "-shared", "-fPIC")
    for precision in ("int8", "fp32"):
        library = work / f"{precision}.so"
        library.write_bytes(built(Sources.of(run.need(run.artefact(precision, "c")))))
        model = loaded(library).library_model().contents
        header = (run.need(run.artefact(precision, "c")) / "model.h").read_text()
        predict = re.findall(r"int (\w+_predict)\(", header)[0]
        ways = {"": predict} | ({"AVX2": "avx2"} if "avx2" in flags() else {})
        for limited, way in ways.items():
            command = [str(calls), str(library), way, str(pixels)]
            found.append(started("C", precision, limited, command))
            found[-1].version = f"C {model.version.decode()}"
        for runtime, competitor in COMPETITORS.items():
            python = pythons[runtime]
            if python is None:
                continue
            path = run.need(run.artefact(precision, competitor.suffix))
            if competitor.suffix == "tflite":
                path = write_batched(path, work, BATCHES)
            command = [str(python), str(HERE / "competitors.py"), runtime, str(path), str(pixels)]
            for limited in masks_of(runtime):
                hide = {"LD_PRELOAD": str(mask), "MASK_CPUID": MASKS[limited]} if limited else {}
                try:
                    found.append(started(runtime, precision, limited, [*command, *shape], **hide))
                except BadInput as error:
                    console.say(f"{error}, left out")
    return found
