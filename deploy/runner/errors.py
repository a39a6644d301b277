"""Every error a person can meet is a `UserError`: one line saying what is wrong, and what mends it.

Exit codes: 0 fine, 1 verification or a gate failed, 2 usage, 3 bad or corrupt input, 4 something is
missing, 5 interrupted. They are the same on the workstation and on the device.
"""

from __future__ import annotations

INTERRUPTED = 5


class UserError(Exception):
    """Base class; `mend` is the command, option or action that puts things right."""

    exit_code = 3

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}; {self.mend}" if self.mend else self.message


def first_line(error: BaseException) -> str:
    """What a library's exception says first, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class VerificationFailed(UserError):
    """What was computed is not what should have been computed."""

    exit_code = 1


class UsageError(UserError):
    """The command line asks for something that does not exist or makes no sense."""

    exit_code = 2


class BadInput(UserError):
    """A file is corrupt, of the wrong shape, changed by hand or out of date."""

    exit_code = 3


class Missing(UserError):
    """A file, a runtime or a tool is not there."""

    exit_code = 4
