"""The semantics grid: one-layer models through the exporters and runners that ship, cell by cell.

A conversion takes a second or two whatever its size, so up to `GROUP` cells go through one file:
parallel branches from one input. Where a file is refused, halving finds the cells that are to
blame, and the others are converted without them. What a neighbour may change is done again alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ...errors import UserError, unknown
from ..compiler import compiler
from ..schemes import FLOAT32
from .cells import Cell, core_cells, full_cells
from .defects import REFUSALS, known_defect, known_refusal
from .group import KINDS, REFERENCE, Group, export_cells, found_by, group_of
from .outcome import MISMATCH, REFUSED, Outcome, outcome_of
from .reproducer import write_reproducer, write_reproducers
from .truth import judge_output

__all__ = [
    "RUNTIMES",
    "Cell",
    "Outcome",
    "cells_in_c",
    "core_cells",
    "full_cells",
    "run_cells",
    "write_reproducer",
    "write_reproducers",
]

Array = npt.NDArray[Any]

RUNTIMES = tuple(KINDS)
GROUP = 100  # cells in one file
IN_C = 5  # compiling takes a quarter of a second a cell: so every fifth of the core's windows


def run_cells(
    cells: Iterable[Cell],
    runtimes: Sequence[str] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Each cell in each runtime, in C where it is one of `cells_in_c`; cells that may share a file
    come together. Without a choice those runtimes that are there. Raises UsageError.
    """
    if runtimes is None:
        runtimes = [name for name in RUNTIMES if KINDS[name] != "c" or compiler() is not None]
    for runtime in runtimes:
        if runtime not in KINDS:
            raise unknown("runtime", runtime, KINDS)
    outcomes = []
    for group in _groups(cells):
        on_step(f"one-layer models ({group[0].name} and {len(group) - 1} more)")
        outcomes += [_unexcused(outcome) for outcome in _outcomes(group, runtimes)]
    return outcomes


@cache
def cells_in_c() -> frozenset[Cell]:
    """Convolutions and poolings of the core that nothing refuses on the way to C."""
    windows = [
        cell
        for cell in core_cells()
        if cell.operator in ("conv", "max-pool", "avg-pool")
        and not any(refusal.applies(cell) for refusal in REFUSALS)
    ]
    return frozenset(windows[::IN_C])


def _unexcused(outcome: Outcome) -> Outcome:
    """A refusal that is not known of the cell is as wrong as a wrong result."""
    known = any(r.applies(outcome.cell) and r.reason in outcome.detail for r in REFUSALS)
    if outcome.status != REFUSED or known:
        return outcome
    return replace(outcome, status=MISMATCH, detail=f"refused without need: {outcome.detail}")


def _groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that go through one file; those that the quantizer is known to refuse are alone."""
    groups: list[list[Cell]] = []
    families: dict[Any, list[Cell]] = {}
    for cell in cells:
        family = families.setdefault((cell.precision, cell.shape), [])
        if known_refusal(cell):
            groups.append([cell])
        else:
            family.append(cell)
    for family in families.values():
        groups += [family[start : start + GROUP] for start in range(0, len(family), GROUP)]
    return groups


def _outcomes(cells: Sequence[Cell], runtimes: Sequence[str]) -> list[Outcome]:
    try:
        group = group_of(cells)
    except UserError as error:
        if len(cells) == 1:
            names = [name for name in runtimes if KINDS[name] != "c"]
            return [Outcome(cells[0], name, REFUSED, error.message, 0.0) for name in names]
        half = len(cells) // 2
        return _outcomes(cells[:half], runtimes) + _outcomes(cells[half:], runtimes)
    outcomes = []
    for kind in dict.fromkeys(KINDS[runtime] for runtime in runtimes):
        readers = [runtime for runtime in runtimes if KINDS[runtime] == kind]
        here = [n for n, cell in enumerate(cells) if kind != "c" or cell in cells_in_c()]
        alone = [n for n in here if _goes_alone(cells[n], kind)]
        together = [n for n in here if n not in alone]
        for numbers in filter(None, (together, *([n] for n in alone))):
            outcomes += _exported(group, numbers, kind, readers)
    return outcomes


def _goes_alone(cell: Cell, kind: str) -> bool:
    """What is refused holds up others. And beside others the TFLite converter is known to compute
    some int8 average poolings in float32, which then are right.
    """
    wrong = kind == "tflite" and known_defect(cell, "litert") is not None
    return wrong or known_refusal(cell, kind) is not None


def _exported(
    group: Group, numbers: list[int], kind: str, runtimes: Sequence[str]
) -> list[Outcome]:
    """These cells through one file in the runtimes that read it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = export_cells(group, numbers, kind, Path(folder))
        except UserError as error:
            return _refused(error.message, group, numbers, kind, runtimes)
        outcomes = []
        for path, inside in files:
            for runtime in runtimes:
                try:
                    found = found_by(path, runtime, group.values)
                except UserError as error:
                    reason = error.message.replace(f"{folder}/", "")
                    outcomes += _refused(reason, group, inside, kind, [runtime])
                else:
                    outcomes += _judged(group, inside, runtime, found)
    return [_again(outcome, group) if len(numbers) > 1 else outcome for outcome in outcomes]


def _refused(
    reason: str, group: Group, numbers: list[int], kind: str, runtimes: Sequence[str]
) -> list[Outcome]:
    """One cell is refused; where there are more, each half is tried for itself."""
    if len(numbers) == 1:
        cell = group.cells[numbers[0]]
        return [Outcome(cell, runtime, REFUSED, reason, 0.0) for runtime in runtimes]
    half = len(numbers) // 2
    parts = (numbers[:half], numbers[half:])
    return [outcome for part in parts for outcome in _exported(group, part, kind, runtimes)]


def _judged(
    group: Group, numbers: Sequence[int], runtime: str, found: Sequence[Array]
) -> list[Outcome]:
    outcomes, outputs = [], iter(found)
    for number in numbers:
        judgements = [
            judge_output(truth, next(outputs), finely=runtime == REFERENCE)
            for truth in group.truths[number]
        ]
        outcomes.append(outcome_of(group.cells[number], runtime, judgements))
    return outcomes


def _again(outcome: Outcome, group: Group) -> Outcome:
    """What beside others is wrong, or in float32 though it may not be so alone, is judged alone."""
    kind = KINDS[outcome.runtime]
    wrong = outcome.status == MISMATCH
    if not wrong and not (kind == "tflite" and outcome.detail == FLOAT32):
        return outcome
    number = group.cells.index(outcome.cell)
    (alone,) = _exported(group, [number], kind, [outcome.runtime])
    if wrong and alone.status != MISMATCH:
        return replace(outcome, detail=f"{outcome.detail}; only beside other layers")
    return alone
