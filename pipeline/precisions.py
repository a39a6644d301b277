"""The precisions that a run comes in, and the formats that each is exported to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from deploy.runner.contract import PRECISIONS

from .errors import UsageError

if TYPE_CHECKING:
    from .run_folder import RunFolder

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "SMALL_WEIGHTS",
    "USUAL",
    "artefacts",
    "exports_of",
    "in_float",
    "refuse_without_file",
    "without_c",
]

FORMATS = ("onnx", "tflite", "c")
USUAL = ("fp32", "int8")  # what is made where nothing is said
# Float programs with weights of fewer bits. C would have to be generated with these made float32
# again: it would be the fp32 program's size and speed, without its weights.
SMALL_WEIGHTS = ("fp16", "dynamic")


def artefacts(
    formats: Iterable[str],
    precisions: Sequence[str],
    without_c: Collection[str] = SMALL_WEIGHTS,
) -> list[tuple[str, str]]:
    """(precision, format) of every file that is exported."""
    kinds = tuple(formats)
    return [
        (precision, kind)
        for precision in precisions
        for kind in kinds
        if kind != "c" or precision not in without_c
    ]


def in_float(run: RunFolder) -> list[str]:
    """The layers of a run's int8 program that stayed in float, see `quantization.mixed`."""
    program = run.record["artefacts"].get(run.artefact("int8", "pt2"), {"facts": {}})
    layers: list[str] = program["facts"].get("mixed", [{"layers": []}])[-1]["layers"]
    return layers


def without_c(run: RunFolder) -> tuple[str, ...]:
    """The precisions of a run that have no C: its kernels are all int8, or all float."""
    return (*SMALL_WEIGHTS, "int8") if in_float(run) else SMALL_WEIGHTS


def exports_of(
    run: RunFolder, formats: Sequence[str], precisions: Sequence[str]
) -> list[tuple[str, str]]:
    """`artefacts` of a run. Raises UsageError for a precision that comes in none of the formats."""
    refuse_without_file(formats, precisions)
    found = artefacts(formats, precisions, without_c(run))
    if "int8" in precisions and not any(precision == "int8" for precision, _ in found):
        raise UsageError(
            f"int8 of run {run.name} has no C: {', '.join(in_float(run))} stayed in float",
            "add onnx or tflite, give --precision fp32, or run 'pipeline quantize' for int8 alone",
        )
    return found


def refuse_without_file(formats: Sequence[str], precisions: Sequence[str]) -> None:
    """Raises UsageError for a precision that comes in none of the formats."""
    for precision in precisions:
        if not artefacts(formats, [precision]):
            raise UsageError(
                f"--precision {precision} has no C: it would be as large as that of fp32",
                "add onnx or tflite, or take fp32 or int8",
            )
