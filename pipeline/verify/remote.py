"""Sessions of the runner's `compute` command: runtimes in another Python or on another machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

import deploy
from deploy.runner.backends.session import Session, TensorInfo, check_values
from deploy.runner.compute import Message, pack, receive, send, tensor_info, unpack

from ..errors import BadInput, Missing, UsageError

ERRORS = {kind.__name__: kind for kind in (BadInput, Missing, UsageError)}


def tflite_runtime_python() -> Path | None:
    """The Python of the environment that `make install` gives tflite-runtime, if there is one."""
    python = Path(sys.prefix) / "tflite-runtime" / "bin" / "python"
    return python if python.exists() else None


def runner_command(python: Path | str) -> list[str]:
    """The runner from this very source, in another Python of this machine, which needs NumPy."""
    return [str(python), "-m", "deploy.runner"]


class Worker:
    """One process in which one runtime opens any number of models; it ends with the `with` block.

    `command` starts the runner: `runner_command(...)`, or `ssh pi python3 runner.pyz` as a list.
    """

    def __init__(self, runtime: str, command: Sequence[str]) -> None:
        """Raises Missing where the command is not there."""
        self.command = [*command, "compute", "--runtime", runtime]
        source = Path(deploy.__file__).parents[1]
        # A pipe that nobody reads would fill up. __exit__ closes it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=os.environ | {"PYTHONPATH": str(source)},
            )
        except OSError as error:
            self._errors.close()
            raise Missing(f"{command[0]}: cannot be started ({error.strerror})") from error

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError), self._process:  # closes its pipes and waits
            pass
        self._errors.close()

    def open(self, path: Path, threads: int = 1, kernels: str | None = None) -> Session:
        """As `backends.open_session`, over there. Raises Missing, too, where the process ended."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
        request = {"open": str(path), "threads": threads, "kernels": kernels}
        answer, _ = self.request(request, content)
        inputs, outputs = (
            tuple(tensor_info(record) for record in answer[side]) for side in ("inputs", "outputs")
        )
        return RemoteSession(self, answer["session"], answer["runtime"], inputs, outputs)

    def request(self, record: dict[str, Any], content: bytes) -> Message:
        """One request and its answer; an error over there is raised here."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            send(self._process.stdin, record, content)
            answer = receive(self._process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise Missing(f"{' '.join(self.command)}: ended ({self._last_words()})")
        if "error" in answer[0]:
            raise ERRORS[answer[0]["error"]](answer[0]["message"], answer[0]["mend"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else f"exit code {code}"


@dataclass(frozen=True)
class RemoteSession:
    """A session in a worker's process."""

    worker: Worker
    number: int
    runtime: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def run(self, *values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """See `deploy.runner.backends.session.Session`."""
        check_values(self.inputs, values)
        _, content = self.worker.request({"run": self.number}, pack(values))
        return unpack(content)
