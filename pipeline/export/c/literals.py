"""Python values as C writes them."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np

from .values import Array

TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "uint8": "uint8_t"} | {
    "float32": "float"
}


def single(value: Any) -> str:
    """A float32, exactly: hexadecimal. Raises ValueError for NaN."""
    number = float(np.float32(value))
    if math.isnan(number):
        raise ValueError("a NaN among the constants")
    if math.isinf(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    mantissa, exponent = number.hex().split("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}p{exponent}f"


def listed(items: Iterable[str]) -> str:
    """Items of an initializer, as many in a line as fit."""
    return textwrap.fill(
        ", ".join(items),
        98,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def elements(array: Array) -> str:
    """All elements of an array, as `listed`."""
    if array.dtype == np.float32:
        return listed(single(value) for value in array.ravel())
    return listed(str(int(value)) for value in array.ravel())


def text(value: str) -> str:
    """A string literal: ASCII, with everything else escaped."""
    return '"' + "".join(_escaped(character) for character in value) + '"'


def _escaped(character: str) -> str:
    if character in '"\\?':  # a question mark could begin a trigraph
        return "\\" + character
    if " " <= character <= "~":
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode())


def comment(value: str) -> str:
    """Text that cannot end a comment."""
    return value.replace("*/", "* /").replace("/*", "/ *").replace("\n", " ")


def identifier(value: str) -> str:
    """A C identifier in lower case."""
    name = re.sub(r"[^a-z0-9]+", "_", value.lower()).strip("_") or "model"
    return name if not name[0].isdigit() else f"model_{name}"
