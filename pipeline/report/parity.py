"""What the report says of parity: a verification as tables of layers and runtimes."""

from __future__ import annotations

from typing import Any

from ..precisions import INTEGERS, PRECISIONS
from ..verify.report import has_bound

Record = dict[str, Any]


def parity_of(verification: Record) -> Record:
    """For each precision: layers x configurations, what is told of each cell."""
    tables = {}
    for precision in PRECISIONS:
        judged = [
            a
            for a in verification["artefacts"]
            if a["precision"] == precision and a["error"] is None
            if "," not in a["configuration"]
        ]
        if judged:
            tables[precision] = {
                "columns": [[a["file"], a["configuration"], a["shipped"]] for a in judged],
                "layers": [[e["layer"], e["kind"]] for e in judged[0]["layers"]],
                "cells": [
                    [_cell(a["layers"][n], precision) for a in judged]
                    for n in range(len(judged[0]["layers"]))
                ],
                "kinds": list(dict.fromkeys(k for a in judged for k in a["fingerprints"])),
                "fingerprints": [a["fingerprints"] for a in judged],
                "steps": [_steps(a) for a in judged],
            }
    return {
        "passed": verification["passed"],
        "tables": tables,
        "varied": [entry for entry in verification["varied"] if entry["differ"]],
        "observer": [
            {"file": a["file"], "configuration": a["configuration"], **a["observer"]}
            for a in verification["artefacts"]
            if a["error"] is None and a["observer"]["differ"]
        ],
        "skipped": verification["skipped"],
    }


def _cell(layer: Record, precision: str) -> Record:
    """Of floats the largest error as a part of its bound (`of_bound`). Of integers the part that is
    not that of exact arithmetic, all of which a rounding explains where the layer passed.
    """
    of_bound = precision not in INTEGERS or has_bound(layer)
    cell = {"passed": layer["passed"], "with": layer["with"], "of_bound": of_bound}
    if layer["with"]:
        return cell | {"value": None}
    judged = [j for j in (layer["isolated"], layer["in_place"]) if j is not None]
    if of_bound:
        return cell | {"value": max(j["fraction_of_bound"] for j in judged)}
    return cell | {"value": max(1 - j["equal_part"] for j in judged)}


def _steps(artefact: Record) -> Record:
    """How many integers, of all layers on their own inputs, are how many steps off."""
    found: dict[int, int] = {}
    for layer in artefact["layers"]:
        for judged in (layer["isolated"], layer["in_place"]):
            for step, count in (judged or {"steps": {}})["steps"].items():
                found[int(step)] = found.get(int(step), 0) + count
    return {str(step): found[step] for step in sorted(found)}
