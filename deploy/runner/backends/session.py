"""A model file opened by a runtime: any file, with or without a contract, of any inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..contract import Quantization
from ..errors import BadInput


@dataclass(frozen=True)
class TensorInfo:
    """One input or output, as a batch: axis 0 counts the images. An axis of any size is -1.

    `quantization` is the whole tensor's, None where the file has none or has one per channel.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    quantization: Quantization | None


class Session(Protocol):
    """A file opened by one runtime."""

    @property
    def runtime(self) -> str:
        """Name and version."""
        ...

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """In the order in which `run` takes them."""
        ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """In the order in which `run` returns them."""
        ...

    def run(self, *values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """One array per input to one array per output, all batch first, in the file's own dtypes.

        Raises BadInput where number, dtype or shape of the values is not what the file takes.
        """
        ...


def check_values(inputs: tuple[TensorInfo, ...], values: Sequence[npt.NDArray[Any]]) -> None:
    """Raise BadInput unless `values` are one batch for `inputs`."""
    if len(values) != len(inputs):
        raise BadInput(f"{len(values)} arrays for {len(inputs)} inputs")
    for tensor, value in zip(inputs, values, strict=True):
        fits = len(value.shape) == len(tensor.shape) and all(
            size in (-1, found) for size, found in zip(tensor.shape, value.shape, strict=True)
        )
        if value.dtype != tensor.dtype or not fits:
            raise BadInput(
                f"input {tensor.name!r} takes {tensor.dtype} {tensor.shape}, "
                f"not {value.dtype} {value.shape}"
            )
        if value.shape[:1] != values[0].shape[:1]:
            raise BadInput(f"input {tensor.name!r} has another number of images than the first")
