"""A file in a runtime, laid open: what comes out of it, layer by layer, and the verdict on that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deploy.runner.backends import Session, as_input

from ..errors import UserError, first_line
from .bounds import Bounded, exactly
from .judge import Memo, against_bound, against_schemes, bounded, judge, measured
from .judgement import Judgement
from .layers import IMAGE, Layer, Network, float_part
from .onnx_file import as_integers
from .rounding import exact_of
from .runtimes import Configuration, Opener, Runtimes, run_all

Array = npt.NDArray[Any]


class LayeredFile(Protocol):
    """An `OnnxFile`, a `TfliteFile` or a `CFile`."""

    @property
    def differing(self) -> Mapping[str, Layer]:
        """Layers that are not here as in the program, by name: they quantize their inputs, or hold
        others whose value the file never has, and have the last one's name.
        """

    def lay_open(self, opener: Opener) -> list[Session]:
        """Sessions with every layer's value as an output; the first has all and the file's own."""

    def split(self, outputs: list[list[Array]]) -> tuple[Array, dict[str, Array]]:
        """Their outputs: the file's own, and each layer's value as the program's."""

    def cut_out(self, layer: Layer, opener: Opener) -> Session:
        """One layer alone; its inputs are the values of `layer.inputs`."""

    def given(self, name: str, values: Array) -> Array:
        """A layer's value, laid out as the slice after it takes it."""

    def image(self, values: Array) -> Array:
        """The whole file's input, laid out as it takes it."""

    def canonical(self, name: str, values: Array) -> Array:
        """A slice's output, laid out as the program's value."""


@dataclass
class LayerVerdict:
    """One layer in one runtime: alone, fed the reference's and made values; in place, judged by
    what it was really fed; and `accumulated`, how far it is from the reference's own chain.

    A layer whose value is nowhere has none of these: it is judged `together` with a later one,
    whose `layer` then is both.
    """

    layer: Layer
    isolated: Judgement | None = None
    in_place: Judgement = field(default_factory=Judgement)
    accumulated: Judgement = field(default_factory=Judgement)
    together: LayerVerdict | None = None

    @property
    def passed(self) -> bool:
        """In place and, where it was looked at alone, alone."""
        if self.together is not None:
            return self.together.passed
        return self.in_place.passed and (self.isolated is None or self.isolated.passed)


