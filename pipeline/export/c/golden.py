"""Golden values: what every layer makes of one image, compiled into the C that must repeat it.

Integers must be repeated exactly. Where they are rounded from floats, an error of those could put
one on another side of a half: then another image is taken, for which no value is so near one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .evaluate import KINDS, seen
from .values import Array, Layer, Program, Value, Weights

SAMPLES = 64  # elements of a float layer: enough to tell, and few enough to carry along
U = 2.0**-24  # the unit roundoff of float32
IMAGES = 16  # that are tried
FUNCTION = 16  # roundings that a function of the C library may be off by, and those around it


Arrays = list[Array]


@dataclass(frozen=True)
class Golden:
    """Every `every`-th element of a layer's value in ONNX's order, and what each may be off by:
    nothing for integers.
    """

    value: Value
    every: int
    elements: Array
    bounds: Array | None


def image_for(shape: tuple[int, ...], seed: int = 0) -> Array:
    """A made image, uint8 C x H x W: every byte is likely, neighbours differ."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_input(value: Value, pixels: Array) -> Array:
    """Pixels / 255 as the program's input: floats, or the nearest integers in signed terms."""
    if value.is_float:
        real = pixels[None].astype(np.float32) / np.float32(255)
        return np.asarray(real.astype(np.float64))
    steps = np.rint(pixels[None].astype(np.float64) / 255 / float(value.scale)) + value.zero
    return np.asarray(np.clip(steps, -128, 127), np.int64)


def golden_image(program: Program, shape: tuple[int, ...]) -> tuple[Array, list[Golden]]:
    """An image, uint8 C x H x W, and a golden for each layer; for fewer if no image is sure."""
    tried = []
    for seed in range(IMAGES):
        pixels = image_for(shape, seed)
        tried.append((pixels, goldens(program, pixels)))
        if len(tried[-1][1]) == len(program.layers):
            break
    return max(tried, key=lambda image: len(image[1]))


