"""What layers are fed: whole images, and values made for one layer to tell most about it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data import Dataset
from .layers import Layer, Network, float_part
from .rounding import Linear, linear_of
from .schemes import REQUANTIZATIONS_OF, Multiplier, half_even

Array = npt.NDArray[Any]

MADE = 16  # images of each random kind
REAL = 32  # images whose values a layer is fed in isolation
AMPLITUDE = 2.0**14  # of an impulse: a power of two adds no rounding, and outweighs the bias
CHANNELS = 8  # output channels for which inputs are sought that tell the schemes apart
BIASES = 128  # and for which some are sought that tell a bias from its neighbours
FEATURES = 4096  # at most so many impulses, evenly spaced, for a linear layer
TRIES = 64  # halves that are tried: inputs do not reach every accumulator
MOST_SUMS = 2**20  # accumulators on either side of zero that are searched


@dataclass(frozen=True)
class Case:
    """`pixels` uint8 N x C x H x W."""

    name: str
    pixels: Tensor


def cases_for(dataset: Dataset, images: int, seed: int) -> list[Case]:
    """The first `images` test images, and made ones that follow from the seed."""
    return [
        Case("test images", dataset.test.images[:images]),
        *made_cases(dataset.test.images.shape[1:], seed),
    ]


def made_cases(shape: Sequence[int], seed: int) -> list[Case]:
    """Images of C x H x W that real ones never resemble."""
    generator = torch.Generator().manual_seed(seed)
    several = (MADE, *shape)
    random = torch.randint(0, 256, several, dtype=torch.uint8, generator=generator)
    saturated = torch.randint(0, 2, several, dtype=torch.uint8, generator=generator) * 255
    constant = torch.stack(
        [torch.full(tuple(shape), v, dtype=torch.uint8) for v in (0, 1, 128, 255)]
    )
    return [
        Case("uniformly random", random),
        Case("saturated: 0 or 255", saturated),
        Case("constant: 0, 1, 128, 255", constant),
    ]


def isolated_inputs(
    layer: Layer, network: Network, real: Mapping[str, Array], seed: int
) -> dict[str, Array]:
    """Inputs for one layer alone, by the name of the layer that they would come from.

    `real` are the reference's own values, of which the first are taken. Then come random values,
    constants, impulses, and in integers those on which rounding schemes disagree.
    """
    random = np.random.default_rng(seed)
    shapes = {name: values.shape[1:] for name, values in real.items()}
    some = {name: values[:REAL] for name, values in real.items()}
    floats = {name: shape for name, shape in shapes.items() if not network.quantizations[name]}
    integers = {name: shape for name, shape in shapes.items() if name not in floats}
    parts = [some]
    if not integers:
        parts += _float_parts(layer, floats, random)
    elif not floats:
        parts += _integer_parts(layer, network, integers, random)
    else:
        of_floats = _float_parts(layer, floats, random)
        of_integers = _integer_parts(layer, network, integers, random)
        parts += [_side_by_side(*pair) for pair in zip(of_floats, of_integers, strict=False)]
    return {name: np.concatenate([part[name] for part in parts]) for name in shapes}


def _float_parts(
    layer: Layer, shapes: Mapping[str, tuple[int, ...]], random: np.random.Generator
) -> list[dict[str, Array]]:
    spread = {n: random.normal(0, 4, (MADE, *s)).astype(np.float32) for n, s in shapes.items()}
    constant = [{n: np.full((1, *s), v, np.float32) for n, s in shapes.items()} for v in (0, -1.5)]
    parts = [spread, *constant]  # of zeros the bias is left
    if len(shapes) == 1:
        ((name, shape),) = shapes.items()
        for height in (1, AMPLITUDE):
            for sign in (1, -1):  # a ReLU hides one of the two
                parts.append({name: impulses(layer, shape, sign * height, 0).astype(np.float32)})
    return parts


def _side_by_side(one: dict[str, Array], other: dict[str, Array]) -> dict[str, Array]:
    """For a layer with float and integer inputs: both, again from the first where one has fewer."""
    both = one | other
    rows = max(len(values) for values in both.values())
    return {name: np.resize(values, (rows, *values.shape[1:])) for name, values in both.items()}


def _integer_parts(
    layer: Layer,
    network: Network,
    shapes: Mapping[str, tuple[int, ...]],
    random: np.random.Generator,
) -> list[dict[str, Array]]:
    limits = np.iinfo(network.dtype)
    low, high, dtype = limits.min, limits.max, limits.dtype

    def every(value: int) -> dict[str, Array]:
        return {n: np.full((1, *s), value, dtype) for n, s in shapes.items()}

    spread = {
        n: random.integers(low, high + 1, (2 * MADE, *s)).astype(dtype) for n, s in shapes.items()
    }
    # All values that there are, which a table of them must have right.
    count = max(-(-(high + 1 - low) // int(np.prod(s))) for s in shapes.values())
    ramp = {
        n: np.resize(np.arange(low, high + 1), (count, *s)).astype(dtype) for n, s in shapes.items()
    }
    parts = [spread, ramp, every(low), every(high)]
    if len(shapes) == 1:
        ((name, shape),) = shapes.items()
        parts.append({name: impulses(layer, shape, high, low).astype(dtype)})
        image = network.quantizations[name]
        if image is not None and float_part(layer, network) is not None:
            # Around nothing but zeros a float weight has hardly anything that hides a change of it.
            zero = image.zero_point
            far = high if zero < 0 else low
            parts.append({name: impulses(layer, shape, far, zero).astype(dtype)})
        linear = linear_of(layer, network)
        if linear is not None:
            parts.append({name: disagreements(layer, linear, shape, random)})
            parts.append({name: beside_halves(layer, linear, shape, random)})
    return parts


def impulses(layer: Layer, shape: tuple[int, ...], height: float, ground: float) -> Array:
    """One element of `height` in each, K x `shape`, on `ground`.

    For each channel one in every class of positions: the corners, the edges, and inside as many
    neighbours as the stride, so that each weight meets one. For a linear layer every element.
    """
    if len(shape) != 3 or layer.kind.startswith("linear"):
        size = int(np.prod(shape))
        chosen = np.unique(np.linspace(0, size - 1, min(size, FEATURES)).astype(int))
        places = [np.unravel_index(place, shape) for place in chosen]
    else:
        strides = _attribute(layer, "strides", (1, 1))
        rows, columns = (
            # Where few windows fit, a weight may have none about the middle.
            range(size)
            if size < 2 * (reach + stride)
            else sorted({0, size - 1, *range(size // 2, min(size, size // 2 + stride))})
            for size, stride, reach in zip(
                shape[1:], strides, _reaches(layer, shape[1:]), strict=True
            )
        )
        places = [(c, y, x) for c in range(shape[0]) for y in rows for x in columns]
    found = np.full((len(places), *shape), ground)
    for number, place in enumerate(places):
        found[(number, *place)] = height
    return found


def _reaches(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many rows and columns a window spans; all, where the file does not say."""
    if not any(node.op_type in ("Conv", "MaxPool", "AveragePool") for node in layer.nodes):
        return (1, 1)
    kernel = _attribute(layer, "kernel_shape", shape)
    dilations = _attribute(layer, "dilations", (1, 1))
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))


