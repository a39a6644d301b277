"""Operators that only move elements about: most need no code, the others a table of positions."""

from __future__ import annotations

import numpy as np
import onnx

from ...reference import compute
from .lowering import Lowering, Real, positions_of
from .values import Array, Value, stored


def move(low: Lowering, node: onnx.NodeProto) -> Value | Real:
    """Reshape, Transpose and the like: the same memory seen in another shape, where it can be."""
    known = low.known[node.input[0]]
    assert not isinstance(known, np.ndarray)
    value = known.value if isinstance(known, Real) else known
    moved = _moved(low, node, positions_of(value))
    alias = Value(node.output[0], moved.shape, value.dtype, value.quantization, storage=value.root)
    if not np.array_equal(stored(moved).ravel(), np.arange(value.size)):
        alias = _flattened(value, moved, alias) or low.gathered(
            value, node.output[0], moved, (node.op_type,)
        )
    return Real(alias) if isinstance(known, Real) else alias


def _moved(low: Lowering, node: onnx.NodeProto, positions: Array) -> Array:
    """The node, applied to positions."""
    if node.op_type == "Dropout":
        training = low.constant(node, 2)
        if training is not None and training.any():
            raise ValueError("training_mode is not known")
        return positions
    rest = [low.constant(node, index) for index in range(1, len(node.input))]
    return compute(node, [positions, *rest], low.source.opset)[0]


def _flattened(value: Value, moved: Array, alias: Value) -> Value | None:
    """C x H x W in a row, lying H x W x C: a linear layer after it orders its weights so."""
    if value.flattened is not None or len(value.shape) != 4 or alias.shape[:1] != value.shape[:1]:
        return None
    _, channels, height, width = value.shape
    if moved.ndim != 2 or not np.array_equal(moved.ravel(), positions_of(value).ravel()):
        return None
    flattened = (channels, height, width)
    return Value(*(alias.name, alias.shape, value.dtype, value.quantization, value.root, flattened))


def pad(low: Lowering, node: onnx.NodeProto) -> Value | Real:
    """Zeros, an edge or a reflection around a value. Raises ValueError for another constant."""
    mode = low.attribute(node, "mode", "constant")
    given = low.constant(node, 2)
    fill = float(given.item()) if mode == "constant" and given is not None and given.size else 0.0
    known = low.known[node.input[0]]
    assert not isinstance(known, np.ndarray)
    value = low.ordered(known.value if isinstance(known, Real) else known)
    if fill and not value.is_float:
        raise ValueError(f"padding integers with {fill:g} is not known, only with 0")
    rest = [low.constant(node, index) for index in range(1, len(node.input))]
    if len(rest) > 1:  # the positions are integers: theirs is -1, counted from 1
        rest[1] = np.array(0, np.int64)
    padded = compute(node, [positions_of(value) + 1, *rest], low.source.opset)[0] - 1
    made = low.gathered(value, node.output[0], padded, ("Pad",), fill)
    return Real(made) if isinstance(known, Real) else made


def identity(low: Lowering, node: onnx.NodeProto) -> Value | Real:
    """Another name."""
    known = low.known[node.input[0]]
    assert not isinstance(known, np.ndarray)
    return known
