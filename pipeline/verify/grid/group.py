"""Cells side by side in one program, its exported files, and what runtimes make of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from deploy.runner.backends import open_session
from deploy.runner.contract import Contract

from ... import __version__
from ...errors import BadInput, UserError, first_line
from ...export import EXPORTERS
from ...export.c import generate, write
from ...program import capture, plain
from ...reference import execute
from ..compiler import LIBRARY, Sources, built
from .cells import Cell, module_of, outputs_of
from .truth import INPUT, Truth, float_truths, inputs_for, int8_truth, random_pixels

Array = npt.NDArray[Any]

OPTIONS = ("CFLAGS=-O1",)  # of a compiler, for a few images
REFERENCE = "reference"
# Of files, by runtime. C runs by the best instructions that there are, and by none in particular.
KINDS = {
    **{REFERENCE: "onnx", "onnxruntime": "onnx", "litert": "tflite"},
    **{"c": "c", "c portable": "c"},
}


class Branches(nn.Module):
    """Cells side by side on one input; returns every output of every cell, in order."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(module_of(cell) for cell in cells)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """N x C x H x W."""
        outputs: list[Tensor] = []
        for layer in self.layers:
            result = layer(images)
            outputs += result if isinstance(result, tuple) else (result,)
        return tuple(outputs)


@dataclass(frozen=True)
class Group:
    """Cells of one shape and precision, their program, inputs, and each cell's truths."""

    cells: tuple[Cell, ...]
    program: fx.GraphModule
    values: Array
    truths: tuple[tuple[Truth, ...], ...]

    def program_of(self, numbers: Sequence[int]) -> fx.GraphModule:
        """The program of some of the cells."""
        ends = np.cumsum([outputs_of(cell) for cell in self.cells])
        graph = copy.deepcopy(self.program.graph)
        returned = next(node for node in graph.nodes if node.op == "output")
        outputs: Any = returned.args[0]
        chosen = [
            output
            for number in numbers
            for output in outputs[ends[number] - outputs_of(self.cells[number]) : ends[number]]
        ]
        returned.args = (tuple(chosen),)
        graph.eliminate_dead_code()
        return plain(fx.GraphModule(self.program, graph))


def group_of(cells: Sequence[Cell]) -> Group:
    """Capture, quantize and compute what is expected. Raises BadInput where that is refused."""
    first, values = cells[0], inputs_for(cells[0])
    program = plain(capture(Branches(cells).eval(), first.shape).module())
    if first.precision == "fp32":
        truths = [tuple(float_truths(cell, values)) for cell in cells]
        return Group(tuple(cells), program, values, tuple(truths))
    from ...quantization import quantize

    program = quantize(program, torch.from_numpy(random_pixels(first.shape)))
    outputs: Any = next(node for node in program.graph.nodes if node.op == "output").args[0]
    truths = [
        (int8_truth(cell, program, output, values),)
        for cell, output in zip(cells, outputs, strict=True)
    ]
    return Group(tuple(cells), program, values, tuple(truths))


def export_cells(
    group: Group, numbers: Sequence[int], kind: str, folder: Path
) -> list[tuple[Path, list[int]]]:
    """Export some cells to one file. Returns the files to run and the cells in each.

    An ONNX file is cut into its branches: ONNX Runtime fuses no int8 layer that shares its input
    with another, and would run other kernels. Raises BadInput.
    """
    first = group.cells[0]
    int8 = INPUT if first.precision == "int8" else None
    contract = Contract(
        model="grid",
        precision=first.precision,
        dataset="grid",
        labels=("none",),
        input_shape=first.shape,
        preparation="picture",
        scores="logits",
        input=int8,
        output=int8,
        program_sha256="",
        pipeline_version=__version__,
    )
    path = folder / f"grid.{'onnx' if kind == 'c' else kind}"
    counts = [outputs_of(group.cells[number]) for number in numbers]
    taps = tuple(str(tap) for tap in range(1, sum(counts)))
    EXPORTERS[path.suffix[1:]](group.program_of(numbers), contract, path, taps)
    if kind == "c":
        path = _compiled(path)
    if kind != "onnx":
        return [(path, list(numbers))]
    parts = _branches_of(path, counts)
    return [(part, [number]) for part, number in zip(parts, numbers, strict=True)]


def _compiled(path: Path) -> Path:
    """The library of the C that is generated from an ONNX file, beside it."""
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]  # the contract, of a network that classifies, which no layer does
    write(generate(model.SerializeToString(), path.name), path.parent)
    library = path.with_name(LIBRARY)
    library.write_bytes(built(Sources.of(path.parent), OPTIONS))
    return library


def _branches_of(path: Path, counts: Sequence[int]) -> list[Path]:
    """One ONNX file for each branch, of `counts` outputs each."""
    import onnx
    from onnx.utils import Extractor

    model = onnx.load(path)
    cutter = Extractor(model)
    image, names = model.graph.input[0].name, iter([value.name for value in model.graph.output])
    parts = []
    for number, count in enumerate(counts):
        outputs = [next(names) for _ in range(count)]
        parts.append(path.with_stem(f"{path.stem}-{number}"))
        onnx.save(cutter.extract_model([image], outputs), parts[-1])
    return parts


def found_by(path: Path, runtime: str, values: Array) -> list[Array]:
    """Every output of the file, as real numbers or, where they are indices, integers.

    `values` are float32, or int8 that stand for `INPUT`. Raises UserError.
    """
    pixels = values
    if values.dtype == np.int8:
        pixels = (values.astype(np.float32) + 128) / np.float32(255)
    if runtime == REFERENCE:
        return _reference(path, pixels)
    name, _, kernels = runtime.partition(" ")
    session = open_session(name, path, threads=1, kernels=kernels or None)
    try:
        outputs = session.run(values if values.dtype == session.inputs[0].dtype else pixels)
    except UserError:
        raise
    except Exception as error:  # the runtimes' own exceptions share no base
        raise BadInput(f"{runtime} cannot run it ({first_line(error)})") from error
    real = []
    for tensor, output in zip(session.outputs, outputs, strict=True):
        if tensor.quantization is not None:
            scale, zero_point = tensor.quantization.scale, tensor.quantization.zero_point
            output = (output - np.float64(zero_point)) * scale
        real.append(output)
    return real


def _reference(path: Path, pixels: Array) -> list[Array]:
    import onnx

    model = onnx.load(path)
    found = execute(model, {model.graph.input[0].name: pixels})
    return [found[output.name] for output in model.graph.output]
