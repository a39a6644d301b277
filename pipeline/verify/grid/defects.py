"""What the exporters and runtimes are known to get wrong, and what is known to be refused.

Both are predicates over cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from .cells import Cell


@dataclass(frozen=True)
class Defect:
    """A mismatch that is known: in which runtime, of which versions, why, and in which cells.

    It depends on more than a cell's arguments: a cell in which it does not show is a match.
    """

    runtime: str
    versions: str
    reason: str
    applies: Callable[[Cell], bool]


@dataclass(frozen=True)
class Refusal:
    """What exporters are known to refuse, and a part of what they say.

    `kind` is the kind of file, "" for all: the quantizer has refused it already. `versions` are of
    the converter where the fault is its own. Such cells are exported alone, so that they do not
    hold up others; whether they are refused is still found out.
    """

    kind: str
    reason: str
    applies: Callable[[Cell], bool]
    versions: str = ""


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


@dataclass(frozen=True)
class _Axis:
    """One axis of a pooling: sizes, and the padding before and after, ceil_mode's included."""

    size: int
    kernel: int
    stride: int
    before: int
    after: int
    drops: bool  # a last window that would begin in the padding, as PyTorch does
    rest: int  # elements that no window reaches but one that ceil_mode adds

    @property
    def output(self) -> int:
        return (self.size + self.before + self.after - self.kernel) // self.stride + 1

    @property
    def looks_same(self) -> bool:
        """Whether there is no padding, or that which SAME adds: the odd element after."""
        needed = max(0, (ceil(self.size / self.stride) - 1) * self.stride + self.kernel - self.size)
        return (self.before, self.after) in ((0, 0), (needed // 2, needed - needed // 2))

    @property
    def is_same(self) -> bool:
        return self.output == ceil(self.size / self.stride)


def _axes(cell: Cell) -> list[_Axis]:
    """Of a pooling; no other layer has any."""
    if not cell.operator.endswith("-pool"):
        return []
    options = cell.options
    kernels = _pair(options["kernel_size"])
    strides = _pair(options.get("stride") or kernels)
    paddings = _pair(options.get("padding", 0))
    dilations = _pair(options.get("dilation", 1))
    axes = []
    for size, kernel, stride, padding, dilation in zip(
        cell.shape[1:], kernels, strides, paddings, dilations, strict=True
    ):
        reach = (kernel - 1) * dilation + 1
        windows, rest = divmod(size + 2 * padding - reach, stride)
        more = stride - rest if options.get("ceil_mode") and rest else 0
        drops = more > 0 and (windows + 1) * stride >= size + padding
        after = padding + (0 if drops else more)
        axes.append(_Axis(size, reach, stride, padding, after, drops, rest))
    return axes


def _drops_a_window(cell: Cell) -> bool:
    return any(axis.drops for axis in _axes(cell))


def _pads_by_less_than_none(cell: Cell) -> bool:
    """An average pooling that leaves out part of the image where it drops a window."""
    options = cell.options
    counts = options.get("count_include_pad", True) and not _divisor(cell)
    short = any(axis.drops and axis.rest > axis.before for axis in _axes(cell))
    return cell.operator == "avg-pool" and bool(counts) and short


def _taken_for_same(cell: Cell) -> bool:
    options = cell.options
    if _pair(options.get("dilation", 1)) != (1, 1):
        return False
    if cell.operator == "avg-pool" and (options.get("count_include_pad", True) or _divisor(cell)):
        return False
    axes = _axes(cell)
    return (
        any(axis.before or axis.after for axis in axes)
        and all(axis.looks_same for axis in axes)
        and not all(axis.is_same for axis in axes)
    )


def _divisor(cell: Cell) -> int | None:
    divisor: int | None = cell.options.get("divisor_override")
    return divisor


def _divides_differently(cell: Cell) -> bool:
    divisor = _divisor(cell)
    return divisor is not None and divisor != prod(_pair(cell.options["kernel_size"]))


def _lacks_in_int8(cell: Cell) -> bool:
    """int8 average pooling whose last window reaches beyond the padding, which is counted."""
    options = cell.options
    if cell.operator != "avg-pool" or cell.precision != "int8" or _divisor(cell):
        return False
    reaches = any(axis.after > axis.before for axis in _axes(cell))
    return reaches and bool(options.get("count_include_pad", True))


def _pads_in_int8(cell: Cell) -> bool:
    modes = "pad" in cell.options or cell.options.get("padding_mode", "zeros") != "zeros"
    return cell.precision == "int8" and modes


def _returns_indices(cell: Cell) -> bool:
    return bool(cell.options.get("return_indices"))


TORCH_ONNX = "torch 2.13.0, onnxscript 0.7.2"
CONVERTER = "litert-torch 0.10.0, litert-converter 0.5.0, ai-edge-litert 2.3.0"
KNOWN_DEFECTS = (
    Defect(
        "onnxruntime",
        "onnxruntime 1.31.1, from optimization level extended",
        "QLinearAveragePool divides by the whole window where ceil_mode cuts the last one short",
        _lacks_in_int8,
    ),
    Defect(
        "litert",
        CONVERTER,
        "int8 average pooling with ceil_mode divides by the whole window, rounds, multiplies by "
        "what the last window lacks, and rounds again",
        _lacks_in_int8,
    ),
)
REFUSALS = (
    Refusal("", "no quantization rule for aten.pad", _pads_in_int8),
    Refusal(
        "",
        "no quantization rule for aten.max_pool2d_with_indices",
        lambda cell: cell.precision == "int8" and _returns_indices(cell),
    ),
    Refusal("onnx", "torch.onnx leaves out", _divides_differently, TORCH_ONNX),
    Refusal("onnx", "has divisor_override", lambda cell: _divisor(cell) is not None),
    # Runtimes drop the window as PyTorch does; ONNX before opset 22 has it.
    Refusal("onnx", "wrote a graph that is not valid", _drops_a_window),
    Refusal("tflite", "returns indices", _returns_indices, CONVERTER),
    Refusal("tflite", "another shape than", _taken_for_same, CONVERTER),
    Refusal("tflite", "Pad value has to be greater", _pads_by_less_than_none, CONVERTER),
)


def known_defect(cell: Cell, runtime: str) -> Defect | None:
    """Why this cell may be wrong in this runtime, if it is known."""
    return next((d for d in KNOWN_DEFECTS if d.runtime == runtime and d.applies(cell)), None)


def known_refusal(cell: Cell, kind: str = "") -> Refusal | None:
    """Why this cell is refused for this kind of file, or by the quantizer, if it is known."""
    return next((r for r in REFUSALS if r.kind == kind and r.applies(cell)), None)
