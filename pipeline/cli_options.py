"""Options that several commands of the command line share, and how their values are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from .errors import UsageError, unknown

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
