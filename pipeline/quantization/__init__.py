"""Quantize once: the float program becomes the int8 program that every export is made from."""

from .calibration import check, quantize
from .choice import Calibration, quantize_run
from .rules import Int8Quantizer
from .small_weights import store_small, with_small_weights

__all__ = [
    "Calibration",
    "Int8Quantizer",
    "check",
    "quantize",
    "quantize_run",
    "store_small",
    "with_small_weights",
]
