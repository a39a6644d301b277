"""A run's results as tables."""

from __future__ import annotations

import math
from typing import Any

from .console import say, table
from .graph import Graph


def percent(part: float) -> str:
    """Rounded down, so that only all of it is 100 %."""
    return f"{math.floor(part * 1e5) / 1e3:.3f}%"


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
    columns = ["layer", "operator", "output", "kernel", "stride", "padding", "parameters", "MACs"]
    table(f"input {times(graph.input_shape)}", [*columns, "field"], rows)


def show_verification(report: dict[str, Any]) -> None:
    """Layers by runtime for each precision, then the artefacts, then what is to be explained."""
    for precision in report["programs"]:
        artefacts = [a for a in report["artefacts"] if a["precision"] == precision]
        compared = [a for a in artefacts if a["error"] is None]
        if compared:
            _show_layers(precision, compared)
    _show_artefacts(report)
    for artefact in report["artefacts"]:
        _explain(artefact)
    say("verified: every artefact computes what its program does" if report["passed"] else "FAILED")


def _show_layers(precision: str, artefacts: list[dict[str, Any]]) -> None:
    int8 = precision == "int8"
    unit = "steps off, part equal" if int8 else "error as a part of the layer's largest value"

    def cell(layer: dict[str, Any]) -> str:
        difference = layer["difference"]
        if difference["problem"]:
            return f"FAILED: {difference['problem']}"
        value = (
            f"{difference['largest']:.0f}, {percent(difference['equal_part'])}"
            if int8
            else f"{difference['relative']:.1e}"
        )
        return value if layer["passed"] else f"FAILED {value}"

    rows = [
        [layer["layer"], layer["kind"], *(cell(a["layers"][number]) for a in artefacts)]
        for number, layer in enumerate(artefacts[0]["layers"])
    ]
    columns = ["layer", "kind", *(a["configuration"] for a in artefacts)]
    table(f"{precision}: {unit}", columns, rows)


def _show_artefacts(report: dict[str, Any]) -> None:
    def change(entry: dict[str, Any]) -> str:
        confusion = entry["confusion_with_fp32"]
        return f"+{confusion['only this right']} -{confusion['only fp32 right']}"

    rows = [
        [f"{precision} program", "PyTorch", f"{entry['accuracy']:.2%}", "", change(entry), ""]
        for precision, entry in report["programs"].items()
    ]
    for artefact in report["artefacts"]:
        name = [artefact["file"], artefact["configuration"]]
        if artefact["error"] is not None:
            rows.append([*name, "", "", "", "FAILED"])
            continue
        final = artefact["final"]
        size = (
            f"{final['largest']:.0f} steps, {percent(final['equal_part'])} equal"
            if artefact["precision"] == "int8"
            else f"{final['relative']:.1e}"
        )
        verdict = "passed" if artefact["passed"] else "FAILED"
        rows.append([*name, f"{artefact['accuracy']:.2%}", size, change(artefact), verdict])
    columns = ["file", "runtime", "accuracy", "final off by", "against fp32", ""]
    table(f"{report['test_images']:,} test images", columns, rows)


def _explain(artefact: dict[str, Any]) -> None:
    name = f"{artefact['file']} in {artefact['configuration']}"
    if artefact["error"] is not None:
        say(f"{name}: {artefact['error']}")
        return
    observer = artefact["observer"]
    if observer["equal"] < observer["elements"]:
        count = observer["elements"] - observer["equal"]
        size = f"{observer['largest']:.1g}" + (" step" if artefact["precision"] == "int8" else "")
        say(
            f"{name}: observing the layers changes {count} of {observer['elements']} final "
            f"outputs, by at most {size} (observer effect)"
        )
    final, unexplained = artefact["final"], artefact["unexplained"]
    if unexplained["equal"] > final["equal"]:
        say(
            f"{name}: the program with this runtime's rounding of halves gives "
            f"{percent(unexplained['equal_part'])} of its final outputs, bit for bit"
        )
    if final["problem"]:
        say(f"{name}: final output: {final['problem']}")
    for layer in artefact["layers"]:
        worst = layer["difference"]["worst"]
        if not layer["passed"] and worst:
            say(
                f"{name}: {layer['layer']} at {tuple(worst['position'])}: expected "
                f"{worst['expected']:.9g}, found {worst['found']:.9g}"
            )
        if layer["cause"]:
            say(f"{name}: {layer['layer']}: {layer['cause']}")
