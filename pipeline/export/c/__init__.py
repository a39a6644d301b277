"""C99 for one model, generated from its ONNX file: a folder that stands alone."""

from __future__ import annotations

from .generate import Generated, digest, generate, write

__all__ = ["Generated", "digest", "generate", "write"]
