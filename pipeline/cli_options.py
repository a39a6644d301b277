"""Options that several commands of the command line share, and how their values are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .errors import UsageError, unknown

if TYPE_CHECKING:
    from .package import Order

FORMATS = ("onnx", "tflite", "c")
PRECISIONS = ("fp32", "int8")


def split(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """A comma-separated choice, or `all`."""
    chosen = tuple(part.strip() for part in text.split(","))
    if chosen == ("all",):
        return tuple(known)
    for name in chosen:
        if name not in known:
            raise unknown(option, name, [*known, "all"])
    return tuple(dict.fromkeys(chosen))


def order_of(options: dict[str, Any], target: str | None, system: str | None) -> Order:
    """The bundle that --runtime, --precision and --wheelhouse, and --format where a command has it,
    ask for. Raises UsageError.
    """
    from .package import Order
    from .package.archive import KINDS

    runtimes = options["runtimes"]
    formats = () if runtimes == "auto" else split("runtime", runtimes, FORMATS)
    chosen = split("precision", options["precisions"], PRECISIONS)
    kind = options.get("kind", KINDS[0])
    return Order.of(formats, chosen, target, system, options["wheelhouse"], kind)


def flags(formats: str, precisions: str) -> str:
    """The options of a command, for the hint at the next one."""
    given = {"--format": formats, "--precision": precisions}
    return "".join(f" {option} {value}" for option, value in given.items() if value != "all")


def shape_of(text: str | None) -> tuple[int, int, int] | None:
    """C,H,W. Raises UsageError."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--input-shape {text}", "give C,H,W, as in 3,48,64")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def print_json(document: Any) -> None:
    """One JSON document, on stdout."""
    click.echo(json.dumps(document, indent=1))


RUN = click.option("--run", "run_name", metavar="NAME", help="The run (default: the newest).")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
FORMAT = click.option(
    "--format",
    "formats",
    default="all",
    show_default=True,
    help="onnx, tflite, c, or some by comma.",
)
PRECISION = click.option(
    "--precision", "precisions", default="all", show_default=True, help="fp32, int8, or both."
)
