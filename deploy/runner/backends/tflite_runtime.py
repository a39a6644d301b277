"""tflite-runtime 2.14, LiteRT's predecessor: the last release, Python 3.11 and NumPy 1 at most."""

from __future__ import annotations

from pathlib import Path

from . import tflite
from .tflite import KERNELS, TfliteSession, read_contract

__all__ = ["KERNELS", "MODULE", "PIP", "SUFFIX", "THREADED", "open_session", "read_contract"]

SUFFIX = ".tflite"
PIP = "tflite-runtime 'numpy<2'"
MODULE = "tflite_runtime.interpreter"
THREADED = True


def open_session(path: Path, threads: int, kernels: str) -> TfliteSession:
    """Build an interpreter for `path`; see `backends.open_session` for what can go wrong."""
    import tflite_runtime
    from tflite_runtime import interpreter

    return tflite.open_session(
        path, threads, kernels, interpreter, f"tflite-runtime {tflite_runtime.__version__}"
    )
