"""LiteRT, the `ai-edge-litert` package, with its XNNPACK kernels as shipped."""

from __future__ import annotations

from pathlib import Path

from ..quiet import quiet
from .tflite import TfliteModel

SUFFIX = ".tflite"
PIP = "ai-edge-litert"
MODULE = "ai_edge_litert.interpreter"


def open_model(path: Path, threads: int) -> TfliteModel:
    """Build an interpreter for `path`; see `backends.open_with` for what can go wrong."""
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    with quiet():  # it announces its XNNPACK delegate
        interpreter = Interpreter(str(path), num_threads=threads)
        return TfliteModel(path, interpreter, f"litert {version('ai-edge-litert')}")
