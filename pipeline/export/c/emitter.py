"""Layers to C text: one template for each kind of layer, with what it needs to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jinja2

from . import literals
from .details import KINDS
from .layout import Layout
from .values import Array, Layer, Value

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("pipeline.export.c"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)
FILTERS: dict[str, Callable[..., str]] = {
    "single": literals.single,
    "text": literals.text,
    "comment": literals.comment,
    "elements": literals.elements,
    "listed": literals.listed,
}
TEMPLATES.filters.update(FILTERS)


@dataclass(frozen=True)
class Constant:
    """A constant array: its C type, its symbol, how many elements and their text."""

    type: str
    symbol: str
    count: int
    text: str


class Emitter:
    """Writes the layers of one model. `constants` gathers the arrays that they refer to."""

    def __init__(self, prefix: str, layout: Layout) -> None:
        self.prefix, self.layout = prefix, layout
        self.constants: list[Constant] = []

    def layer(self, index: int, layer: Layer) -> str:
        """The C function of one layer."""
        places = [self.layout.of(value) for value in layer.inputs]
        output = self.layout.of(layer.output)
        details = KINDS[layer.kind](self, index, layer, places, output)
        return TEMPLATES.get_template(f"layers/{layer.kind.replace(' ', '_')}.jinja").render(
            index=index,
            layer=layer,
            given=places[0] if places else None,
            places=places,
            output=output,
            description=_description(layer),
            **details,
        )

    def constant(self, name: str, index: int, array: Array, slack: int = 0) -> str:
        """Keep an array; its symbol."""
        return self._keep(
            literals.TYPES[array.dtype.name],
            f"{self.prefix}_{name}_{index}",
            array.size + slack // array.itemsize,
            literals.elements(array),
        )

    def biases(self, index: int, signed: Array, unsigned: Array) -> str:
        """Keep a bias for signed and for unsigned bytes; its symbol."""
        both = (f"BIAS({int(s)}, {int(u)})" for s, u in zip(signed, unsigned, strict=True))
        symbol = f"{self.prefix}_bias_{index}"
        return self._keep("int32_t", symbol, signed.size, literals.listed(both))

    def _keep(self, kind: str, symbol: str, count: int, text: str) -> str:
        self.constants.append(Constant(kind, symbol, count, text))
        return symbol


def _shape(value: Value) -> str:
    return " x ".join(str(size) for size in value.shape)


def _description(layer: Layer) -> str:
    """What the comment above a layer says: its operators, shapes and attributes."""
    given = ", ".join(f"{value.name} {_shape(value)}" for value in layer.inputs)
    lines = [f"{' + '.join(layer.operators) or 'copy'}: {given} -> {_shape(layer.output)}"]
    if layer.window is not None:
        window = layer.window
        lines.append(
            f"kernel {window.kernel}, stride {window.stride}, dilation {window.dilation}, "
            f"padding {window.pads}, groups {layer.groups}"
        )
    if layer.pool != (1, 1):
        lines.append(f"max pooling {layer.pool} on the sums, before they are requantized")
    if layer.output.quantization is not None:
        quantization = layer.output.quantization
        lines.append(f"scale {float(quantization.scale):.9g}, zero point {quantization.zero_point}")
    return "\n * ".join(literals.comment(line) for line in lines)
