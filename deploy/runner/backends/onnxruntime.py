"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import Contract
from ..errors import BadInput, first_line
from .session import TensorInfo, check_values

SUFFIX = ".onnx"
PIP = "onnxruntime"
MODULE = "onnxruntime"
THREADED = True
CONTRACT_KEY = "contract"
EXACT_INT8 = "session.x64quantprecision"
REFUSED = "Attempt to replace the existing tensor"  # what it says where it cannot have that

# How far the graph is rewritten; "disabled" runs it node by node as it is in the file.
LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
KERNELS = tuple(LEVELS)

DTYPES = {
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


class OnnxSession:
    """One session; a whole batch goes through at once."""

    def __init__(self, path: Path, session: Any, runtime: str) -> None:
        self.runtime = runtime
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        self._session = session
        self.inputs = tuple(_tensor_info(path, node) for node in session.get_inputs())
        self.outputs = tuple(_tensor_info(path, node) for node in session.get_outputs())

    def run(self, *values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """See `session.Session`."""
        check_values(self.inputs, values)
        feed = {tensor.name: value for tensor, value in zip(self.inputs, values, strict=True)}
        outputs: list[npt.NDArray[Any]] = self._session.run(None, feed)
        return outputs


def read_contract(path: Path, session: OnnxSession) -> Contract:
    """The contract in the file's metadata. Raises BadInput where there is none."""
    if CONTRACT_KEY not in session.metadata:
        raise BadInput(f"{path}: no contract in this ONNX file", "export it with this pipeline")
    return Contract.from_json(session.metadata[CONTRACT_KEY], str(path))


def open_session(path: Path, threads: int, kernels: str) -> OnnxSession:
    """Build a session for `path`; see `backends.open_session` for what can go wrong."""
    import onnxruntime

    runtime = f"onnxruntime {onnxruntime.__version__}"
    try:
        try:
            session = _built(path, threads, kernels, exact=True)
        except Exception as error:  # its own exception types share no base but Exception
            if REFUSED not in str(error):
                raise
            session = _built(path, threads, kernels, exact=False)
            runtime += ", int8 sums may saturate"
    except Exception as error:
        raise BadInput(f"{path}: onnxruntime cannot load it ({first_line(error)})") from error
    return OnnxSession(path, session, runtime)


def _built(path: Path, threads: int, kernels: str, exact: bool) -> Any:
    """`exact`: int8 sums do not saturate at 16 bits on x86 without VNNI. Version 1.31.1 then
    refuses files in which several weights share the tensor of their zero points.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4 if exact else 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[kernels])
    options.add_session_config_entry(EXACT_INT8, "1" if exact else "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _tensor_info(path: Path, node: Any) -> TensorInfo:
    """Axes without a number are named, or None. Raises BadInput for what is no array of numbers."""
    if node.type not in DTYPES:
        raise BadInput(f"{path}: {node.name!r} is a {node.type}")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorInfo(node.name, shape, np.dtype(DTYPES[node.type]), None)
