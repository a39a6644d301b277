"""The verdict on one layer in one runtime: every element against its bound or its schemes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import bounds
from .bounds import Bounded, gamma
from .judgement import Judgement, Worst
from .layers import Layer, Network
from .merged import exact_of_merged
from .rounding import Exact, exact_of, inputs_of, scale_of
from .schemes import FLOAT32
from .stepped import stepped, ways_of

Array = npt.NDArray[Any]

# Where a converter has merged a normalisation into weights, w g / sqrt(v + e), six roundings of
# every weight are its own and six are those of the ONNX file's weights.
MERGED_NORMALISATION = 12
MOST = 1e9  # a difference where the bound is zero counts as so many of it: JSON has no infinity


Ways = dict[str, Bounded]
Result = Bounded | Ways | Exact | Judgement
Memo = dict[tuple[Any, ...], Result]


def judge(
    layer: Layer,
    network: Network,
    given: Mapping[str, Array],
    found: Array,
    first: int = 0,
    integer: bool = False,
    memo: Memo | None = None,
    apart: bool = False,
    scheme: str = "",
) -> Judgement:
    """Judge `found`, N x ..., a layer's value from its inputs `given` by layer name.

    Each is float32, or of the dtype of its quantization. `first` is the number of the first image.
    Where a runtime adds up in integers (`integer`), float32 arithmetic explains no convolution or
    linear layer, and only the `scheme` does where one is named. A wrong shape or dtype, a NaN or an
    infinity is a `problem`. `memo` keeps results: several runtimes give a layer the same inputs.
    `apart` allows int8 inputs to be a step off.
    """
    images = len(next(iter(given.values())))
    expected = np.dtype(layer.quantization.dtype if layer.quantization else np.float32)
    if found.shape != (images, *layer.shape):
        return Judgement(problem=f"shape {found.shape}, expected {(images, *layer.shape)}")
    if found.dtype != expected:
        return Judgement(problem=f"dtype {found.dtype}, expected {expected}")
    if not images:
        return Judgement(problem="nothing to compare")
    memo = {} if memo is None else memo
    key = (layer.name, layer.kind, layer.stepped, *(_digest(value) for value in given.values()))
    if key not in memo:
        memo[key] = _exact(layer, network, given)
    same = (*key, _digest(found), first, integer, apart, scheme)
    if same not in memo:
        memo[same] = _judged(layer, network, memo[key], found, first, integer, apart, scheme)
    judgement = memo[same]
    assert isinstance(judgement, Judgement)
    return judgement


def _digest(values: Array) -> bytes:
    return hashlib.sha1(np.ascontiguousarray(values).data).digest()


def _exact(layer: Layer, network: Network, given: Mapping[str, Array]) -> Bounded | Ways | Exact:
    if layer.stepped:
        (name, value), taken = *given.items(), replace(layer, stepped=False)
        return {
            what: bounded(taken, network, {name: way(value.astype(np.float64))})
            for what, way in ways_of(value).items()
        }
    if not layer.quantization:
        return bounded(layer, network, given)
    return (exact_of_merged if layer.merged else exact_of)(layer, network, given)


def _judged(
    layer: Layer,
    network: Network,
    exact: Result,
    found: Array,
    first: int,
    integer: bool,
    apart: bool,
    scheme: str,
) -> Judgement:
    if isinstance(exact, dict):
        return against_ways(exact, found, first)
    step = max(scale_of(network, name) for name in layer.inputs) if apart else 0.0
    if isinstance(exact, Bounded):
        exact = exact._replace(error=exact.error + step, likely=exact.likely + step)
        return against_bound(exact, found, first)
    assert isinstance(exact, Exact) and layer.quantization is not None
    exact = replace(exact, reach=exact.reach + step / layer.quantization.scale)
    judgement = against_schemes(exact, found, first, integer)
    return replace(judgement, demanded=scheme) if exact.accumulator is not None else judgement


def bounded(layer: Layer, network: Network, given: Mapping[str, Array | Bounded]) -> Bounded:
    """A float layer's exact value and its bound from its inputs, which may have bounds already."""
    values = inputs_of(network, given)
    if layer.stepped:
        values = {name: stepped(value) for name, value in values.items()}
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


def against_ways(ways: Ways, found: Array, first: int = 0) -> Judgement:
    """Judge float values by the way of quantizing inputs that all of them are within the bound of:
    they are counted as those that a scheme reproduces.
    """
    judged = {name: against_bound(exact, found, first) for name, exact in ways.items()}
    best = min(judged.values(), key=lambda judgement: judgement.beyond)
    if best.problem is not None:
        return best
    some, *others = ways.values()
    telling = np.zeros(found.shape, bool)
    for other in others:
        telling |= np.abs(some.value - other.value) > some.error + other.error
    return replace(
        best,
        matches={name: found.size - judgement.beyond for name, judgement in judged.items()},
        misses={n: j.worst for n, j in judged.items() if j.beyond and j.worst is not None},
        telling=int(telling.sum()),
    )


def against_schemes(exact: Exact, found: Array, first: int = 0, integer: bool = False) -> Judgement:
    """Judge integers, N x ..., by the schemes that reproduce them."""
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
    # A runtime may compute some int8 layers in float32; of int16 every kernel is known.
    if not integer or (exact.accumulator is None and exact.dtype == "int8"):
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
