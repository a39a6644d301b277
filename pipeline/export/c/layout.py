"""Where values lie: margins for convolutions that reach beyond an image, and one arena for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .values import Program, Shape, Value, stored_shape

ALIGNMENT = 64
SLACK = 64  # bytes that a kernel may read beyond its input
FEW = 7  # values whose every order of placing is tried


@dataclass(frozen=True)
class Place:
    """A value's storage in the arena: `bytes` at `begin`. `margins` are rows and columns around
    each image: top, left, bottom, right.
    """

    value: Value
    begin: int
    margins: tuple[int, int, int, int]

    @property
    def element(self) -> int:
        """Bytes of one element."""
        return self.value.dtype.itemsize

    @property
    def memory(self) -> Shape:
        """The shape of the storage, margins included."""
        shape = stored_shape(self.value.shape)
        if len(shape) != 4:
            return shape
        top, left, bottom, right = self.margins
        batch, height, width, channels = shape
        return batch, height + top + bottom, width + left + right, channels

    @property
    def row(self) -> int:
        """Elements from row to row of an image."""
        return self.memory[2] * self.memory[3]

    @property
    def image(self) -> int:
        """Elements from image to image."""
        return math.prod(self.memory[1:])

    @property
    def bytes(self) -> int:
        """All of the storage."""
        return math.prod(self.memory) * self.element

    def first(self, top: int = 0, left: int = 0) -> int:
        """The arena's byte where the element `top` rows above and `left` columns before the first
        one lies.
        """
        if len(self.memory) != 4:
            return self.begin
        rows, columns = self.margins[0] - top, self.margins[1] - left
        return self.begin + (rows * self.row + columns * self.memory[3]) * self.element

    @property
    def strides(self) -> Shape:
        """Elements from index to index of each of ONNX's axes."""
        memory = self.memory
        steps = [math.prod(memory[axis + 1 :]) for axis in range(len(memory))]
        if len(memory) != 4:
            return tuple(steps)
        batch, height, width, channels = steps
        return batch, channels, height, width


@dataclass(frozen=True)
class Layout:
    """Every value's place, by the name of its storage. `size` is that of the arena in bytes,
    `peak` what values need at once, `optimum` the least that any plan needs, None where unknown.
    """

    places: Mapping[str, Place]
    size: int
    peak: int
    optimum: int | None

    def of(self, value: Value) -> Place:
        """The place of a value, in its own shape."""
        place = self.places[value.root]
        return place if not value.storage else replace(place, value=value, margins=(0, 0, 0, 0))


Margins = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Need:
    """A storage and the layers, first and last, between which it must be kept."""

    name: str
    bytes: int
    first: int
    last: int


def lay_out(program: Program, margins: Mapping[str, Margins]) -> Layout:
    """Place every value; those whose times do not meet share memory.

    Each order of placing puts a value at the lowest address that is free while it lives. All orders
    are tried where there are few values, which finds the optimum; else the best of some that are
    known to do well, largest or longest first.
    """
    values = {value.root: value for value in reversed(_values(program)) if not value.storage}
    unplaced = {
        name: Place(value, 0, margins.get(name, (0, 0, 0, 0))) for name, value in values.items()
    }
    needs = [_Need(n, unplaced[n].bytes, *_lifetime(program, n)) for n in values]
    few = len(needs) <= FEW
    orders: Sequence[Sequence[_Need]] = (
        list(itertools.permutations(needs))
        if few
        else [
            sorted(needs, key=lambda n: -n.bytes),
            sorted(needs, key=lambda n: -n.bytes * (n.last - n.first + 1)),
            sorted(needs, key=lambda n: (-(n.last - n.first), -n.bytes)),
            needs,
        ]
    )
    plans = [_placed(order) for order in orders]
    best = min(plans, key=lambda plan: _end(plan, needs))
    peak = _end(best, needs)
    least = max(
        sum(_aligned(n.bytes) for n in needs if n.first <= time <= n.last)
        for time in range(-1, len(program.layers) + 1)
    )
    places = {name: replace(place, begin=best[name]) for name, place in unplaced.items()}
    optimum = peak if few or peak == least else None
    return Layout(places, peak + SLACK, peak, optimum)


def _values(program: Program) -> list[Value]:
    layers = [value for layer in program.layers for value in (*layer.inputs, layer.output)]
    return [*program.inputs, *layers, *program.outputs]


def _lifetime(program: Program, name: str) -> tuple[int, int]:
    """From the layer that makes a value, -1 for an input, to the last one that reads it."""
    first = next((i for i, layer in enumerate(program.layers) if layer.output.root == name), -1)
    uses = [i for i, layer in enumerate(program.layers) if name in {v.root for v in layer.inputs}]
    if name in {value.root for value in program.outputs}:
        uses.append(len(program.layers))
    return first, max([first, *uses])


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _placed(order: Sequence[_Need]) -> dict[str, int]:
    """The lowest free address for one after the other."""
    placed: dict[str, int] = {}
    known: list[_Need] = []
    for need in order:
        begin = 0
        for other in sorted(known, key=lambda n: placed[n.name]):
            together = need.first <= other.last and other.first <= need.last
            free = begin + need.bytes <= placed[other.name]
            if together and not free:
                begin = max(begin, _aligned(placed[other.name] + other.bytes))
        placed[need.name] = begin
        known.append(need)
    return placed


def _end(plan: Mapping[str, int], needs: Sequence[_Need]) -> int:
    return max(_aligned(plan[need.name] + need.bytes) for need in needs)
