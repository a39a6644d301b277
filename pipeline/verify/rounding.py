"""How a runtime rounds an int8 layer: each integer against the exact value it stands for.

A layer's exact result is computed in float64 from the integers that the runtime itself fed to the
layer, so that nothing is inherited from the layers before. The runtime's integer must be that value
rounded to the nearest. Which way it rounds a half is the runtime's own; anything else is an error.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from ..program import attribute, decomposed, is_quantize, quantization_of

# A runtime that sums in float32 is off by some roundings of 2**-24 of the terms' total; an exact
# value this near to the middle of two integers may be rounded to either one.
TIE = 2.0**-8


class _Exact(fx.Interpreter):
    """Runs an int8 program in float64, going on from given integers after each quantization.

    Where none are given it rounds halves to even, and away from zero in the layers of `away`.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        given: dict[str, npt.NDArray[np.int64]],
        away: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(module)
        self.program = module
        self.given = given
        self.away = away
        self.exact: dict[str, npt.NDArray[np.float64]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if is_quantize(n):
            return self._quantize(n)
        if n.target is decomposed.dequantize_per_tensor.default:
            scale, zero_point = quantization_of(self.program, n)
            return (self._value(n.args[0]) - zero_point) * scale
        if n.target is decomposed.dequantize_per_channel.default:
            integers = self._value(n.args[0])
            scales = self._value(n.args[1]).double()
            return integers.double() * scales.reshape(-1, *[1] * (integers.dim() - 1))
        if n.op == "get_attr":
            return attribute(self.program, n).detach()
        return super().run_node(n)

    def _quantize(self, n: fx.Node) -> Tensor:
        scale, zero_point = quantization_of(self.program, n)
        source = n.args[0]
        assert isinstance(source, fx.Node)
        value = (self._value(source) / scale + zero_point).clamp(-128, 127)
        if source.name in self.given:
            self.exact[source.name] = value.numpy()
            return torch.from_numpy(self.given[source.name]).double()
        value = torch.from_numpy(_snap(value.numpy()))
        if source.name in self.away:
            return torch.trunc(value + torch.copysign(torch.tensor(0.5), value))
        return value.round()

    def _value(self, argument: Any) -> Tensor:
        value = self.env[argument]
        assert isinstance(value, Tensor)
        return value


def exact_values(
    module: fx.GraphModule, pixels: Tensor, given: dict[str, npt.NDArray[np.int64]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Per layer, its unrounded result on `given` inputs, in steps with the zero point included.

    `given` maps a layer's name to its integers in the runtime, N x ...; `pixels` is uint8.
    """
    interpreter = _Exact(module, given)
    with torch.inference_mode():
        interpreter.run(pixels.double() / 255)
    return interpreter.exact


def predict(module: fx.GraphModule, pixels: Tensor, away: frozenset[str]) -> Tensor:
    """The program's real outputs if it rounded halves away from zero in the layers of `away`."""
    with torch.inference_mode():
        parts = []
        for images in pixels.split(500):
            (scores,) = _Exact(module, {}, away).run(images.double() / 255)
            parts.append(scores)
        return torch.cat(parts).float()


def _snap(exact: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """float64 leaves a half off by some 2**-50; it is put back where it belongs."""
    halves = np.rint(exact * 2) / 2
    return np.where(np.abs(exact - halves) < 1e-9, halves, exact)


@dataclass(frozen=True)
class Rounding:
    """Counts of elements by how they were rounded; each element is in one of the first five.

    `half_even` is the nearest integer, an exact half going to the even one. `half_away` is an
    exact half that went away from zero instead; `near_tie` a value within 2**-8 of a half that went
    to its other neighbour; `neighbour` any other value that went to its farther neighbour; `wrong`
    is everything else. `halves` is how many exact halves there were in all.
    """

    half_even: int = 0
    half_away: int = 0
    near_tie: int = 0
    neighbour: int = 0
    wrong: int = 0
    halves: int = 0

    def __add__(self, other: Rounding) -> Rounding:
        totals = [a + b for a, b in zip(astuple(self), astuple(other), strict=True)]
        return Rounding(*totals)

    @property
    def nearest(self) -> bool:
        """Whether every element is the nearest integer, halves going either way."""
        return self.neighbour == 0 and self.wrong == 0

    @property
    def away(self) -> bool:
        """Whether halves go away from zero here: then half of them differ from those to even."""
        return self.half_away * 4 > self.halves

    @property
    def cause(self) -> str:
        """Why this layer's integers are not all the program's, in words; empty if they are."""
        causes = [
            (self.half_away, "exact halves rounded away from zero, not to even"),
            (self.near_tie, "values within 1/256 of a half rounded to the other side"),
            (self.neighbour, "values rounded to the farther neighbour"),
            (self.wrong, "values that no rounding explains"),
        ]
        return ", ".join(f"{count} {words}" for count, words in causes if count)


def rounding_of(found: npt.NDArray[np.int64], exact: npt.NDArray[np.float64]) -> Rounding:
    """Sort integers by how they come from their exact values."""
    exact = _snap(exact)
    nearest = found == np.rint(exact)
    distance = np.abs(found - exact)
    away = (distance == 0.5) & (np.abs(found) > np.abs(exact)) & ~nearest
    near = ~nearest & ~away & (distance <= 0.5 + TIE)
    neighbour = ~nearest & ~away & ~near & (distance < 1)
    kinds = (nearest, away, near, neighbour)
    half_even, half_away, near_tie, farther = (int(kind.sum()) for kind in kinds)
    wrong = found.size - half_even - half_away - near_tie - farther
    return Rounding(half_even, half_away, near_tie, farther, wrong, int((distance == 0.5).sum()))