@dataclass
class Subject:
    """`file` names it in reports. `integer` is whether the runtime adds up int8 layers in
    integers, so that a named scheme must reproduce them, and only `scheme` may where it is one.
    `observer` counts the final outputs that differ when layers are observed; `error` says why there
    is nothing to judge.
    """

    file: str
    precision: str
    configuration: str
    shipped: bool
    layers: list[LayerVerdict]
    integer: bool = False
    scheme: str = ""
    runtime: str = ""
    error: str | None = None
    observed: int = 0
    observer: int = 0
    output: Judgement = field(default_factory=Judgement)
    finals: list[Array] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Every layer passed, and the file's own output is the last one's value."""
        return (
            self.error is None
            and bool(self.layers)
            and self.observed > 0
            and all(layer.passed for layer in self.layers)
            and self.output.problem is None
            and self.output.outside == 0
        )

    @property
    def first_broken(self) -> LayerVerdict | None:
        """The first layer that is wrong by itself; where none was looked at alone, in place."""
        return next((layer for layer in judged_of(self.layers) if not layer.passed), None)


def verdicts_of(network: Network, differing: Mapping[str, Layer]) -> list[LayerVerdict]:
    """One for each layer, still to be reached; `differing` as `LayeredFile` has them."""
    layers = [differing.get(layer.name, layer) for layer in network.layers]
    found = {layer.name: LayerVerdict(layer) for layer in layers}
    for name, layer in differing.items():
        for part in layer.merged[:-1]:
            found[part.name].together = found[name]
    return list(found.values())


def judged_of(verdicts: Sequence[LayerVerdict]) -> list[LayerVerdict]:
    """Without those that are judged together with a later one."""
    return [verdict for verdict in verdicts if verdict.together is None]


def stepped_of(layers: Iterable[Layer]) -> dict[str, Layer]:
    """Those whose inputs the runtime quantizes by itself, by name."""
    return {layer.name: layer for layer in layers if layer.stepped}


def reference_chain(
    network: Network, pixels: Array, differing: Mapping[str, Layer] | None = None
) -> dict[str, Any]:
    """Every layer's value in the reference, from its own predecessors: integers, or `Bounded` for
    floats, with all that a runtime of these `differing` layers may be off by since the last
    integers. `pixels` uint8 N x C x H x W.
    """
    image = as_input(pixels, network.dtype)
    values: dict[str, Any] = {IMAGE: image if network.image_quantization else exactly(image)}
    for layer in network.layers:
        given = {name: values[name] for name in layer.inputs}
        if layer.quantization is not None:
            exact = exact_of(layer, network, given)
            values[layer.name] = exact.nearest.astype(exact.dtype)
        else:
            layer = (differing or {}).get(layer.name, layer)
            values[layer.name] = bounded(layer, network, given)
    return values


def nominal(chain: Mapping[str, Any]) -> dict[str, Array]:
    """The values of a `reference_chain` as a runtime has them, int8 or float32."""
    return {
        name: value.value.astype(np.float32) if isinstance(value, Bounded) else value
        for name, value in chain.items()
    }


def observe(
    subject: Subject,
    network: Network,
    pixels: Array,
    chain: Mapping[str, Any],
    final: Array,
    whole: Array,
    found: Mapping[str, Array],
    first: int,
    memo: Memo | None = None,
) -> None:
    """Judge one batch in place. `final` and `found` come from the file with its layers as outputs,
    `whole` from the file as it is: its output must be as near to what is exact as the last layer's
    value may be.
    """
    subject.observed += whole.size
    subject.observer += whole.size if final.shape != whole.shape else int(_differ(final, whole))
    values = {IMAGE: as_input(pixels, network.dtype)} | dict(found)
    for verdict in judged_of(subject.layers):
        layer = verdict.layer
        value = values[layer.name]
        given = {name: values[name] for name in layer.inputs}
        # ONNX Runtime's values are from files that end after each (see `OnnxFile`). Where branches
        # meet, it may have merged otherwise inside, and one of them be a step off what is known.
        apart = subject.configuration.startswith("onnxruntime") and len(given) > 1
        rules = (subject.integer, memo, apart, subject.scheme)
        judgement = judge(layer, network, given, value, first, *rules)
        verdict.in_place += judgement
        if judgement.problem is None:
            verdict.accumulated += _accumulated(network, chain[layer.name], value, first)
        elif layer.name != subject.layers[-1].layer.name:
            # What follows would be judged by inputs that are no numbers of this layer.
            raise ValueError(f"{layer.name}: {judgement.problem}")
    own = as_value(layer, whole)
    if not np.array_equal(own, value):
        rules = (subject.integer, memo, False, subject.scheme)
        judgement = judge(layer, network, given, own, first, *rules)
        if judgement.problem is None and not all(
            network.quantizations[name] for name in (*layer.inputs, layer.name)
        ):
            known = _since_integers(subject, network, values) if network.quantized else chain
            if layer.quantization is None:
                judgement = against_bound(known[layer.name], own, first)
            else:
                exact = exact_of(layer, network, {name: known[name] for name in layer.inputs})
                judgement = against_schemes(exact, own, first, subject.integer)
        subject.output += judgement


def _since_integers(
    subject: Subject, network: Network, values: Mapping[str, Array]
) -> dict[str, Any]:
    """Of the `values` that were observed, the integers, and in the place of floats what they may be
    after these integers: unobserved, they may be added up in another order.
    """
    float_layers = {verdict.layer.name: verdict.layer for verdict in subject.layers}
    known: dict[str, Any] = {IMAGE: values[IMAGE]}
    for layer in network.layers:
        if layer.quantization is not None:
            known[layer.name] = values[layer.name]
        else:
            given = {name: known[name] for name in layer.inputs}
            known[layer.name] = bounded(float_layers[layer.name], network, given)
    return known


def as_value(layer: Layer, output: Array) -> Array:
    """A file's own output as its last layer's value: of that shape, and as integers."""
    if layer.quantization is not None:
        output = as_integers(output, layer.quantization)
    shape = (len(output), *layer.shape)
    return output.reshape(shape) if output.size == np.prod(shape) else output


def _differ(one: Array, other: Array) -> int:
    """Elements that are not bit for bit equal; NaN equals NaN here, another check finds it."""
    return int((~((one == other) | (np.isnan(one) & np.isnan(other)))).sum())


def _accumulated(network: Network, expected: Any, found: Array, first: int) -> Judgement:
    if isinstance(expected, Bounded):
        if not network.quantized:
            return against_bound(expected, found, first)
        expected = expected.value  # which nothing bounds: integers before it may be a step off
    return measured(expected.astype(np.float64), found.astype(np.float64), first)


def isolate(
    verdict: LayerVerdict,
    network: Network,
    file: LayeredFile,
    configuration: Configuration,
    runtimes: Runtimes,
    inputs: Mapping[str, Array],
    memo: Memo | None = None,
) -> None:
    """Judge one layer alone, cut out of its file and fed `inputs`: where it stayed in float and has
    an int8 value, before it is rounded, too.
    """
    part = float_part(verdict.layer, network)
    for layer in (verdict.layer, part) if part is not None else (verdict.layer,):
        try:
            session = file.cut_out(layer, partial(runtimes.open, configuration))
            values = tuple(file.given(name, inputs[name]) for name in layer.inputs)
            found = file.canonical(layer.name, run_all(session, values, configuration.batch)[0])
        except UserError as error:
            verdict.isolated = Judgement(problem=first_line(error))
            return
        rules = (configuration.integer, memo, False, configuration.scheme)
        judgement = judge(layer, network, inputs, found, 0, *rules)
        if layer is verdict.layer or not judgement.passed:
            verdict.isolated = judgement


def integers(network: Network, values: Mapping[str, Array]) -> dict[str, Array]:
    """Real values that stand for integers, as those integers, by layer name."""
    found = {}
    for name, value in values.items():
        quantization = network.quantizations[name]
        found[name] = value if quantization is None else as_integers(value, quantization)
    return found


def named(network: Network, values: Sequence[Array]) -> dict[str, Array]:
    """Layer values in the network's order, by name."""
    return {layer.name: value for layer, value in zip(network.layers, values, strict=True)}
