"""What LiteRT and its predecessor tflite-runtime have in common: the file and the interpreter."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import Contract, Quantization
from ..errors import BadInput

CONTRACT_MEMBER = "contract.json"


def contract(path: Path) -> Contract:
    """The contract, which stands behind the flatbuffer as a zip archive.

    This is how TFLite files carry associated files; loaders ignore what follows the flatbuffer.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(CONTRACT_MEMBER)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise BadInput(
            f"{path}: no contract in this TFLite file ({error})", "export it with this pipeline"
        ) from error
    return Contract.from_json(text, str(path))


class TfliteModel:
    """One interpreter; images go through one at a time, since shapes in the file are fixed."""

    def __init__(self, path: Path, interpreter: Any, runtime: str) -> None:
        self.contract = contract(path)
        self.runtime = runtime
        self._interpreter = interpreter
        interpreter.allocate_tensors()
        (self._input,) = interpreter.get_input_details()
        # The converter names outputs output_0, output_1, ... in the program's order.
        outputs = interpreter.get_signature_runner("serving_default").get_output_details()
        self._outputs = [outputs[name] for name in sorted(outputs, key=_position)]
        self._check(path)

    def _check(self, path: Path) -> None:
        expected = (1, *self.contract.input_shape)
        found = tuple(int(size) for size in self._input["shape"])
        if found != expected:
            raise BadInput(f"{path}: the input has shape {found}, the contract says {expected}")
        if self.contract.input is None or self.contract.output is None:
            return
        sides = ((self._input, self.contract.input), (self._outputs[0], self.contract.output))
        for details, stated in sides:
            scale, zero_point = details["quantization"]
            if Quantization(float(np.float32(stated.scale)), stated.zero_point) != Quantization(
                float(scale), int(zero_point)
            ):
                raise BadInput(
                    f"{path}: quantization {scale}, {zero_point}, but the contract says {stated}"
                )

    def run(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """See `backends.Model`."""
        values: npt.NDArray[Any]
        if self._input["dtype"] == np.int8:
            values = (pixels.astype(np.int16) - 128).astype(np.int8)  # scale 1/255, zero point -128
        else:
            values = pixels.astype(np.float32) / np.float32(255)
        outputs: list[list[npt.NDArray[Any]]] = [[] for _ in self._outputs]
        for image in values:
            self._interpreter.set_tensor(self._input["index"], image[None])
            self._interpreter.invoke()
            for kept, details in zip(outputs, self._outputs, strict=True):
                kept.append(self._interpreter.get_tensor(details["index"])[0])
        return [np.stack(kept) for kept in outputs]


def _position(name: str) -> int:
    return int(name.removeprefix("output_"))
