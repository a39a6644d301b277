"""LiteRT, the `ai-edge-litert` package, with its XNNPACK kernels as shipped."""

from __future__ import annotations

from pathlib import Path

from . import tflite
from .tflite import KERNELS, TfliteSession, read_contract

__all__ = ["KERNELS", "MODULE", "PIP", "SUFFIX", "THREADED", "open_session", "read_contract"]

SUFFIX = ".tflite"
PIP = "ai-edge-litert"
MODULE = "ai_edge_litert.interpreter"
THREADED = True


def open_session(path: Path, threads: int, kernels: str) -> TfliteSession:
    """Build an interpreter for `path`; see `backends.open_session` for what can go wrong."""
    from importlib.metadata import version

    from ai_edge_litert import interpreter

    return tflite.open_session(
        path, threads, kernels, interpreter, f"litert {version('ai-edge-litert')}"
    )
