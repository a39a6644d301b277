"""A network as a table."""

from __future__ import annotations

from .console import table
from .graph import Graph


def show_graph(graph: Graph) -> None:
    """One row a layer; sizes are rows x columns."""

    def times(pair: tuple[int, ...] | None) -> str:
        return "x".join(str(size) for size in pair) if pair else ""

    def padding(sides: tuple[int, int, int, int] | None) -> str:
        if sides is None:
            return ""
        top, left, bottom, right = sides
        symmetric = (top, left) == (bottom, right)
        return f"{top},{left}" if symmetric else f"{top},{left},{bottom},{right}"

    rows = [
        [
            layer.name,
            layer.operator + (f" /{layer.groups}" if layer.groups > 1 else ""),
            times(layer.output_shape),
            times(layer.kernel),
            times(layer.stride),
            padding(layer.padding),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs:,}" if layer.macs else "",
            times((layer.field[0].size, layer.field[1].size)),
        ]
        for layer in graph.layers
    ]
    rows.append(["total", "", "", "", "", "", f"{graph.parameters:,}", f"{graph.macs:,}", ""])
    columns = ["layer", "operator", "output", "kernel", "stride", "pad", "params", "MACs"]
    table(f"input {times(graph.input_shape)}", [*columns, "field"], rows)
