"""The runtimes a model file can be run by, in the order in which they are taken.

A backend module has `SUFFIX`, the kind of file it runs; `PIP`, what installs it;
`MODULE`, what is imported; and
`open_model(path, threads)`, which builds an interpreter. Building one is the probe: a runtime with
the wrong NumPy imports fine and fails only then.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..contract import Contract
from ..errors import BadInput, Missing, UsageError, UserError, first_line
from . import litert, onnxruntime, tflite_runtime


class Model(Protocol):
    """A model file opened by one runtime."""

    contract: Contract
    runtime: str  # name and version

    def run(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """uint8 N x C x H x W to every output of the file, batch first, in the file's own dtypes.

        Integer outputs stay integers; `deploy.runner.scores` makes them real.
        """
        ...


BACKENDS: dict[str, ModuleType] = {
    "litert": litert,
    "tflite-runtime": tflite_runtime,
    "onnxruntime": onnxruntime,
}


def open_with(runtime: str, path: Path, threads: int = 1) -> Model:
    """Open `path` with exactly this runtime. Raises Missing where it cannot be used."""
    if runtime not in BACKENDS:
        raise UsageError(f"unknown runtime {runtime!r}", f"choose {', '.join(BACKENDS)}")
    backend = BACKENDS[runtime]
    try:
        model: Model = backend.open_model(path, threads=threads)
    except UserError:
        raise
    except ImportError as error:
        raise Missing(
            f"{runtime}: not installed ({error})", f"pip install {backend.PIP}"
        ) from error
    except (AttributeError, SystemError) as error:  # '_ARRAY_API not found': built for another one
        raise Missing(f"{runtime}: does not fit this NumPy {np.__version__} ({error})") from error
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"{path}: {runtime} cannot load it ({first_line(error)})") from error
    return model


def open_first(models: dict[str, Path], threads: int = 1) -> Model:
    """Open the first runtime of the ladder that works here.

    `models` maps a suffix (".tflite", ".onnx") to the file. Raises Missing with the reason of each
    runtime that was tried when none works.
    """
    reasons = []
    for name, backend in BACKENDS.items():
        if backend.SUFFIX not in models:
            continue
        try:
            return open_with(name, models[backend.SUFFIX], threads)
        except (Missing, BadInput) as error:
            reasons.append(error.message)
    raise Missing(
        "no runtime works here: " + " · ".join(reasons or ["the bundle has no model for one"]),
        "install one: README.md beside the runner says how (requirements-….txt)",
    )
