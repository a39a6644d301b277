"""The mutations of generated C: of the ONNX file that it is made from, and of what is written.

The first show that the C is compared with the run's reference, not with the file it came from; the
others what only a generator can do wrong. None reads or writes where the C itself does not.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...errors import BadInput
from ...export.c import generate, write
from ..compiler import Sources, built
from . import Mutant, mutants_of

OPTIONS = ("CFLAGS=-O1",)  # a mutant is compiled for a few images

# What is written otherwise, where a pattern first fits: file, the pattern and what stands instead.
Change = tuple[str, str, Callable[[re.Match[str]], str]]
REQUANTIZED = r"(_scale_\d+, )(-?\d+), (-?\d+)(, -?\d+,)"


def _nearer(match: re.Match[str]) -> str:
    """One weight, an integer one step nearer to zero or a float by 2**-10."""
    begin, weight = match.groups()
    if weight.lstrip("-").isdigit():
        return f"{begin}{int(weight) - (1 if int(weight) > 0 else -1)}"
    return f"{begin}{weight} * 0x1.004p+0f"


CHANGES: dict[str, Sequence[Change]] = {
    "C: clamp": (
        ("layers.c", REQUANTIZED, lambda m: f"{m[1]}{m[2]}, {int(m[3]) + 9}{m[4]}"),
        ("layers.c", r"(_bias_\d+, )0x0p\+0f, INFINITY", lambda m: f"{m[1]}-INFINITY, INFINITY"),
    ),
    "C: zero point": (("layers.c", REQUANTIZED, lambda m: f"{m[1]}{int(m[2]) + 1}, {m[3]}{m[4]}"),),
    "C: scale": (
        ("model.c", r"(_scale_\d+\[\d+\] = \{\s*)([^,]+)", lambda m: f"{m[1]}{m[2]} * 1.01f"),
    ),
    "C: weight": (("model.c", r"(_weights_\d+\[\d+\] = \{\s*)([^,]+)", _nearer),),
    "C: bias": (
        ("model.c", r"(_bias_\d+\[\d+\] = \{\s*)(BIAS\([^)]*\))", lambda m: f"{m[1]}{m[2]} + 1"),
        ("model.c", r"(_bias_\d+\[\d+\] = \{\s*)([^,]+)", lambda m: f"{m[1]}{m[2]} + 0x1p-12f"),
    ),
    "C: row": (("layers.c", r"(\.row = )(\d{2,})", lambda m: f"{m[1]}{int(m[2]) - 1}"),),
    "C: kernel": (
        ("layers.c", r"(\.kernel_height = )([2-9])\b", lambda m: f"{m[1]}{int(m[2]) - 1}"),
    ),
}


def mutants_of_c(sources: Sources, onnx: Path) -> Iterator[Mutant]:
    """Compiled libraries: of every mutation of the ONNX file one, and each change of the text.

    What the generator refuses is no mutant. Raises Missing without a compiler.
    """
    seen: set[str] = set()
    for mutant in mutants_of(onnx):
        if mutant.name in seen:
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                write(generate(mutant.content, onnx.name), Path(work))
            except BadInput:
                continue
            yield Mutant(mutant.name, mutant.layer, built(Sources.of(Path(work)), OPTIONS))
        seen.add(mutant.name)
    for name, changes in CHANGES.items():
        with tempfile.TemporaryDirectory() as work:
            folder = Path(shutil.copytree(sources.folder, Path(work) / "generated"))
            if any(_changed(folder, change) for change in changes):
                content = built(Sources(folder, sources.files), OPTIONS)
                yield Mutant(name, "the first that it fits", content)


def _changed(folder: Path, change: Change) -> bool:
    """Whether the pattern was there."""
    file, pattern, instead = change
    path = folder / file
    text, count = re.subn(pattern, instead, path.read_text(), count=1)
    path.write_text(text)
    return bool(count)
