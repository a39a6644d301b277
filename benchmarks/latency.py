"""Generated C against other runtimes: side by side, one thread, one image at a time.

    python benchmarks/latency.py --run bench [--rounds 50] [--calls 500] [--require]

Every runtime is a process of its own; they take turns, round by round, on one core. Before anything
is timed their scores must agree. Where the processor has AMX, LiteRT runs with it and without
(mask_cpuid.c), since it makes small models slower, and the faster one counts. Needs a run that is
exported to all formats, and a C compiler; --require: what misses its mark ends in exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from contenders import Contender, compile_c, contenders_of
from footprint import Footprint, footprint_of, static_classify

from deploy.runner.backends.library import loaded
from pipeline import console
from pipeline.data import dataset_of
from pipeline.errors import BadInput, Missing, UserError
from pipeline.run_folder import RunFolder
from pipeline.verify.compiler import compiler
from pipeline.verify.evidence import processor

IMAGES, CHECKED = 10_000, 100
SWEEPS = 3  # over all images, of which the best counts
INT8_STEPS = 3  # of the output: runtimes round inner values each in its own way
FLOAT_SHARE = 1e-4  # of the largest score: float32 sums of some hundred terms, in any order


def check(contenders: list[Contender], scale: float) -> None:
    """All scores against those of C of the same precision. Raises BadInput naming the first that
    differs by more than INT8_STEPS of `scale`, or FLOAT_SHARE.
    """
    for precision in ("int8", "fp32"):
        ours, *others = [c for c in contenders if c.precision == precision]
        wanted = np.array(ours.ask(f"check {CHECKED}"))
        share = FLOAT_SHARE * float(np.abs(wanted).max())
        bound = INT8_STEPS * scale * (1 + 1e-6) if precision == "int8" else share
        for other in others:
            found = np.array(other.ask(f"check {CHECKED}"))
            most = 0.0 if other.name == "C" and precision == "int8" else bound
            off = np.abs(found - wanted) if found.shape == wanted.shape else np.array([np.inf])
            if not off.max() <= most:
                raise BadInput(
                    f"{other.version} {precision} {other.limited}: score {int(off.argmax())} is "
                    f"off by {off.max():.4g}, allowed {most:.4g}: nothing is timed"
                )
    console.say(f"{len(contenders)} agree on the scores of {CHECKED} images")


def fastest(contenders: list[Contender], name: str, precision: str, limited: bool) -> Contender:
    """The one with the smallest median: of those that are limited to AVX2, or of the others; of
    the others too where this processor lets none be limited.
    """
    fits = [c for c in contenders if (c.name, c.precision) == (name, precision)]
    chosen = [c for c in fits if (c.limited == "AVX2") == limited] or fits
    return min(chosen, key=lambda c: c.median)


def print_latencies(contenders: list[Contender], rounds: int, calls: int) -> None:
    command = [*(compiler() or ["cc"]), "--version"]
    by = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    console.out().print(f"{processor()}, one core; C by {by[0] if by else command[0]}")
    rows = []
    for c in sorted(contenders, key=lambda c: (c.precision != "int8", c.median)):
        ours = fastest(contenders, "C", c.precision, False)
        row = [c.version, c.precision, c.limited or "all", f"{c.median:.2f}", f"{c.p99:.2f}"]
        row += [f"{c.median / ours.median:.2f}", f"{c.images:,.0f}", str(c.batch)]
        rows.append(row)
    console.table(
        f"{calls * rounds:,} calls in {rounds} interleaved rounds, batch 1, µs",
        ["runtime", "", "may use", "median", "p99", "to C", "images/s", "at batch"],
        rows,
        ["", "may use"],
    )


def marks(contenders: list[Contender], size: Footprint) -> list[tuple[str, str, str, bool]]:
    """Figure, what it is, what it must be, whether it is that."""

    def speed(precision: str, limited: bool) -> float:
        theirs = fastest(contenders, "litert", precision, limited)
        return theirs.median / fastest(contenders, "C", precision, limited).median

    avx2 = any(c.limited == "AVX2" for c in contenders if c.name == "C")
    asked = [("int8", False, 5.0), ("fp32", False, 2.0), *([("int8", True, 2.5)] if avx2 else [])]
    found = []
    for precision, limited, must in asked:
        ratio = speed(precision, limited)
        what = f"{precision} latency against LiteRT{', AVX2' if limited else ''}"
        found.append((what, f"{ratio:.2f}x", f">= {must}x", ratio >= must))
    lite = max(c.images for c in contenders if (c.name, c.precision) == ("litert", "int8"))
    ratio = fastest(contenders, "C", "int8", False).images / lite
    what = f"{IMAGES:,} images, int8, against LiteRT"
    found.append((what, f"{ratio:.2f}x", ">= 4.5x", ratio >= 4.5))
    start, peak, arena = size.start_ms, size.peak_kib, size.arena
    found.append(("cold start", f"{start:.2f} ms", "<= 1 ms", start <= 1))
    shown = f"{peak:,} KiB" if peak >= 0 else "cannot be traced here"
    found.append(("peak memory of the process", shown, "<= 1,024 KiB", 0 <= peak <= 1024))
    found.append(("arena, int8", f"{arena:,} bytes", "<= 8,192 bytes", arena <= 8192))
    return found


def print_marks(rows: list[tuple[str, str, str, bool]], size: Footprint) -> bool:
    shown = [[*texts, "met" if good else "missed"] for *texts, good in rows]
    console.table(
        f"static classify of {size.bytes:,} bytes ({size.compiler})",
        ["figure", "is", "must be", ""],
        shown,
    )
    return all(good for *_, good in rows)


def measure(arguments: argparse.Namespace, work: Path) -> bool:
    run = RunFolder.open(arguments.run)
    test: Any = dataset_of(run).test.images.numpy()
    pixels = work / "pixels"
    np.resize(test, (IMAGES, *test.shape[1:])).tofile(pixels)
    size = footprint_of(
        static_classify(run.need(run.artefact("int8", "c")), work),
        compile_c("start.c", work / "start"),
        test[0],
        work,
    )
    contenders = contenders_of(run, work, pixels)
    try:
        if not any(contender.name == "litert" for contender in contenders):
            raise Missing("LiteRT is not there to compare with", "run 'make install'")
        contract = loaded(work / "int8.so").library_contract()
        check(contenders, json.loads(contract)["output"]["scale"])
        for number in range(arguments.rounds):
            for contender in contenders:
                contender.times += [int(t) for t in contender.ask(f"time {arguments.calls}")]
            if number == 0:
                console.say(f"{arguments.rounds} rounds")
        for contender in contenders * SWEEPS:
            images, batch = contender.ask("all")
            if images > contender.images:
                contender.images, contender.batch = images, int(batch)
    finally:
        for contender in contenders:
            contender.process.kill()
            contender.process.wait()
    print_latencies(contenders, arguments.rounds, arguments.calls)
    return print_marks(marks(contenders, size), size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="bench")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--require", action="store_true")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        with tempfile.TemporaryDirectory() as work:
            met = measure(arguments, Path(work))
    except UserError as error:
        sys.exit(f"latency.py: {error}")
    sys.exit(arguments.require and not met)


if __name__ == "__main__":
    main()
