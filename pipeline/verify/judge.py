"""The verdict on one layer in one runtime: every element against its bound or its schemes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import bounds
from .bounds import Bounded, exactly, gamma
from .layers import Layer, Network
from .rounding import EXACT, FLOAT32, Exact, exact_of, scale_of

Array = npt.NDArray[Any]

Memo = dict[tuple[Any, ...], Bounded | Exact]

# Where a converter has merged a normalisation into weights, w g / sqrt(v + e), six roundings of
# every weight are its own and six are those of the ONNX file's weights.
MERGED_NORMALISATION = 12
MOST = 1e9  # a difference where the bound is zero counts as so many of it: JSON has no infinity


@dataclass(frozen=True)
class Worst:
    """One element: its index (image first), both values, and what it may be off by."""

    position: tuple[int, ...]
    expected: float
    found: float
    bound: float


@dataclass(frozen=True)
class Judgement:
    """Counts and measures over all elements that were judged; two of them add up.

    fp32: `outside` its bound are failures, `unlikely` is beyond the probabilistic bound. int8:
    `matches` counts for each scheme the elements that it reproduces, and what none but the best
    reproduces is outside. Differences are from the exact value, in steps for int8. `problem` says
    why there is nothing to judge.
    """

    elements: int = 0
    equal: int = 0
    beyond: int = 0
    unlikely: int = 0
    largest: float = 0.0
    total: float = 0.0
    fraction: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    power: float = 0.0
    matches: Mapping[str, int] = field(default_factory=dict)
    misses: Mapping[str, Worst] = field(default_factory=dict)
    telling: int = 0
    histogram: Mapping[int, int] = field(default_factory=dict)
    worst: Worst | None = None
    problem: str | None = None

    def __add__(self, other: Judgement) -> Judgement:
        """Both together; positions are as given to `judge`."""
        if not self.elements and self.problem is None:
            return other
        if not other.elements and other.problem is None:
            return self
        worse = other if other.fraction > self.fraction else self
        return Judgement(
            **{
                name: getattr(self, name) + getattr(other, name)
                for name in (
                    *("elements", "equal", "beyond", "unlikely", "total", "signal", "noise"),
                    *("product", "power", "telling"),
                )
            },
            largest=max(self.largest, other.largest),
            fraction=max(self.fraction, other.fraction),
            matches={
                name: self.matches[name] + other.matches[name]
                for name in self.matches
                if name in other.matches
            },
            misses={**other.misses, **self.misses},
            histogram=dict(Counter(self.histogram) + Counter(other.histogram)),
            worst=worse.worst or self.worst or other.worst,
            problem=self.problem or other.problem,
        )

    @property
    def reproducing(self) -> list[str]:
        """The schemes that reproduce every element."""
        return [name for name, count in self.matches.items() if count == self.elements]

    @property
    def closest(self) -> str:
        """The scheme that reproduces the most elements."""
        return max(self.matches, key=lambda name: self.matches[name])

    @property
    def outside(self) -> int:
        """fp32: elements outside their bound. int8: those that the closest scheme leaves over."""
        return self.elements - self.matches[self.closest] if self.matches else self.beyond

    @property
    def first_outside(self) -> Worst | None:
        """An element that is outside, for the report."""
        if self.matches:
            return self.misses.get(self.closest)
        return self.worst if self.beyond else None

    @property
    def passed(self) -> bool:
        """Something was judged, and nothing is outside."""
        return self.problem is None and self.elements > 0 and self.outside == 0

    @property
    def fingerprint(self) -> str:
        """How it rounds, in words; int8 only."""
        if not self.matches:
            return ""
        if not self.reproducing:
            return f"{self.outside} unexplained"
        return in_words(self.reproducing, self.matches)

    @property
    def sqnr(self) -> float:
        """Signal to difference in decibels; infinite where there is no difference."""
        if not self.noise:
            return float("inf")
        return float(10 * np.log10(self.signal / self.noise)) if self.signal else -float("inf")

    @property
    def cosine(self) -> float:
        """Of the angle between both, taken as vectors."""
        size = np.sqrt(self.signal) * np.sqrt(self.power)
        return float(self.product / size) if size else 1.0


def in_words(schemes: Sequence[str], candidates: Collection[str]) -> str:
    """Schemes that cannot be told apart. float32 arithmetic counts only where no other is left, and
    where all of the candidates have the same result nothing was rounded.
    """
    named = [name for name in schemes if name != FLOAT32]
    if set(named) == set(candidates) - {FLOAT32}:
        return EXACT
    return " or ".join(named or schemes) or "unexplained"


def judge(
    layer: Layer,
    network: Network,
    given: Mapping[str, Array],
    found: Array,
    first: int = 0,
    integer: bool = False,
    memo: Memo | None = None,
    apart: bool = False,
) -> Judgement:
    """Judge `found`, N x ..., a layer's value from its inputs `given` by layer name.

    Both are float32, or int8 in an int8 network. `first` is the number of the first image. Where a
    runtime adds up in integers (`integer`), float32 arithmetic explains no convolution or linear
    layer. A wrong shape or dtype, a NaN or an infinity is a `problem`. `memo` keeps exact results:
    several runtimes give a layer the same inputs. `apart` allows int8 inputs to be a step off.
    """
    images = len(next(iter(given.values())))
    expected = np.dtype(np.int8 if layer.quantization else np.float32)
    if found.shape != (images, *layer.shape):
        return Judgement(problem=f"shape {found.shape}, expected {(images, *layer.shape)}")
    if found.dtype != expected:
        return Judgement(problem=f"dtype {found.dtype}, expected {expected}")
    if not images:
        return Judgement(problem="nothing to compare")
    memo = {} if memo is None else memo
    inputs = (np.ascontiguousarray(value).data for value in given.values())
    key = (layer.name, *(hashlib.sha1(content).digest() for content in inputs))
    if key not in memo:
        memo[key] = (exact_of if layer.quantization else bounded)(layer, network, given)
    exact = memo[key]
    if isinstance(exact, Exact):
        if apart and layer.quantization is not None:
            step = max(scale_of(network, name) for name in given) / layer.quantization.scale
            exact = replace(exact, reach=exact.reach + step)
        return against_schemes(exact, found, first, integer)
    return against_bound(exact, found, first)


def bounded(layer: Layer, network: Network, given: Mapping[str, Array | Bounded]) -> Bounded:
    """A float layer's exact value and its bound from its inputs, which may have bounds already."""
    values = {
        network.values[name]: value if isinstance(value, Bounded) else exactly(value)
        for name, value in given.items()
    }
    evaluated = bounds.evaluate_layers(layer.nodes, values, network.opset, network.constants)
    result = evaluated[layer.value]
    if "batch norm" in layer.kind:
        merged = gamma(MERGED_NORMALISATION) * result.magnitude
        result = result._replace(error=result.error + merged, likely=result.likely + merged)
    return result


