"""The runtimes a model file can be run by, in the order in which they are taken.

A backend module has `SUFFIX`, the kind of file it runs; `PIP`, what installs it; `MODULE`, what is
imported; `THREADED`, whether it takes more than one thread; `KERNELS`, the names of its settings,
the first being the one that is used on the device; `open_session(path, threads, kernels)`, which
builds an interpreter; and `read_contract(path, session)`. Building an interpreter is the probe: a
runtime with the wrong NumPy imports fine and fails only then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import Contract
from ..errors import BadInput, Missing, UsageError, UserError, first_line
from . import c, litert, onnxruntime, tflite_runtime
from .session import Session, TensorInfo

__all__ = [
    "BACKENDS",
    "Model",
    "Session",
    "TensorInfo",
    "as_input",
    "open_first",
    "open_session",
    "open_with",
]

BACKENDS: dict[str, ModuleType] = {
    "c": c,
    "litert": litert,
    "tflite-runtime": tflite_runtime,
    "onnxruntime": onnxruntime,
}


@dataclass(frozen=True)
class Model:
    """A file that has a contract and keeps it: pictures in, scores out."""

    contract: Contract
    session: Session

    @property
    def runtime(self) -> str:
        """Name and version."""
        return self.session.runtime

    def run(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """uint8 N x C x H x W to every output of the file, batch first, in the file's own dtypes.

        Integer outputs stay integers; `deploy.runner.scores` makes them real.
        """
        return self.session.run(as_input(pixels, self.session.inputs[0].dtype))


def as_input(pixels: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Pixels as a model takes them: scale 1/255 and zero point -128 in int8, 0 in int16; or
    float32.
    """
    if dtype == np.int16:
        return pixels.astype(np.int16)
    if dtype == np.int8:
        return (pixels.astype(np.int16) - 128).astype(np.int8)
    return pixels.astype(np.float32) / np.float32(255)


def _backend(runtime: str) -> ModuleType:
    if runtime not in BACKENDS:
        raise UsageError(f"unknown runtime {runtime!r}", f"choose {', '.join(BACKENDS)}")
    return BACKENDS[runtime]


def open_session(runtime: str, path: Path, threads: int = 1, kernels: str | None = None) -> Session:
    """Open any model file with exactly this runtime; `kernels` None is what the device uses.

    Raises Missing where the runtime cannot be used, BadInput for a file that it cannot load.
    """
    backend = _backend(runtime)
    kernels = backend.KERNELS[0] if kernels is None else kernels
    if kernels not in backend.KERNELS:
        raise UsageError(f"unknown kernels {kernels!r}", f"choose {', '.join(backend.KERNELS)}")
    try:
        session: Session = backend.open_session(path, threads=threads, kernels=kernels)
    except UserError:
        raise
    except ImportError as error:
        raise Missing(
            f"{runtime}: not installed ({error})", f"pip install {backend.PIP}"
        ) from error
    except (AttributeError, SystemError) as error:  # '_ARRAY_API not found': built for another one
        raise Missing(
            f"{runtime}: does not fit this NumPy {np.__version__} ({error.__cause__ or error})",
            f"in an environment of its own: pip install {backend.PIP}",
        ) from error
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"{path}: {runtime} cannot load it ({first_line(error)})") from error
    return session


def open_with(runtime: str, path: Path, threads: int = 1, kernels: str | None = None) -> Model:
    """Open a model file and check it against its contract.

    Raises as `open_session` does, and BadInput for a file without a contract or unlike it.
    """
    session = open_session(runtime, path, threads, kernels)
    backend = _backend(runtime)
    contract: Contract = backend.read_contract(path, session)
    if len(session.inputs) != 1 or not session.outputs:
        raise BadInput(f"{path}: {len(session.inputs)} inputs, {len(session.outputs)} outputs")
    found = session.inputs[0].shape[1:]
    if found != contract.input_shape:
        raise BadInput(
            f"{path}: the input has shape {found}, the contract says {contract.input_shape}"
        )
    sides = ((session.inputs[0], contract.input), (session.outputs[0], contract.output))
    for tensor, stated in sides:
        if backend is onnxruntime and tensor.dtype == np.float32:
            continue  # ONNX quantizes inside the graph: its session cannot say how
        if stated is not None:  # files keep scales in float32
            stated = replace(stated, scale=float(np.float32(stated.scale)))
        if tensor.quantization != stated:
            raise BadInput(
                f"{path}: {tensor.name!r} has {tensor.quantization}, the contract says {stated}"
            )
    return Model(contract, session)


def open_first(models: dict[str, Path], threads: int = 1) -> Model:
    """Open the first runtime of the ladder that works here.

    `models` maps a suffix (".so", ".tflite", ".onnx") to the file. Raises Missing with the reason
    of each runtime that was tried when none works.
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
