"""Guest instructions of one inference on every board, emulated: exact, and the same in every run.

    python benchmarks/instructions.py --run bench [--inferences 10] [--require]

Counted by a QEMU plugin (count.c) as the difference between a program that makes N inferences and
one that makes 2 N (counted.c in the place of main.c), divided by N: from pixels to scores. Beside
it the size of the static executable. Needs `make emulators`, a QEMU with plugins (Debian's
qemu-user, not the static one), and a run that is exported to C.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline import console
from pipeline.errors import BadInput, Missing, UserError
from pipeline.package.toolchain import BOARDS, build, emulator
from pipeline.run_folder import RunFolder
from pipeline.verify.compiler import MEND, Sources, compiler

HERE = Path(__file__).parent
INTERFACES = range(1, 8)  # numbers of QEMU's plugin interface

# The marks of lenet5 on MNIST: instructions at most, by board and precision, and LiteRT's own.
MUSTS = {
    ("pi-3", "int8"): (180_000, 427_000),
    ("pi-3", "fp32"): (None, 707_000),
    ("pi-4", "int8"): (180_000, 715_000),
    ("pi-4", "fp32"): (225_000, 675_000),
    ("pi-5", "int8"): (80_000, 326_000),
    ("pi-5", "fp32"): (None, 673_000),
}
BYTES = {("pi-zero", "int8"): 120_000, ("pi-3", "int8"): 120_000}


def plugin(work: Path, command: list[str]) -> Path:
    """The plugin, compiled for the interface that this QEMU has. Raises Missing."""
    for number in INTERFACES:
        path = work / f"count-{number}.so"
        options = ["-O2", "-shared", "-fPIC", f"-DPLUGIN_VERSION={number}", "-o", str(path)]
        compiled = [*(compiler() or ["cc"]), *options, str(HERE / "count.c")]
        try:
            subprocess.run(compiled, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Missing(f"{compiled[0]}: does not compile count.c", MEND) from error
        if counted(command, path, 1) is not None:
            return path
    raise Missing(f"{command[0]}: takes no plugins", "install Debian's qemu-user")


def counted(command: list[str], path: Path, inferences: int) -> int | None:
    """Instructions of the whole program, or None where QEMU did not take the plugin."""
    qemu, *rest = command
    done = subprocess.run(
        [qemu, "-plugin", str(path), "-d", "plugin", *rest, str(inferences)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"instructions (\d+)", done.stderr)
    return int(found[1]) if found and done.returncode == 0 else None


def counting_folder(sources: Path, work: Path) -> Path:
    """The generated folder with counted.c in the place of its main program."""
    copy = work / sources.name
    copy.mkdir()
    for name in Sources.of(sources).files:
        shutil.copy(sources / name, copy / name)
    predict = re.search(r"int (\w+_predict)\(", (copy / "model.h").read_text())
    if predict is None:
        raise Missing(f"{sources}: has no function for an image", "export a run")
    text = (HERE / "counted.c").read_text()
    (copy / "main.c").write_text(f"#define PREDICT {predict[1]}\n{text}")
    return copy


def measured(sources: Path, board: str, inferences: int, work: Path) -> tuple[float, int]:
    """Instructions per inference, and the bytes of the static executable."""
    work.mkdir(exist_ok=True)
    binaries = work / BOARDS[board].binary  # 64-bit boards share them
    if not binaries.exists():
        folder = counting_folder(sources, work)
        build(folder, board, into=binaries / "counted")
        build(sources, board, into=binaries)
        shutil.rmtree(folder)
    command = [*emulator(board), str(binaries / "counted" / "classify")]
    path = plugin(work, command)
    once, twice = (counted(command, path, n * inferences) for n in (1, 2))
    if once is None or twice is None:
        raise BadInput(f"{board}: the program failed, or was not counted")
    return (twice - once) / inferences, (binaries / "classify").stat().st_size


def measure(run: RunFolder, inferences: int, work: Path) -> bool:
    rows, good = [], True
    for precision in ("int8", "fp32"):
        sources = run.need(run.artefact(precision, "c"))
        for board in BOARDS:
            console.say(f"{board} {precision}")
            each, size = measured(sources, board, inferences, work / precision)
            must, litert = MUSTS.get((board, precision), (None, None))
            limit = BYTES.get((board, precision))
            met = [*([each <= must] if must else []), *([size <= limit] if limit else [])]
            good = good and all(met)
            row = [board, precision, f"{each:,.0f}", f"{must:,}" if must else ""]
            row += [f"{litert:,}" if litert else "", f"{size:,}", f"{limit:,}" if limit else ""]
            rows.append([*row, ("met" if all(met) else "missed") if met else ""])
    command = [emulator("pi-4")[0], "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    console.table(
        f"instructions per inference, {(version.splitlines() or command)[0]}",
        ["board", "", "is", "at most", "LiteRT", "static, bytes", "at most", ""],
        rows,
        [""],
    )
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="bench")
    parser.add_argument("--inferences", type=int, default=10)
    parser.add_argument("--require", action="store_true")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as work:
            good = measure(RunFolder.open(arguments.run), arguments.inferences, Path(work))
    except UserError as error:
        sys.exit(f"instructions.py: {error}")
    sys.exit(arguments.require and not good)


if __name__ == "__main__":
    main()
