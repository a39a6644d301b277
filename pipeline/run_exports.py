"""The files that a run is exported to: where layers of its int8 program stayed in float, no C."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import UsageError
from .precisions import FORMATS, LACKING, artefacts, refuse_without_file
from .run_folder import RunFolder


def in_float(run: RunFolder) -> list[str]:
    """The layers of a run's int8 program that stayed in float, see `quantization.mixed`."""
    program = run.record["artefacts"].get(run.artefact("int8", "pt2"), {"facts": {}})
    layers: list[str] = program["facts"].get("mixed", [{"layers": []}])[-1]["layers"]
    return layers


def without_c(run: RunFolder) -> str:
    """What is to be said where C was asked for, and int8 has none."""
    return f"note: no C of int8: {', '.join(in_float(run))} stayed in float"


def lacking(run: RunFolder) -> frozenset[tuple[str, str]]:
    """What a run's precisions do not come in: C is all int8, or all float."""
    return frozenset({*LACKING, ("int8", "c")} if in_float(run) else LACKING)


def exports_of(
    run: RunFolder,
    formats: Sequence[str],
    precisions: Sequence[str],
    possible: Sequence[str] = FORMATS,
) -> list[tuple[str, str]]:
    """`artefacts` of a run. Raises UsageError for a precision that comes in none of the formats;
    `possible` are those that could be asked for.
    """
    refuse_without_file(formats, precisions)
    found = artefacts(formats, precisions, lacking(run))
    if "int8" in precisions and not any(precision == "int8" for precision, _ in found):
        others = [kind for kind in possible if ("int8", kind) not in lacking(run)]
        add = f"add {' or '.join(others)}, " if others else ""
        again = f"run 'pipeline quantize --run {run.name}' for int8 alone"
        raise UsageError(
            f"int8 of run {run.name} has no C: {', '.join(in_float(run))} stayed in float",
            f"{add}give --precision fp32, or {again}",
        )
    return found
