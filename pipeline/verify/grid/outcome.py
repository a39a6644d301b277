"""What becomes of a cell in a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..judgement import Judgement
from .cells import Cell
from .defects import known_defect

MATCH, REFUSED, KNOWN_DEFECT, MISMATCH = "match", "refused", "known defect", "MISMATCH"
WORST = 1e9  # stands for infinity, which JSON does not have, and for a problem


@dataclass(frozen=True)
class Outcome:
    """A cell in a runtime. `status` is "match", "refused", "known defect" or "MISMATCH".

    `detail` is how it rounds where it is int8, else what is wrong. `worst` is fp32's largest error
    as a fraction of its bound, and int8's in steps off the nearest integer.
    """

    cell: Cell
    runtime: str
    status: str
    detail: str
    worst: float

    @property
    def ok(self) -> bool:
        """Whether this is as it should be, or at least as it is known to be."""
        return self.status != MISMATCH

    def as_json(self) -> dict[str, Any]:
        """For verify.json."""
        return asdict(self) | {"cell": self.cell.name, "operator": self.cell.operator}


def outcome_of(cell: Cell, runtime: str, judgements: Sequence[Judgement]) -> Outcome:
    """From the judgement of each of the cell's outputs."""
    worst = max(WORST if j.problem else min(j.fraction, WORST) for j in judgements)
    if all(judgement.passed for judgement in judgements):
        detail = "; ".join(filter(None, (judgement.fingerprint for judgement in judgements)))
        return Outcome(cell, runtime, MATCH, detail, worst)
    detail = "; ".join(described(judgement) for judgement in judgements if not judgement.passed)
    defect = known_defect(cell, runtime)
    if defect is None:
        return Outcome(cell, runtime, MISMATCH, detail, worst)
    detail = f"{defect.reason} ({defect.versions}): {detail}"
    return Outcome(cell, runtime, KNOWN_DEFECT, detail, worst)


def described(judgement: Judgement) -> str:
    """What is wrong, with the first or worst place."""
    wrong = judgement.first_outside
    if judgement.problem is not None or wrong is None:
        return judgement.problem or "nothing to compare"
    return (
        f"{judgement.outside} of {judgement.elements} elements; at {wrong.position} "
        f"expected {wrong.expected:.9g}, found {wrong.found:.9g}"
    )
