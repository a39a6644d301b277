"""A model as generated C, built as a shared library: no runtime besides it, and nothing to install.

Loading a library runs it: one of unknown origin is as little to be trusted as a program.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import Contract, Quantization
from ..errors import BadInput, Missing
from .library import Layer, Value, loaded, text_of
from .session import TensorInfo, check_values

SUFFIX = ".so"
PIP = ""  # nothing: the library is all
MODULE = "ctypes"
THREADED = False  # one arena, one thread
SETS = ("portable", "avx2", "avx512", "neon", "dotprod")  # of instructions
KERNELS = ("best", *SETS)

ALIGNMENT = 64  # RUNNER_ALIGNMENT
DTYPES = (np.dtype(np.float32), np.dtype(np.int8), np.dtype(np.uint8))  # by enum value_type

Array = npt.NDArray[Any]


class CSession:
    """One library and one arena; images go through one at a time, and so do threads.

    `values` has what layers leave, by name. `layers` are (operators, inputs, output), by the names
    of values, in the order in which they run. `sets` are the instruction sets that this processor
    has, the best one last.
    """

    def __init__(self, path: Path, kernels: str) -> None:
        self._library = loaded(path)
        self._model = self._library.library_model()
        model = self._model.contents
        built = [text_of(model.sets[i].name) for i in range(model.set_count)]
        best = self._library.model_best(self._model)
        self.sets = tuple(n for i, n in enumerate(built) if model.sets[i].supported())
        self.kernels = built[best] if kernels == "best" else kernels
        if self.kernels not in self.sets:
            lack = "this processor lacks them" if self.kernels in built else "the library has none"
            raise Missing(
                f"{path}: no {self.kernels} instructions ({lack})",
                f"choose {', '.join(('best', *self.sets))}",
            )
        self._set = built.index(self.kernels)
        self.runtime = f"c {text_of(model.version)} ({self.kernels})"
        infos = [_tensor_info(model.values[i]) for i in range(model.value_count)]
        self._inputs = tuple(model.inputs[i] for i in range(model.input_count))
        self._outputs = tuple(model.outputs[i] for i in range(model.output_count))
        for i in (*self._inputs, *self._outputs):
            shape = model.values[i].shape[: model.values[i].rank]
            if shape[:1] != [1]:
                raise BadInput(
                    f"{path}: value {infos[i].name!r} has shape {shape}, not that of one image"
                )
        self.inputs = tuple(infos[i] for i in self._inputs)
        self.outputs = tuple(infos[i] for i in self._outputs)
        self._layers = [_numbers(model.layers[i]) for i in range(model.layer_count)]
        self.layers = tuple(
            (operators, tuple(infos[i].name for i in inputs), infos[output].name)
            for operators, inputs, output in self._layers
        )
        self.values = {info.name: info for info in infos}
        self.contract: bytes | None = self._library.library_contract()
        self._index = {info.name: i for i, info in enumerate(infos)}
        # NumPy aligns to less than the 64 bytes that an arena needs.
        self._memory = np.zeros(model.arena + ALIGNMENT, np.uint8)
        self._arena = -(-self._memory.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._lock = threading.Lock()

    def run(self, *values: Array) -> list[Array]:
        """See `session.Session`."""
        check_values(self.inputs, values)
        given = [_plain(value) for value in values]
        results = [_empty(info, len(values[0])) for info in self.outputs]
        with self._lock:
            for image in range(len(values[0])):
                for index, value in zip(self._inputs, given, strict=True):
                    self._put(index, value, image)
                self._library.model_run(self._model, self._set, self._arena)
                for index, result in zip(self._outputs, results, strict=True):
                    self._get(index, result, image)
        return results

    def observe(self, *values: Array) -> tuple[list[Array], dict[str, Array]]:
        """As `run`, step by step: the outputs, and what every layer leaves, by name, batch first.

        A value is taken right after its layer: later ones may use its memory.
        """
        check_values(self.inputs, values)
        images = len(values[0])
        given = [_plain(value) for value in values]
        results = [_empty(info, images) for info in self.outputs]
        found = {name: _empty(self.values[name], images) for _, _, name in self.layers}
        with self._lock:
            for image in range(images):
                for index, value in zip(self._inputs, given, strict=True):
                    self._put(index, value, image)
                for number, (_, _, output) in enumerate(self._layers):
                    self._library.model_step(self._model, self._set, number, self._arena)
                    self._get(output, found[self.layers[number][2]], image)
                for index, result in zip(self._outputs, results, strict=True):
                    self._get(index, result, image)
        return results, found

    def compute(self, output: str, given: Mapping[str, Array]) -> Array:
        """The value `output` from the values `given`, batch first, by the layers between alone.

        Raises BadInput where a value is unknown, of another shape, or does not follow from these.
        """
        check_values(tuple(self._value(name) for name in given), tuple(given.values()))
        steps = self.between(output, tuple(given))
        wanted = [self._layers[number] for number in steps]
        arrays = {self._index[name]: _plain(value) for name, value in given.items()}
        images = len(next(iter(given.values())))
        result = _empty(self._value(output), images)
        # A value is put where it is first read: before, another one may have its memory.
        fresh: list[list[int]] = []
        for _, inputs, _ in wanted:
            seen = {index for indices in fresh for index in indices}
            fresh.append([i for i in dict.fromkeys(inputs) if i in arrays and i not in seen])
        with self._lock:
            for image in range(images):
                for number, indices in zip(steps, fresh, strict=True):
                    for index in indices:
                        self._put(index, arrays[index], image)
                    self._library.model_step(self._model, self._set, number, self._arena)
                self._get(self._index[output], result, image)
        return result

    def between(self, output: str, given: Sequence[str]) -> list[int]:
        """The layers that make `output` of the values `given`. Raises BadInput where none do."""
        wanted, known, steps = [output], set(given), set()
        while wanted:
            name = wanted.pop()
            makers = [n for n, (_, _, made) in enumerate(self.layers) if made == name]
            if not makers:
                raise BadInput(f"{output}: no layer makes it of {', '.join(given)}")
            known.add(name)
            steps.update(makers)
            inputs = [read for number in makers for read in self.layers[number][1]]
            wanted += [read for read in dict.fromkeys(inputs) if read not in known]
        return sorted(steps)

    def _value(self, name: str) -> TensorInfo:
        if name not in self.values:
            raise BadInput(f"no value {name!r}; there are {', '.join(self.values)}")
        return self.values[name]

    def _put(self, index: int, values: Array, image: int) -> None:
        place = values.ctypes.data + image * values.strides[0]
        self._library.model_put(self._model, index, place, self._arena)

    def _get(self, index: int, values: Array, image: int) -> None:
        place = values.ctypes.data + image * values.strides[0]
        self._library.model_get(self._model, index, self._arena, place)


def open_session(path: Path, threads: int, kernels: str) -> CSession:
    """Load the library; it computes on one thread whatever `threads` says. Raises BadInput for what
    is none, Missing for instructions that are not there.
    """
    del threads
    return CSession(path, kernels)


def read_contract(path: Path, session: CSession) -> Contract:
    """The contract that was compiled in. Raises BadInput where there is none."""
    text = session.contract
    if text is None:
        raise BadInput(f"{path}: no contract in this library", "export it with this pipeline")
    return Contract.from_json(text, str(path))


def _numbers(layer: Layer) -> tuple[str, tuple[int, ...], int]:
    inputs = tuple(layer.inputs[i] for i in range(layer.input_count))
    return text_of(layer.operators), inputs, int(layer.output)


def _tensor_info(value: Value) -> TensorInfo:
    """A value inside that does not begin with a batch of 1 gets one more axis, as any batch has."""
    shape = tuple(value.shape[: value.rank])
    quantization = Quantization(value.scale, value.zero_point) if value.scale else None
    shape = (-1, *(shape[1:] if shape[:1] == (1,) else shape))
    return TensorInfo(text_of(value.name), shape, DTYPES[value.type], quantization)


def _plain(values: Array) -> Array:
    """As C reads it: in order, aligned."""
    return np.require(values, None, ["C", "A"])


def _empty(info: TensorInfo, images: int) -> Array:
    return np.empty((images, *info.shape[1:]), info.dtype)
