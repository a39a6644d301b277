"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import Contract
from ..errors import BadInput, first_line

SUFFIX = ".onnx"
PIP = "onnxruntime"
MODULE = "onnxruntime"
CONTRACT_KEY = "contract"


class OnnxModel:
    """One session; a whole batch goes through at once."""

    def __init__(self, path: Path, session: Any, runtime: str) -> None:
        metadata = session.get_modelmeta().custom_metadata_map
        if CONTRACT_KEY not in metadata:
            raise BadInput(f"{path}: no contract in this ONNX file", "export it with this pipeline")
        self.contract = Contract.from_json(metadata[CONTRACT_KEY], str(path))
        self.runtime = runtime
        self._session = session
        (self._input,) = session.get_inputs()
        expected, found = list(self.contract.input_shape), list(self._input.shape[1:])
        if found != expected:
            raise BadInput(f"{path}: the input has shape {found}, the contract says {expected}")

    def run(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """See `backends.Model`."""
        values = pixels.astype(np.float32) / np.float32(255)
        outputs: list[npt.NDArray[Any]] = self._session.run(None, {self._input.name: values})
        return outputs


def open_model(path: Path, threads: int, optimize: bool = True) -> OnnxModel:
    """Build a session for `path`; see `backends.open_with` for what can go wrong.

    `optimize=False` runs the graph node by node as it is in the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own exception types share no base but Exception
        raise BadInput(f"{path}: onnxruntime cannot load it ({first_line(error)})") from error
    return OnnxModel(path, session, f"onnxruntime {onnxruntime.__version__}")
