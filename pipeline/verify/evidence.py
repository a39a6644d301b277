"""What a verdict was reached with: versions and processor."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__

PACKAGES = ("torch", "torchao", "litert-torch", "onnx", "onnxruntime", "ai-edge-litert", "numpy")
# The processor features that decide which kernels the runtimes take.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp", "i8mm")


def processor() -> str:
    """The processor's name as the kernel has it, or else its kind."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in lines if line.startswith("model name")), "")
    return model.partition(":")[2].strip() or platform.machine()


def machine() -> dict[str, Any]:
    """Versions, processor, and threads of this process."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # no Linux: the flags are not known
        words = set()
    return {
        "pipeline": __version__,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "processor": platform.machine(),
        "processor_flags": [flag for flag in FLAGS if flag in words],
        "torch_threads": torch.get_num_threads(),
    }