def disagreements(
    layer: Layer, linear: Linear, shape: tuple[int, ...], random: np.random.Generator
) -> Array:
    """Integers, K x `shape`, whose accumulators are rounded differently by different schemes.

    For some output channels and every two schemes the accumulators on which they disagree are
    listed, and inputs are sought, weight by weight, that add up to one of them.
    """
    found = []
    for each in _channels(layer, linear, shape, random, CHANNELS):
        schemes = REQUANTIZATIONS_OF[linear.dtype].values()
        results = [scheme(each.sums, each.multiplier) for scheme in schemes]
        for one, other in itertools.combinations(results, 2):
            found += [each.input_of(total) for total in _some(each.sums[one != other], random)]
    return _stacked(found, shape, linear.dtype)


def beside_halves(
    layer: Layer, linear: Linear, shape: tuple[int, ...], random: np.random.Generator
) -> Array:
    """Integers, K x `shape`, whose accumulators are the last before a half or the first after
    one: a bias that is one off moves one of the two to the other side.
    """
    found = []
    for each in _channels(layer, linear, shape, random, BIASES):
        sums = each.sums[each.sums >= 0]  # a ReLU hides what is below
        rounded = half_even(sums * each.multiplier.exact)
        before = np.flatnonzero(np.diff(rounded))[:TRIES]
        for side in (sums[before], sums[before + 1]):
            inputs = (each.input_of(total) for total in side)
            found.append(next((values for values in inputs if values is not None), None))
    return _stacked(found, shape, linear.dtype)


