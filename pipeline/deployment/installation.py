"""What is done on a device, as commands of its shell: the same for one device and for many."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from deploy.runner.bundle import RUNNER

from ..errors import UsageError

STAGING = ".cache/pi-pipeline"  # below the home folder there; /tmp may be memory
COPY = "copy"


@dataclass(frozen=True)
class Step:
    """A command of the device's shell. Of `is_report` the output is brought back."""

    name: str
    command: str
    is_report: bool = False


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
        steps = [Step("install", f"{unpack} && {install}")]
        if self.python:
            runner = f"cd {self.current} && venv/bin/python bundle/{RUNNER}"
            commands = {"doctor": "", "selftest": "", "bench": f" --count {self.count}"}
            commands = {name: f"{runner} {name} --json{more}" for name, more in commands.items()}
        else:
            classify = f"{self.current}/bundle/classify"
            commands = {"selftest": f"{classify} --selftest"}
            commands["bench"] = f"{classify} --bench --json --count {self.count}"
        return [*steps, *(Step(name, command, True) for name, command in commands.items())]

    @property
    def tidy(self) -> Step:
        """Removes the copy, whatever has happened."""
        return Step("tidy up", f"cd && rm -rf {shlex.quote(self.staging)}")


def reported(output: str) -> Any:
    """What a step's output says: its last line, which mostly is a JSON document. A login script may
    have printed others before it.
    """
    line = (output.strip().splitlines() or [""])[-1]
    try:
        return json.loads(line)
    except ValueError:
        return line


def latencies(bench: Any) -> list[dict[str, Any]]:
    """The rows of a `bench` report: runtime, precision, threads, and the metrics by their names.

    Either the runner's model card or what `classify --bench` prints.
    """
    if not isinstance(bench, dict):
        return []
    if "model-index" not in bench:
        return [{"runtime": f"c ({bench['set']})", "precision": "", "threads": 1, **bench}]
    rows = []
    for model in bench["model-index"]:
        for result in model["results"]:
            metrics = {metric["type"]: metric["value"] for metric in result["metrics"]}
            rows.append({**result["metrics"][0]["args"], **metrics})
    return rows
