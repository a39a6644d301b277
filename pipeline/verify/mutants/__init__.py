"""Wrong copies of a model file, each wrong in one way: what verification must not let pass.

Whatever a mutation does, every value of the original file is in the mutant: in ONNX under its name,
in TFLite under its tensor number, in the same shape. So layers that are found in the original can
be looked at in the mutant. Where an operator alone would give another shape, its input is cropped
or padded at the end first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import BadInput
from . import onnx, tflite
from .changes import ModelFile

MUTATIONS = {
    "one tap": "one weight: x (1 + 2**-10), or 1 step",
    "one tap, 2^-20": "one float weight x (1 + 2**-20)",
    "transposed kernel": "rows and columns of a square kernel exchanged",
    "flipped kernel": "convolution where cross-correlation is meant",
    "channel permutation": "the weights of two output channels exchanged, not their biases",
    "bias": "one bias: 2**-12 of the largest, or 1 step",
    "weight scale x1.01": "the scale of one channel's weights",
    "NCHW/NHWC swap": "values taken in the order of the other layout",
    "swapped pad sides": "one row of padding on the other side",
    "shifted padding": "one column of padding on the other side",
    "swapped stride axes": "strides exchanged; (s, s) becomes (1, s)",
    "pooling divisor": "average pooling divides by one element too many",
    "ceil_mode": "the last windows are cut off, or those that ceil_mode adds are missing",
    "count_include_pad": "padding counted or not; without any, zeros for the last row and column",
    "max for average": "the other pooling",
    "average for max": "the other pooling",
    "dropped activation": "a ReLU, sigmoid or tanh that passes its input",
    "zero point": "a layer's result quantized with a zero point that is off by 1",
    "scale x1.01": "a layer's result quantized with a scale that is off by 1 %",
    "saturating": "an accumulator of 16 bits that saturates",
}


FILES: dict[str, Callable[[Path], ModelFile]] = {".onnx": onnx.opened, ".tflite": tflite.opened}


@dataclass(frozen=True)
class Mutant:
    """`layer` is an ONNX value or the number and kind of a TFLite operator."""

    name: str
    layer: str
    content: bytes


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutation of an .onnx or .tflite file, at every operator where it is possible.

    The same file gives the same mutants. The contract goes along. Raises BadInput.
    """
    if path.suffix not in FILES:
        raise BadInput(
            f"{path}: no mutations are known for this kind of file", "give .onnx/.tflite"
        )
    file = FILES[path.suffix](path)
    model = file.fresh()
    for name in MUTATIONS:
        for number in range(len(file.layers(model))):
            layer, node = file.layers(model)[number]
            if name in file.mutations and file.mutations[name](model, node):
                yield Mutant(name, layer, file.content(model))
                model = file.fresh()
