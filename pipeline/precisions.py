"""The precisions that a run comes in, and the formats that each is exported to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from deploy.runner.contract import PRECISIONS

from .errors import UsageError

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "SMALL_WEIGHTS",
    "USUAL",
    "artefacts",
    "refuse_without_file",
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


def refuse_without_file(formats: Sequence[str], precisions: Sequence[str]) -> None:
    """Raises UsageError for a precision that comes in none of the formats."""
    for precision in precisions:
        if not artefacts(formats, [precision]):
            raise UsageError(
                f"--precision {precision} has no C: it would be as large as that of fp32",
                "add onnx or tflite, or take fp32 or int8",
            )
