"""A device by the system's own ssh and scp, which know keys, ports and names; no password is
handled.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput, Missing, UsageError, UserError, VerificationFailed

# A question would wait for ever; a dead link is told from a slow one within a minute.
OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4")
SSH_FAILED = 255  # ssh's own exit code, whatever the command there would give
UNTOUCHED = "what was installed there is as it was"
TROUBLES = (  # what ssh says, what it means, what mends it
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is another than before",
     "if it was set up anew, run 'ssh-keygen -R {address}', then 'ssh {host}' once"),
    ("Host key verification failed", "its host key is not known here",
     "run 'ssh {host}' once and compare the key that it shows"),
    ("Permission denied", "it does not let this user in without a password",
     "run 'ssh-copy-id {host}'"),
    ("Could not resolve", "there is no device of that name",
     "see to the name, or give its address"),
    ("Connection refused", "it answers, but not to ssh",
     "enable ssh there: 'sudo raspi-config nonint do_ssh 0'"),
    ("timed out", "it does not answer", "see to its power and its network"),
    ("No route to host", "it does not answer", "see to its power and its network"),
)  # fmt: skip
CODES: dict[int, type[UserError]] = {
    1: VerificationFailed,
    2: UsageError,
    3: BadInput,
    4: Missing,
}


@dataclass(frozen=True)
class Device:
    """`host` as ssh takes it: [USER@]HOST, or a name in its configuration, which `config` may be
    instead of the user's own.
    """

    host: str
    config: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([\w.][\w.-]*@)?[\w.:\[][\w.:\[\]%-]*", self.host):
            raise UsageError(f"{self.host!r} is no device", "give [USER@]HOST, as for ssh")

    @property
    def _options(self) -> list[str]:
        configuration = [] if self.config is None else ["-F", str(self.config)]
        return [*configuration, *(part for option in OPTIONS for part in ("-o", option))]

    @property
    def _plain(self) -> str:
        """It as ssh wants it: an IPv6 address without brackets, which scp needs."""
        return self.host.translate({ord("["): None, ord("]"): None})

    def command(self, script: str) -> list[str]:
        """The command that runs `script` in its shell."""
        return ["ssh", *self._options, self._plain, script]

    def copying(self, file: Path, to: str) -> list[str]:
        """The command that copies a file there; `to` is below its home folder."""
        user, at, address = self._plain.rpartition("@")
        address = f"[{address}]" if ":" in address else address
        return ["scp", "-q", *self._options, str(file), f"{user}{at}{address}:{to}"]

    def run(self, script: str) -> str:
        """Run it there and return what it printed. Raises the UserError that its exit code means,
        with what it said, and Missing where the device cannot be reached.
        """
        output, error = self.attempt(script)
        if error is not None:
            raise error
        return output

    def attempt(self, script: str, left: str = UNTOUCHED) -> tuple[str, UserError | None]:
        """As `run`, but with the error beside what was printed before it. `left`: what is to be
        said of the installation if the connection is lost.
        """
        return self._done(self.command(script), left)

    def copy(self, file: Path, to: str) -> None:
        """Copy a file there. Raises Missing where the device cannot be reached, and BadInput."""
        _, error = self._done(self.copying(file, to))
        if error is not None:
            raise error

    def _done(self, command: list[str], left: str = UNTOUCHED) -> tuple[str, UserError | None]:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except FileNotFoundError as error:
            raise Missing(f"there is no {command[0]} here", "install openssh-client") from error
        if done.returncode == 0:
            return done.stdout, None
        return done.stdout, self.error(command[0], done.returncode, done.stderr, left)

    def error(self, program: str, code: int, said: str, left: str = UNTOUCHED) -> UserError:
        """What has gone wrong, from an exit code of ssh or scp and what was said on stderr; `left`
        as for `attempt`.
        """
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {code}"
        address = self._plain.rpartition("@")[2]
        if code == SSH_FAILED or program == "scp":
            for words, meaning, mend in TROUBLES:
                if words in said:
                    shown = {"host": shlex.quote(self._plain), "address": shlex.quote(address)}
                    return Missing(f"{self.host}: {meaning}", mend.format(**shown))
        if code == SSH_FAILED or "Connection closed" in said or "lost connection" in said:
            mend = f"give the command again; {left}"
            return Missing(f"{self.host}: the connection was lost ({last})", mend)
        for words, mend in (
            ("No space left", "make room there"),
            ("Read-only file system", "see to its memory card, or give another --prefix"),
        ):
            if words in said:
                return BadInput(f"{self.host}: {words.lower()} there", mend)
        if program == "scp":
            return BadInput(f"{self.host}: the bundle was not copied ({last})", "is its disk full?")
        message = next((line for line in lines if line.startswith("error: ")), last)
        what, _, mend = message.removeprefix("error: ").partition("; ")
        return CODES.get(code, BadInput)(f"{self.host}: {what}", mend)
