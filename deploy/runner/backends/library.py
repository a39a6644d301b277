"""A generated library as ctypes sees it: the structures and functions of `deploy/c/runner.h`."""

from __future__ import annotations

import ctypes
import platform
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_float, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from ..errors import BadInput

AXES = 6  # RUNNER_AXES


class Value(ctypes.Structure):
    """`struct value`."""

    _fields_ = (
        ("name", c_char_p),
        ("type", c_int),
        ("rank", c_int),
        ("shape", c_int * AXES),
        ("stride", c_int * AXES),
        ("begin", c_size_t),
        ("bytes", c_size_t),
        ("offset", c_size_t),
        ("scale", c_float),
        ("zero_point", c_int),
    )


class Layer(ctypes.Structure):
    """`struct layer`."""

    _fields_ = (
        ("name", c_char_p),
        ("operators", c_char_p),
        ("inputs", POINTER(c_int)),
        ("input_count", c_int),
        ("output", c_int),
    )


class Set(ctypes.Structure):
    """`struct instruction_set`."""

    _fields_ = (
        ("name", c_char_p),
        ("layers", c_void_p),
        ("place", c_void_p),
        ("supported", CFUNCTYPE(c_int)),
    )


class Model(ctypes.Structure):
    """`struct model`."""

    _fields_ = (
        ("name", c_char_p),
        ("precision", c_char_p),
        ("dataset", c_char_p),
        ("version", c_char_p),
        ("sha256", c_char_p),
        ("labels", POINTER(c_char_p)),
        ("label_count", c_int),
        ("channels", c_int),
        ("height", c_int),
        ("width", c_int),
        ("preparation", c_int),
        ("probabilities", c_int),
        ("temperature", c_double),
        ("values", POINTER(Value)),
        ("value_count", c_int),
        ("layers", POINTER(Layer)),
        ("layer_count", c_int),
        ("inputs", POINTER(c_int)),
        ("outputs", POINTER(c_int)),
        ("input_count", c_int),
        ("output_count", c_int),
        ("sets", POINTER(Set)),
        ("set_count", c_int),
        ("arena", c_size_t),
        ("golden_pixels", c_void_p),
        ("goldens", c_void_p),
        ("golden_count", c_int),
    )


# What the library must have: result and arguments.
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "library_model": (POINTER(Model), ()),
    "library_contract": (c_char_p, ()),
    "model_best": (c_int, (c_void_p,)),
    "model_put": (None, (c_void_p, c_int, c_void_p, c_void_p)),
    "model_get": (None, (c_void_p, c_int, c_void_p, c_void_p)),
    "model_step": (None, (c_void_p, c_int, c_int, c_void_p)),
    "model_run": (None, (c_void_p, c_int, c_void_p)),
}


def loaded(path: Path) -> Any:
    """The library with its FUNCTIONS declared. Raises BadInput for what is none."""
    try:
        library = ctypes.CDLL(str(path.absolute()))
    except OSError as error:
        raise BadInput(
            f"{path}: not a library that runs here, on {platform.machine()} ({error})",
            "build it for this machine: 'make libmodel.so' beside its model.c",
        ) from error
    for name, (result, arguments) in FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise BadInput(
                f"{path}: not a generated model (it has no {name})", "give a libmodel.so"
            ) from error
        function.restype, function.argtypes = result, arguments
    return library


def text_of(content: bytes | None) -> str:
    """A C string; "" for NULL."""
    return (content or b"").decode()
