"""The runtimes that verify a file, each through the runner that ships."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.runner.backends import Model, onnxruntime, open_with


@dataclass(frozen=True)
class Configuration:
    """One way to open a file. `shipped` is whether the runner on the device opens it so."""

    name: str
    open: Callable[[Path], Model]
    shipped: bool


# One thread: a sum that is split among threads is rounded in another order.
CONFIGURATIONS: dict[str, tuple[Configuration, ...]] = {
    "onnx": (
        Configuration("onnxruntime", lambda path: open_with("onnxruntime", path), shipped=True),
        Configuration(  # optimization level 0: node by node, as in the file
            "onnxruntime O0",
            lambda path: onnxruntime.open_model(path, threads=1, optimize=False),
            shipped=False,
        ),
    ),
    "tflite": (Configuration("litert", lambda path: open_with("litert", path), shipped=True),),
}