def goldens(program: Program, pixels: Array) -> list[Golden]:
    """One for each layer, of an image uint8 C x H x W; but for those in doubt and after them."""
    (given,) = program.inputs
    memory = {given.root: as_input(given, pixels)}
    errors = {given.root: np.full(given.shape, U if given.is_float else 0.0)}
    found, doubtful = [], set[str]()
    for layer in program.layers:
        before = [seen(value, memory[value.root]) for value in layer.inputs]
        off = [seen(value, errors[value.root]) for value in layer.inputs]
        made = KINDS[layer.kind](layer, *before).reshape(layer.output.shape)
        rule = ERRORS.get(layer.kind, _moved) if layer.output.is_float else _exact
        error = rule(layer, before, off, made)
        memory[layer.output.root] = made
        if error.size == 1:  # one bound for all elements
            error = np.full(made.shape, float(error))
        errors[layer.output.root] = error.reshape(made.shape)
        doubt = doubtful & {value.root for value in layer.inputs}
        if doubt or (not layer.output.is_float and _in_doubt(layer, before, off)):
            doubtful.add(layer.output.root)
            continue
        every = max(1, made.size // SAMPLES) if layer.output.is_float else 1
        bounds = errors[layer.output.root].ravel()[::every] if layer.output.is_float else None
        found.append(Golden(layer.output, every, made.ravel()[::every], bounds))
    return found


def _in_doubt(layer: Layer, before: Arrays, off: Arrays) -> bool:
    """Whether a result may be rounded from another side of a half than in exact arithmetic.

    Other integer layers compute in single operations of float32, which are the same everywhere.
    """
    scale = float(layer.output.scale)
    if layer.kind == "quantize":
        real = before[0]
        error = off[0] + gamma(1) * np.abs(real)
    elif layer.kind == "softmax":
        given = layer.inputs[0]
        reals = replace(layer, output=replace(layer.output, dtype=np.dtype(np.float32)))
        floats = replace(reals, inputs=(replace(given, dtype=np.dtype(np.float32)),))
        real = KINDS["softmax"](floats, (before[0] - given.zero) * float(given.scale))
        error = _of_softmax(layer, before, off, real)
    else:
        return False
    halves = np.abs(np.abs(real / scale) % 1 - 0.5)
    return bool((halves <= error / scale).any())


def gamma(n: int) -> float:
    """The share that n roundings may take: Higham, Accuracy and Stability of Algorithms, 3.1."""
    return n * U / (1 - n * U)


# How far elements may be off: what the inputs are off by, carried through, and what the layer's own
# roundings add.


def _exact(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    return np.zeros(())


def _moved(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    """Moves and choices add nothing; the largest error of an input is carried on."""
    return np.asarray(max(float(error.max()) for error in off))


def _same(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    return off[0]


def _of_convolution(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    assert layer.weights is not None
    weight = np.abs(layer.weights.array.astype(np.float64))
    bias = np.abs(layer.weights.bias.astype(np.float64))
    sizes = replace(layer, weights=Weights(weight, bias), low=-np.inf, high=np.inf)
    carrying = replace(sizes, weights=Weights(weight, np.zeros_like(bias)))
    run = KINDS["convolution"]
    rounded = gamma(weight[0].size + 2) * run(sizes, np.abs(before[0]) + off[0])
    error: Array = run(carrying, off[0]) + rounded
    return error


def _of_mean(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    assert layer.window is not None
    run, count = KINDS["average pool"], int(np.prod(layer.window.kernel))
    error: Array = run(layer, off[0]) + gamma(count + 1) * run(layer, np.abs(before[0]) + off[0])
    return error


def _of_binary(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    for side, constant in sorted(layer.settings.items()):
        before.insert("ab".index(side), constant.astype(np.float64))
        off.insert("ab".index(side), np.zeros_like(constant, np.float64))
    if layer.operators[0] == "Mul":
        a, b = (np.abs(value) for value in before)
        carried = off[0] * b + off[1] * a + off[0] * off[1]
    else:
        carried = off[0] + off[1]
    return np.asarray(carried + gamma(1) * (np.abs(made) + carried))


def _of_normalisation(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    settings = {name: np.abs(layer.settings[name]) for name in ("scale", "shift")}
    run, still = KINDS["normalise"], {**settings, "shift": np.zeros_like(settings["shift"])}
    rounded = gamma(2) * run(replace(layer, settings=settings), np.abs(before[0]) + off[0])
    error: Array = run(replace(layer, settings=still), off[0]) + rounded
    return error


def _of_function(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    """Slopes: 1.5 for hard swish, max(1, |alpha|) for a leaky ReLU, else 1 at most."""
    slope = 1.5 if layer.operators[0] == "HardSwish" else 1.0
    slope = max(slope, abs(float(layer.settings.get("alpha", 0.0))))
    return slope * off[0] + gamma(FUNCTION) * np.maximum(1.0, np.abs(made))


def _of_softmax(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    terms = layer.inputs[0].shape[layer.settings["axis"]]
    return np.asarray(2 * float(off[0].max()) + gamma(FUNCTION + terms))


def _of_product(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    a, b = (np.abs(value) for value in before)
    rounded = gamma(a.shape[-1] + 1) * ((a + off[0]) @ (b + off[1]))
    return np.asarray(off[0] @ b + a @ off[1] + off[0] @ off[1] + rounded)


def _of_dequantization(layer: Layer, before: Arrays, off: Arrays, made: Array) -> Array:
    return gamma(1) * np.abs(made)


ERRORS: dict[str, Callable[[Layer, Arrays, Arrays, Array], Array]] = {
    "average pool": _of_mean,
    "binary": _of_binary,
    "clip": _same,
    "convolution": _of_convolution,
    "dequantize": _of_dequantization,
    "normalise": _of_normalisation,
    "product": _of_product,
    "softmax": _of_softmax,
    "unary": _of_function,
}