def _stacked(found: Sequence[Array | None], shape: tuple[int, ...], dtype: str) -> Array:
    known = [values for values in found if values is not None]
    return np.stack(known) if known else np.zeros((0, *shape), dtype)


@dataclass(frozen=True)
class _Channel:
    """An output channel: the accumulators `sums` that are looked through, how they are requantized,
    and the input of the layer that adds up to one of them.
    """

    sums: Array
    multiplier: Multiplier
    input_of: Callable[[int], Array | None]


def _channels(
    layer: Layer,
    linear: Linear,
    shape: tuple[int, ...],
    random: np.random.Generator,
    most: int,
) -> Iterator[_Channel]:
    """At most so many output channels, in random order."""
    weight = linear.weight.astype(np.int64)
    if linear.node.op_type == "Gemm" and not _attribute(layer, "transB", 0):
        weight = weight.T
    exact, single = (
        np.broadcast_to(part.ravel(), weight.shape[:1])
        for part in (linear.multiplier.exact, linear.multiplier.single)
    )
    for channel in random.permutation(len(weight))[:most]:
        row, bias = weight[channel].ravel(), 0 if linear.bias is None else int(linear.bias[channel])
        high = np.iinfo(linear.dtype).max + 1
        reach = int(min(1.25 * high / exact[channel], np.abs(row).sum() * high, MOST_SUMS))

        def input_of(
            total: int, channel: int = channel, row: Array = row, bias: int = bias
        ) -> Array | None:
            values = _adding_up(row, int(total) - bias, linear, random)
            if values is None:
                return None
            kernel = weight[channel].shape
            return _placed(layer, kernel, values, channel, len(weight), shape, linear)

        yield _Channel(
            np.arange(-reach, reach + 1),
            Multiplier(exact[channel : channel + 1], single[channel : channel + 1]),
            input_of,
        )


def _some(choices: Array, random: np.random.Generator) -> list[int]:
    return [int(c) for c in random.permutation(choices)[:2]]


def _adding_up(
    weights: Array, total: int, linear: Linear, random: np.random.Generator
) -> Array | None:
    """Values whose products with `weights`, zero point taken off, add up to `total`."""
    limits = np.iinfo(linear.dtype)
    for _ in range(8):
        values = random.integers(limits.min, limits.max + 1, weights.shape)
        left = total - int((weights * (values - linear.zero_point)).sum())
        for place in np.argsort(-np.abs(weights)):
            if weights[place] and left:
                wanted = int(values[place]) + int(np.fix(left / weights[place]))
                wanted = min(max(wanted, limits.min), limits.max)
                left -= (wanted - int(values[place])) * int(weights[place])
                values[place] = wanted
        if left == 0:
            return values.astype(limits.dtype)
    return None


def _placed(
    layer: Layer,
    kernel: tuple[int, ...],
    values: Array,
    channel: int,
    channels: int,
    shape: tuple[int, ...],
    linear: Linear,
) -> Array:
    """The values where one window of the layer sees them, all else at zero."""
    found = np.full(shape, linear.zero_point, linear.dtype)
    if len(kernel) == 1:
        found.reshape(-1)[:] = values
        return found
    group = channel // (channels // _attribute(layer, "group", 1))
    dilations, strides = (_attribute(layer, name, (1, 1)) for name in ("dilations", "strides"))
    pads = _attribute(layer, "pads", (0, 0, 0, 0))
    slices = [slice(group * kernel[0], (group + 1) * kernel[0])]
    for axis in range(2):
        # The first window that begins inside the input.
        start = -(-pads[axis] // strides[axis]) * strides[axis] - pads[axis]
        slices.append(
            slice(start, start + (kernel[axis + 1] - 1) * dilations[axis] + 1, dilations[axis])
        )
    place = found[tuple(slices)]
    if place.shape == kernel:  # else no window lies inside
        place[:] = values.reshape(kernel)
    return found


def _attribute(layer: Layer, name: str, default: Any) -> Any:
    import onnx

    for node in layer.nodes:
        for attribute in node.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
    return default
