"""Every error a person can meet on the workstation; `cli` catches them in one place.

The classes and their exit codes are the device's own (`deploy.runner.errors`), so that both sides
speak alike.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from deploy.runner.errors import (
    INTERRUPTED,
    BadInput,
    Missing,
    UsageError,
    UserError,
    VerificationFailed,
    first_line,
)

__all__ = [
    "INTERRUPTED",
    "BadInput",
    "Interrupted",
    "Missing",
    "UsageError",
    "UserError",
    "VerificationFailed",
    "first_line",
    "unknown",
]


class Interrupted(UserError):
    """Ctrl-C; says how to go on."""

    exit_code = INTERRUPTED


def unknown(kind: str, name: str, known: Iterable[str], also: str = "") -> UsageError:
    """The error for a name that is in no table, with the nearest one that is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}", f"{guess}known: {', '.join(names)}{also}")
