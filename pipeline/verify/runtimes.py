"""The runtimes that a file is verified in, each opened by the runner that ships."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.runner.backends import Session, open_session
from deploy.runner.backends.c import SETS

from ..errors import Missing
from .compiler import Sources, compiler
from .remote import Worker, runner_command, tflite_runtime_python

Array = npt.NDArray[Any]

FLOAT_HALF_EVEN = "float half even"  # how C rounds, see `rounding.REQUANTIZATIONS`


@dataclass(frozen=True)
class Configuration:
    """One way to run a file. `kernels` are the runner's names. `batch` images go through at once,
    0 for as many as there are. `shipped` is whether the runner on the device does it so;
    `integer` whether convolutions and linear layers of an int8 file are added up in integers, and
    `scheme` the one way in which these sums must then be rounded.
    """

    runtime: str
    kernels: str
    threads: int = 1
    batch: int = 0
    shipped: bool = False
    integer: bool = False
    scheme: str = ""

    @property
    def name(self) -> str:
        """As in reports: "onnxruntime all", "litert xnnpack, 2 threads"."""
        threads = ", 2 threads" if self.threads == 2 else ""
        return f"{self.runtime} {self.kernels}{threads}{', batch 1' if self.batch == 1 else ''}"


# Every layer is judged in these. One thread: a sum split among threads is rounded in another order.
JUDGED: dict[str, tuple[Configuration, ...]] = {
    "onnx": (
        Configuration("onnxruntime", "all", shipped=True, integer=True),
        Configuration("onnxruntime", "extended", integer=True),
        Configuration("onnxruntime", "basic"),
        Configuration("onnxruntime", "disabled"),
    ),
    "tflite": (
        Configuration("litert", "xnnpack", shipped=True, integer=True),
        Configuration("litert", "builtin", integer=True),
        Configuration("litert", "reference", integer=True),
        Configuration("tflite-runtime", "xnnpack", shipped=True, integer=True),
    ),
    # Instructions that this processor lacks are left out, and those that are the best ones.
    "c": (
        Configuration("c", "best", shipped=True, integer=True, scheme=FLOAT_HALF_EVEN),
        *(Configuration("c", s, integer=True, scheme=FLOAT_HALF_EVEN) for s in SETS),
    ),
}
# In these, layers are judged in place only.
VARIED: dict[str, tuple[Configuration, ...]] = {
    "onnx": (
        Configuration("onnxruntime", "all", threads=2, integer=True),
        Configuration("onnxruntime", "all", batch=1, integer=True),
    ),
    "tflite": (Configuration("litert", "xnnpack", threads=2, integer=True),),
    "c": (),
}
# An environment of its own, which need not be there: see `--require`.
ELSEWHERE = {"tflite-runtime"}

Opener = Callable[[bytes, str], Session]


class Runtimes:
    """Opens files from memory, and ends what it started when the `with` block ends."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._workers: dict[str, Worker] = {}
        self._opened = 0

    def __enter__(self) -> Runtimes:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def open(self, configuration: Configuration, content: bytes, name: str) -> Session:
        """Open a file's content; the suffix of `name` says what it is. Raises Missing, BadInput."""
        # Never a path of the user's; and a library that is loaded once is found by its path again.
        self._opened += 1
        path = self._folder / f"model-{self._opened}{Path(name).suffix}"
        path.write_bytes(content)
        try:
            if configuration.runtime not in ELSEWHERE:
                return open_session(
                    configuration.runtime, path, configuration.threads, configuration.kernels
                )
            worker = self._worker(configuration.runtime)
            return worker.open(path, configuration.threads, configuration.kernels)
        finally:
            path.unlink()

    def _worker(self, runtime: str) -> Worker:
        if runtime not in self._workers:
            python = tflite_runtime_python()
            if python is None:
                raise Missing(f"{runtime}: its environment is not there", "run 'make install'")
            worker = self._stack.enter_context(Worker(runtime, runner_command(python)))
            self._workers[runtime] = worker
        return self._workers[runtime]


def kind_of(name: str) -> str:
    """Which of the tables a file of this name is looked up in; "" for none."""
    if name.endswith(("-c", ".so")):
        return "c"
    suffix = Path(name).suffix[1:]
    return suffix if suffix in JUDGED else ""


def lacks(configuration: Configuration, content: bytes | Sources) -> bool:
    """Whether what runs this content is not there; a library needs no compiler."""
    library = configuration.runtime == "c" and isinstance(content, bytes)
    return missing(configuration) and not library


def missing(configuration: Configuration) -> bool:
    """Whether a runtime that may be missing is: for C, a compiler."""
    if configuration.runtime == "c":
        return compiler() is None
    return configuration.runtime in ELSEWHERE and tflite_runtime_python() is None


def run_all(session: Session, values: tuple[Array, ...], batch: int) -> list[Array]:
    """Every output for all images, `batch` at a time; 0 for all at once."""
    count = len(values[0])
    if not batch or batch >= count:
        return session.run(*values)
    parts = [
        session.run(*(value[start : start + batch] for value in values))
        for start in range(0, count, batch)
    ]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]
