"""Quantize once: the float program becomes the int8 program that every export is made from."""

from .calibration import check, quantize
from .choice import Calibration, quantize_run
from .int16x8 import quantize_int16x8, store_int16x8
from .rules import Int8Quantizer
from .small_weights import store_small, with_small_weights

__all__ = [
    "Calibration",
    "Int8Quantizer",
    "check",
    "quantize",
    "quantize_int16x8",
    "quantize_run",
    "store_int16x8",
    "store_small",
    "with_small_weights",
]
