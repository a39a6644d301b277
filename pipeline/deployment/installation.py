"""What is done on a device, as commands of its shell: the same for one device and for many."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from deploy.runner.bundle import RUNNER
from deploy.runner.doctor import NOTE, WRONG

from ..errors import UsageError, UserError
from .ssh import UNTOUCHED

STAGING = ".cache/pi-pipeline"  # below the home folder there; /tmp may be memory
COPY, INSTALL = "copy", "install"


@dataclass(frozen=True)
class Step:
    """A command of the device's shell. Of `is_report` the output, JSON, is brought back."""

    name: str
    command: str
    is_report: bool = False

    @property
    def left(self) -> str:
        """What is installed if the connection is lost during it: install.sh may go on."""
        if self.is_report:
            return "the new version is installed there"
        return "the new version may be installed there" if self.name == INSTALL else UNTOUCHED


@dataclass(frozen=True)
class Installation:
    """A bundle's way onto a device. `stem` is the folder in the archive, `name` what install.sh
    calls it there; `python`: whether a runtime is installed with it; `count` inferences are timed.
    """

    stem: str
    name: str
    python: bool
    prefix: str | None = None
    count: int = 1000

    def __post_init__(self) -> None:
        if self.prefix is not None and not self.prefix.startswith("/"):
            raise UsageError(f"--prefix {self.prefix}", "give a path that begins with /")
        if self.count < 1:
            raise UsageError(f"--count {self.count}", "give 1 or more")

    @property
    def staging(self) -> str:
        """The folder that the archive is copied into, below the home folder."""
        return f"{STAGING}/{self.stem}"

    @property
    def archive(self) -> str:
        """The archive there, below the home folder."""
        return f"{self.staging}/bundle.tar.gz"

    @property
    def current(self) -> str:
        """The installed version, as an expression of the shell."""
        if self.prefix is not None:
            return shlex.quote(f"{self.prefix}/current")
        return f'"${{XDG_DATA_HOME:-$HOME/.local/share}}"/{shlex.quote(self.name)}/current'

    @property
    def prepare(self) -> Step:
        """Makes place for the archive; what a copy that was cut off has left is gone."""
        folder = shlex.quote(self.staging)
        return Step("prepare", f"cd && rm -rf {folder} && mkdir -p {folder}")

    @property
    def rest(self) -> list[Step]:
        """What follows when the archive is there."""
        options = [] if self.python else ["--no-python"]
        options += ["--prefix", self.prefix] if self.prefix is not None else []
        unpack = f"cd && cd {shlex.quote(self.staging)} && tar -xzf bundle.tar.gz"
        install = shlex.join([f"{self.stem}/install.sh", *options])
        steps = [Step(INSTALL, f"{unpack} && {install}")]
        if self.python:
            runner = f"cd {self.current} && venv/bin/python bundle/{RUNNER}"
            commands = {"doctor": "", "selftest": "", "bench": f" --count {self.count}"}
            commands = {name: f"{runner} {name} --json{more}" for name, more in commands.items()}
        else:
            classify = f"{self.current}/bundle/classify"
            commands = {"selftest": f"{classify} --selftest --json"}
            commands["bench"] = f"{classify} --bench --json --count {self.count}"
        return [*steps, *(Step(name, command, True) for name, command in commands.items())]

    @property
    def tidy(self) -> Step:
        """Removes the copy, whatever has happened."""
        return Step("tidy up", f"cd && rm -rf {shlex.quote(self.staging)}")


def reported(output: str) -> Any:
    """The report in a step's output: its last line, since a login script may have printed others.
    None where that is no list and no object of JSON.
    """
    line = (output.strip().splitlines() or [""])[-1]
    try:
        report = json.loads(line)
    except ValueError:
        return None
    return report if isinstance(report, (list, dict)) else None


def outcome(
    host: str, step: Step, output: str, error: UserError | None
) -> tuple[Any, UserError | None]:
    """(report or None, error or None) of a step that has ended. Of doctor and selftest the error
    says what their report says.
    """
    report = reported(output) if step.is_report else None
    amiss = complaint(report)
    if error is not None and amiss is not None:
        error = type(error)(f"{host}: {amiss[0]}", amiss[1])
    return report, error


def complaint(report: Any) -> tuple[str, str] | None:
    """The worst that a report of doctor or selftest says of a runtime, and what mends it."""
    entries = report if isinstance(report, list) else [report] if report else []
    for state in (WRONG, NOTE):
        for entry in entries:
            if entry.get("state") == state and entry["what"].startswith("runtime "):
                return f"{entry['what']}: {entry['found']}", entry["mend"]
    for entry in entries:
        if entry.get("passed") is False:
            where = entry.get("runtime") or f"C, {entry.get('set')}"
            return f"the selftest failed ({where})", "do not use it there; see its doctor"
    return None


def latencies(bench: Any) -> list[dict[str, Any]]:
    """The rows of a `bench` report: runtime, precision, threads, and the metrics by their names.

    Either the runner's model card or what `classify --bench` prints.
    """
    if not isinstance(bench, dict):
        return []
    if not {"model-index", "set"} & bench.keys():
        return []
    if "model-index" not in bench:
        return [{"runtime": f"c ({bench['set']})", "precision": "", "threads": 1, **bench}]
    rows = []
    for model in bench["model-index"]:
        for result in model["results"]:
            metrics = {metric["type"]: metric["value"] for metric in result["metrics"]}
            rows.append({**result["metrics"][0]["args"], **metrics})
    return rows