def against_bound(exact: Bounded, found: Array, first: int = 0) -> Judgement:
    """Judge float values, N x ..., by the bound of each."""
    if not np.isfinite(found).all():
        index = np.argwhere(~np.isfinite(found))[0]
        return Judgement(problem=f"NaN or infinity at {_position(index, first)}")
    if not np.isfinite(exact.value + exact.error).all():
        return Judgement(problem="the reference or its bound is not finite")
    found = found.astype(np.float64)
    off = np.abs(found - exact.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(off == 0, 0.0, np.minimum(off / exact.error, MOST))
    index = np.unravel_index(int(fraction.argmax()), fraction.shape)
    return replace(
        measured(exact.value, found),
        beyond=int((off > exact.error).sum()),
        unlikely=int((off > exact.likely).sum()),
        fraction=float(fraction[index]),
        worst=Worst(
            _position(index, first),
            float(exact.value[index]),
            float(found[index]),
            float(exact.error[index]),
        ),
    )


def against_schemes(exact: Exact, found: Array, first: int = 0, integer: bool = False) -> Judgement:
    """Judge int8 values, N x ..., by the schemes that reproduce them."""
    integers = found.astype(np.float64)
    near = exact.nearest
    matches: dict[str, int] = {}
    misses: dict[str, Worst] = {}
    ends = [
        exact.clamp(np.rint(exact.real + side) + exact.zero_point)
        for side in (-exact.reach, exact.reach)
    ]
    candidates = exact.schemes()
    for name, values in candidates.items():
        _count(name, integers == values, values, exact, integers, first, matches, misses)
    if exact.accumulator is None or not integer:
        within = (ends[0] <= integers) & (integers <= ends[1])
        _count(FLOAT32, within, near, exact, integers, first, matches, misses)
    some, *others = candidates.values()
    telling = np.zeros(integers.shape, bool)
    for other in others:
        telling |= other != some
    off = integers - near
    steps, counts = np.unique(off, return_counts=True)
    return replace(
        measured(near, integers, first),
        matches=matches,
        misses=misses,
        telling=int(telling.sum()),
        histogram={int(step): int(count) for step, count in zip(steps, counts, strict=True)},
        fraction=float(np.abs(off).max()),
    )


def _count(
    name: str,
    match: Array,
    values: Array,
    exact: Exact,
    found: Array,
    first: int,
    matches: dict[str, int],
    misses: dict[str, Worst],
) -> None:
    matches[name] = int(match.sum())
    if matches[name] < match.size:
        index = tuple(int(i) for i in np.argwhere(~match)[0])
        misses[name] = Worst(
            _position(index, first),
            float(values[index]),
            float(found[index]),
            float(np.broadcast_to(exact.reach, found.shape)[index]),
        )


def measured(expected: Array, found: Array, first: int = 0) -> Judgement:
    """How far `found` is from `expected`, float64 N x ... both; `worst` is what is farthest."""
    off = np.abs(found - expected)
    index = np.unravel_index(int(off.argmax()), off.shape)
    return Judgement(
        elements=found.size,
        equal=int((off == 0).sum()),
        largest=float(off[index]),
        total=float(off.sum()),
        fraction=float(off[index]),
        signal=float((expected * expected).sum()),
        noise=float((off * off).sum()),
        product=float((expected * found).sum()),
        power=float((found * found).sum()),
        worst=Worst(_position(index, first), float(expected[index]), float(found[index]), 0.0),
    )


def _position(index: Any, first: int) -> tuple[int, ...]:
    image, *rest = (int(i) for i in index)
    return (first + image, *rest)
