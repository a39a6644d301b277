"""What moves values and leaves them as they are."""

from __future__ import annotations

import math

import numpy as np

from ..convolution import Array
from .call import Call, Ints


def _axes(values: Array | None, rank: int) -> tuple[int, ...]:
    """Axes as numbers of 0 or more, all of them where none are given."""
    if values is None:
        return tuple(range(rank))
    axes = tuple(int(a) + rank * (a < 0) for a in values)
    if len(set(axes)) < len(axes) or any(not 0 <= a < rank for a in axes):
        raise ValueError(f"axes {values.tolist()} of a tensor of rank {rank}")
    return axes


def flatten(call: Call, *, axis: int) -> list[Array]:
    """Two axes: all before `axis`, and all from it on."""
    x = call[0]
    if not -x.ndim <= axis <= x.ndim:
        raise ValueError(f"axis {axis} of a tensor of rank {x.ndim}")
    axis += x.ndim * (axis < 0)
    return [x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))]


def reshape(call: Call, *, allowzero: int = 0) -> list[Array]:
    """0 keeps a size, unless `allowzero`; -1 is what remains."""
    x, shape = call[0], call[1].tolist()
    if allowzero and 0 in shape and -1 in shape:
        raise ValueError(f"shape {shape} with allowzero does not say what -1 is")
    if not allowzero:
        shape = [size or x.shape[axis] for axis, size in enumerate(shape)]
    if any(size < -1 for size in shape):
        raise ValueError(f"shape {shape}")
    return [x.reshape(shape)]


def transpose(call: Call, *, perm: Ints | None = None) -> list[Array]:
    """The axes in the order `perm`, or reversed."""
    return [call[0].transpose(perm)]


def squeeze(call: Call) -> list[Array]:
    """Without the axes named, which are of size 1; or without all such."""
    axes = call.optional(1)
    return [call[0].squeeze(None if axes is None else _axes(axes, call[0].ndim))]


def unsqueeze(call: Call) -> list[Array]:
    """With axes of size 1, numbered in the result."""
    return [np.expand_dims(call[0], _axes(call[1], call[0].ndim + call[1].size))]


def pad(call: Call, *, mode: str) -> list[Array]:
    """Elements added before and after, or taken away where `constant` pads are negative."""
    x, pads, value = call[0], call[1].tolist(), call.optional(2)
    axes = _axes(call.optional(3), x.ndim)
    if len(pads) != 2 * len(axes):
        raise ValueError(f"{len(pads)} pads for {len(axes)} axes")
    if mode not in {"constant", "reflect", "edge", *(["wrap"] if call.opset >= 19 else [])}:
        raise ValueError(f"mode {mode} is not supported at opset {call.opset}")
    widths = [(0, 0)] * x.ndim
    for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
        widths[axis] = (before, after)
        if mode != "constant" and min(before, after) < 0:
            raise ValueError(f"pads {pads} remove elements, which mode {mode} does not define")
        if mode == "reflect" and max(before, after) >= x.shape[axis]:
            raise ValueError(f"pads {pads} reflect more than the {x.shape[axis]} elements there")
    if mode != "constant":
        return [np.pad(x, widths, mode)]  # type: ignore[call-overload]
    if value is not None and value.shape != ():
        raise ValueError(f"constant_value of shape {value.shape}, expected a scalar")
    if any(before + n + after < 0 for n, (before, after) in zip(x.shape, widths, strict=True)):
        raise ValueError(f"pads {pads} remove more elements than there are")
    added = [(max(0, before), max(0, after)) for before, after in widths]
    padded = np.pad(x, added, constant_values=x.dtype.type(0) if value is None else value)
    kept = [
        slice(max(0, -before), n - max(0, -after))
        for n, (before, after) in zip(padded.shape, widths, strict=True)
    ]
    return [padded[tuple(kept)]]


def concat(call: Call, *, axis: int) -> list[Array]:
    """One after another along an axis; nothing is broadcast."""
    return [np.concatenate([call[i] for i in range(len(call.inputs))], axis)]


def sliced(call: Call) -> list[Array]:
    """Python's slices, but for a negative end that, once counted from the back, is before 0."""
    x, starts, ends, steps = call[0], call[1].tolist(), call[2].tolist(), call.optional(4)
    axes = call.optional(3)
    chosen = _axes(np.arange(len(starts)) if axes is None else axes, x.ndim)
    by = [1] * len(starts) if steps is None else steps.tolist()
    taken = [slice(None)] * x.ndim
    for axis, start, end, step in zip(chosen, starts, ends, by, strict=True):
        n = x.shape[axis]
        start = max(0, start + n * (start < 0))
        last = end + n * (end < 0)
        taken[axis] = slice(start, max(0, last) if step > 0 or last >= 0 else None, step)
    return [x[tuple(taken)]]


def gather(call: Call, *, axis: int) -> list[Array]:
    """The indices of an axis, -1 the last; one that is out of range is an error."""
    return [np.take(call[0], call[1], axis)]


def shape(call: Call, *, start: int = 0, end: int | None = None) -> list[Array]:
    """The sizes as int64, from `start` to `end`."""
    return [np.array(call[0].shape[start:end], np.int64)]


def expand(call: Call) -> list[Array]:
    """Broadcast to a shape, in which 1 keeps a size."""
    x = call[0]
    return [np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(call[1].tolist())))]


def identity(call: Call) -> list[Array]:
    """What came in."""
    return [call[0]]
