"""tflite-runtime 2.14, LiteRT's predecessor: the last release, Python 3.11 and NumPy 1 at most."""

from __future__ import annotations

from pathlib import Path

from ..quiet import quiet
from .tflite import TfliteModel

SUFFIX = ".tflite"
PIP = "tflite-runtime 'numpy<2'"
MODULE = "tflite_runtime.interpreter"


def open_model(path: Path, threads: int) -> TfliteModel:
    """Build an interpreter for `path`; see `backends.open_with` for what can go wrong."""
    import tflite_runtime
    from tflite_runtime.interpreter import Interpreter

    with quiet():  # it announces its XNNPACK delegate
        interpreter = Interpreter(str(path), num_threads=threads)
        return TfliteModel(path, interpreter, f"tflite-runtime {tflite_runtime.__version__}")
