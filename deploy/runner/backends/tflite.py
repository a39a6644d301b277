"""What LiteRT and its predecessor tflite-runtime have in common: the file and the interpreter."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import Contract, Quantization
from ..errors import BadInput
from ..quiet import quiet
from .session import TensorInfo, check_values

CONTRACT_MEMBER = "contract.json"
SIGNATURE = "serving_default"

# The runtimes' own names for these settings, in their `OpResolverType`.
RESOLVERS = {
    "xnnpack": "AUTO",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}
KERNELS = tuple(RESOLVERS)


def read_contract(path: Path, _: TfliteSession) -> Contract:
    """The contract, which stands behind the flatbuffer as a zip archive.

    This is how TFLite files carry associated files; loaders ignore what follows the flatbuffer.
    Raises BadInput where there is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(CONTRACT_MEMBER)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise BadInput(
            f"{path}: no contract in this TFLite file ({error})", "export it with this pipeline"
        ) from error
    return Contract.from_json(text, str(path))


def open_session(
    path: Path, threads: int, kernels: str, module: Any, runtime: str
) -> TfliteSession:
    """Build an interpreter of `module`, the runtime's own `interpreter` module."""
    resolver = module.OpResolverType[RESOLVERS[kernels]]
    with quiet():  # it announces its XNNPACK delegate
        interpreter = module.Interpreter(
            str(path), num_threads=threads, experimental_op_resolver_type=resolver
        )
        interpreter.allocate_tensors()
    return TfliteSession(path, interpreter, runtime)


class TfliteSession:
    """One interpreter; images go through one at a time, since shapes in the file are fixed."""

    def __init__(self, path: Path, interpreter: Any, runtime: str) -> None:
        self.runtime = runtime
        self._interpreter = interpreter
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        if SIGNATURE in interpreter.get_signature_list():
            # The subgraph's own order may be another than that of the program's arguments and
            # outputs, which the converter numbers: args_0, args_1, ..., output_0, output_1, ...
            signature = interpreter.get_signature_runner(SIGNATURE)
            inputs = _in_order(signature.get_input_details())
            outputs = _in_order(signature.get_output_details())
        self.inputs = tuple(_tensor_info(path, details) for details in inputs)
        self.outputs = tuple(_tensor_info(path, details) for details in outputs)
        self._inputs = [details["index"] for details in inputs]
        self._outputs = [details["index"] for details in outputs]

    def run(self, *values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """See `session.Session`."""
        check_values(self.inputs, values)
        images = len(values[0])
        results = [np.empty((images, *info.shape[1:]), info.dtype) for info in self.outputs]
        for i in range(images):
            for index, value in zip(self._inputs, values, strict=True):
                self._interpreter.set_tensor(index, value[i : i + 1])
            self._interpreter.invoke()
            for index, result in zip(self._outputs, results, strict=True):
                result[i] = self._interpreter.get_tensor(index)[0]
        return results


def _in_order(details: dict[str, Any]) -> list[Any]:
    """By name, where output_10 comes after output_2."""
    return [details[name] for name in sorted(details, key=lambda name: (len(name), name))]


def _tensor_info(path: Path, details: dict[str, Any]) -> TensorInfo:
    """Raises BadInput for a tensor that is not one image: no batch can be made of it."""
    name, shape = str(details["name"]), tuple(int(size) for size in details["shape"])
    if shape[:1] != (1,):
        raise BadInput(f"{path}: tensor {name!r} has shape {shape}, not that of one image")
    scale, zero_point = details["quantization"]  # 0, 0 where it has none or one per channel
    dtype = np.dtype(details["dtype"])
    quantization = Quantization(float(scale), int(zero_point), dtype.name) if scale else None
    return TensorInfo(name, (-1, *shape[1:]), dtype, quantization)
