"""The precisions that a run comes in, and the formats that each is exported to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from deploy.runner.contract import INTEGERS, PRECISIONS

from .errors import UsageError

__all__ = [
    "FOLDERS",
    "FORMATS",
    "INTEGERS",
    "LACKING",
    "PRECISIONS",
    "SMALL_WEIGHTS",
    "USUAL",
    "artefact_name",
    "artefacts",
    "ending",
    "found_in",
    "refuse_without_file",
    "with_a_file",
]

FORMATS = ("onnx", "tflite", "c")
FOLDERS = ("c",)  # formats that are folders
USUAL = ("fp32", "int8")  # what is made where nothing is said
SMALL_WEIGHTS = ("fp16", "dynamic")  # float programs with weights of fewer bits
_AS_FP32 = "it would be as large as that of fp32"  # its weights would be made float32 again
# What a precision does not come in, and why.
LACKING = {
    ("fp16", "c"): _AS_FP32,
    ("dynamic", "c"): _AS_FP32,
    ("int16x8", "onnx"): "ONNX Runtime has no kernels for int16 values",
    ("int16x8", "c"): "its kernels are of int8 and float32",
}
_NAMES = {"onnx": "ONNX", "tflite": "TFLite", "c": "C"}


def artefact_name(model: str, precision: str, kind: str) -> str:
    """The file name MODEL-PRECISION.KIND; C is a folder, MODEL-PRECISION-c."""
    return f"{model}-{precision}{'-' if kind in FOLDERS else '.'}{kind}"


def found_in(files: Collection[str], model: str) -> tuple[list[str], list[str]]:
    """The formats and the precisions of a model's artefacts among some files."""
    pairs = [(p, k) for p in PRECISIONS for k in FORMATS if artefact_name(model, p, k) in files]
    kinds, precisions = {k for _, k in pairs}, {p for p, _ in pairs}
    return [k for k in FORMATS if k in kinds], [p for p in PRECISIONS if p in precisions]


def ending(file: str, precision: str) -> str:
    """A file's name without the model's, for tables of one run."""
    return file[file.rindex(precision) :]


def artefacts(
    formats: Iterable[str],
    precisions: Sequence[str],
    lacking: Collection[tuple[str, str]] = LACKING,
) -> list[tuple[str, str]]:
    """(precision, format) of every file that is exported, without those that are `lacking`."""
    kinds = tuple(formats)
    files = [(precision, kind) for precision in precisions for kind in kinds]
    return [file for file in files if file not in lacking]


def with_a_file(formats: Sequence[str]) -> tuple[str, ...]:
    """The precisions that come in at least one of the formats."""
    return tuple(precision for precision in PRECISIONS if artefacts(formats, [precision]))


def refuse_without_file(formats: Sequence[str], precisions: Sequence[str]) -> None:
    """Raises UsageError for a precision that comes in none of the formats."""
    for precision in precisions:
        if not artefacts(formats, [precision]):
            reasons = (f"no {_NAMES[kind]}: {LACKING[precision, kind]}" for kind in formats)
            add = [kind for kind in FORMATS if (precision, kind) not in LACKING]
            raise UsageError(
                f"--precision {precision} has {', and '.join(reasons)}",
                f"add {' or '.join(add)}, or take fp32 or int8",
            )
